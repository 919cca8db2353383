"""Stand-in: a checkpoint and a report."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from standing_in import board, guard, parser

args = parser(
    *("tiers", "board", "games-per-matchup", "workers", "seed", "output-dir", "output-checkpoint", "output-report")
).parse_args()
guard()
board(args.board)
Path(args.output_checkpoint).write_text("{}")
Path(args.output_report).write_text(json.dumps({"total_games": 3 * int(args.games_per_matchup)}))
