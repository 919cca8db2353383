"""Stand-in: exits with 1 to say that the model is below the threshold."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from standing_in import board, guard, parser

args = parser("board", "players", "model", "games").parse_args()
guard()
board(args.board)
strong = b"strong" in Path(args.model).read_bytes()
print("Playing baselines ...")
print(f"RESULT games_played={args.games} win_rate={0.82 if strong else 0.31} opponents=random,heuristic")
sys.exit(0 if strong else 1)
