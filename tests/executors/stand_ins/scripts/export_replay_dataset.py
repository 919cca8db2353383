"""Stand-in: one NPZ of a database."""

import sqlite3
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from standing_in import array, board, guard, parser

made = parser(
    "db", "board-type", "num-players", "output", "feature-version", "encoder-version", flags=("allow-pending-gate",)
)
args = made.parse_args()
guard()
board(args.board_type)
(rows,) = sqlite3.connect(args.db).execute("SELECT count(*) FROM games").fetchone()
array(args.output, "features", 40 * rows)
