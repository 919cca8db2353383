"""Stand-in: one NPZ of a JSONL file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from standing_in import array, board, guard, parser

made = parser("input", "output", "board-type", "num-players", "checkpoint-dir", flags=("gpu-selfplay", "resume"))
args = made.parse_args()
guard()
board(args.board_type)
array(args.output, "features", 40 * len(Path(args.input).read_text().splitlines()))
