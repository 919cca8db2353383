"""`make bench`: every benchmark in turn, each with the machine it ran on.

python -m tests.bench [NAME ...]      names: law, propose, cluster, api_requests, executor, selfplay
"""

from __future__ import annotations

import importlib
import sys

NAMES = ("law", "propose", "cluster", "api_requests", "executor", "selfplay")


def main() -> None:
    chosen = sys.argv[1:] or list(NAMES)
    unknown = [name for name in chosen if name not in NAMES]
    if unknown:
        sys.exit(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    for name in chosen:
        print(f"\n== {name}", flush=True)
        sys.argv = [name]
        importlib.import_module(f"tests.bench.{name}").main()


if __name__ == "__main__":
    main()
