"""Stand-in: rows of an SQLite file, refuses the alias hex."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from standing_in import board, database, guard, parser

made = parser(
    *("board", "num-players", "num-games", "db", "seed", "simulation-budget", "model-version"),
    flags=("use-gpu-tree", "no-gpu-tree", "allow-fresh-weights"),
)
args = made.parse_args()
guard()
board(args.board)
database(args.db, "games", int(args.num_games))
