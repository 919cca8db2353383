"""Stand-in: stops at SIGTERM with exit code 0 and the games it has."""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from standing_in import board, database, guard, parser

made = parser("board", "num-players", "num-games", "engine", "output", "seed", "model-path")
args = made.parse_args()
guard()
board(args.board)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
database(args.output, "games", int(args.num_games))
