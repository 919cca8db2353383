"""Kill agents, keepers, programs and voters at random while jobs run, and look whether anything is counted wrongly."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from tests.chaos.run import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--agents", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every-s", type=float, default=0.7, help="mean time between two faults")
    parser.add_argument("--within-s", type=float, default=1200.0, help="when the cluster is given up")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGHUP, _leave)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    began = time.monotonic()
    print(f"chaos: {args.jobs} jobs on {args.agents} agents, seed {args.seed}; a bad run stays in {folder}", flush=True)
    try:
        story = run(
            folder,
            jobs=args.jobs,
            agents=args.agents,
            seed=args.seed,
            every_s=args.every_s,
            within_s=args.within_s,
        )
    except AssertionError as error:
        print(error)
        return 1
    done = ", ".join(f"{count} x {kind}" for kind, count in sorted(story.done.items()) if kind != "attempts")
    print(f"all {args.jobs} items count once after {time.monotonic() - began:.0f} s: {done}; {story.lines[-1].strip()}")
    return 0


def _leave(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
