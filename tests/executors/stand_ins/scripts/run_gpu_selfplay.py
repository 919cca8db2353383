"""Stand-in: JSONL with its process number in the name, --output-db ignored, free text, no SIGTERM handler."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from standing_in import board, guard, pace, parser

made = parser(
    *("board", "num-players", "num-games", "output-dir", "output-db", "engine-mode", "seed", "batch-size"),
    flags=("use-policy", "use-heuristic", "no-gpu"),
)
args = made.parse_args()
guard()
print("note: --output-db is not written by this script")
out = Path(args.output_dir)
name = f"games_{board(args.board)}_{args.num_players}p_{os.getpid()}.jsonl"
with (out / name).open("w") as file:
    for number in range(int(args.num_games)):
        file.write(json.dumps({"game_id": number, "winner": number % int(args.num_players)}) + "\n")
        file.flush()
        print(f"[gpu] {number + 1} games so far, looking good!", flush=True)
        pace()
(out / "stats.json").write_text(json.dumps({"total_games": int(args.num_games), "seed": args.seed}))
