"""Stand-in: CPU games with --board-type, JSONL, a summary and a database."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from standing_in import board, database, guard, pace, parser

made = parser(
    *("num-games", "board-type", "num-players", "engine-mode", "max-moves", "log-jsonl", "summary-json", "record-db"),
    "seed",
    flags=("lean-db",),
)
args = made.parse_args()
guard()
board(args.board_type)
with Path(args.log_jsonl).open("w") as file:
    for number in range(int(args.num_games)):
        file.write(json.dumps({"game": number}) + "\n")
        file.flush()
        print(f"Game {number + 1}/{args.num_games}", file=sys.stderr, flush=True)
        pace()
database(args.record_db, "games", int(args.num_games))
Path(args.summary_json).write_text("{}")
