"""Stand-in: epochs, a checkpoint, a summary line, dies by the signal after an emergency checkpoint."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from standing_in import board, guard, pace, parser

made = parser(
    *("board-type", "num-players", "model-version", "epochs", "batch-size", "learning-rate", "save-path", "data-path"),
    *("init-weights", "checkpoint-dir", "max-data-age-hours"),
    flags=("allow-stale-data",),
)
args = made.parse_args()
guard()
board(args.board_type)
if Path(args.data_path).stat().st_size < 1024:
    sys.exit("npz_too_small: the data file is empty")


def emergency(number: int, _: object) -> None:
    (Path(args.checkpoint_dir) / "emergency.pt").write_bytes(b"half")
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


signal.signal(signal.SIGTERM, emergency)
for epoch in range(1, int(args.epochs) + 1):
    print(f"Epoch {epoch}/{args.epochs} loss 0.71", flush=True)
    pace()
(Path.home() / "state.json").write_text("{}")
Path(args.save_path).write_bytes(b"weights" * 100)
print(f"TRAINING_SUMMARY: loss=0.7131 samples=2048 games=3 epochs={args.epochs}")
print("bye", file=sys.stderr)
