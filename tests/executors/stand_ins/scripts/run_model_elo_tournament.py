"""Stand-in: writes its own rating database."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from standing_in import board, database, guard, parser

args = parser("board", "players", "games", "db", "record-db-dir", "workers", flags=("run", "quick")).parse_args()
guard()
board(args.board)
database(args.db, "match_history", int(args.games))
Path(args.record_db_dir).mkdir()
database(f"{args.record_db_dir}/tournament_1.db", "games", 2)
