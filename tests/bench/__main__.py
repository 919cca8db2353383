"""`make bench`: ours and the anchors in one sitting, and the table that compares them. Ten minutes.

python -m tests.bench [PART ...]
parts of a sitting: etcd propose cluster postgres failover feed heartbeats
by name only, each with a table of its own: law api_requests executor selfplay million transfers
"""

from __future__ import annotations

import importlib
import sys

from tests.bench.sitting import Sitting, machine

PARTS = ("etcd", "propose", "cluster", "postgres", "failover", "feed", "heartbeats")
ALONE = ("law", "api_requests", "executor", "selfplay", "million", "transfers")


def main() -> None:
    chosen = sys.argv[1:] or [*PARTS, "law"]
    unknown = [name for name in chosen if name not in PARTS + ALONE]
    if unknown:
        sys.exit(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(PARTS + ALONE)}")
    print(machine(), flush=True)
    sitting = Sitting()
    for name in chosen:
        print(f"\n== {name}", flush=True)
        part = importlib.import_module(f"tests.bench.{name}")
        if name in ALONE:
            sys.argv = [name]
            part.main()
            continue
        try:
            part.run(sitting)
        except AssertionError as error:
            # One part that fails on a busy machine does not take the figures of the others with it.
            sitting.lacks(f"{name} failed: {error}")
    if sitting.figures:
        print(f"\n{sitting.table()}")


if __name__ == "__main__":
    main()
