"""Run scenarios and say which broke what."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from tests.nemesis.network import missing, sweep
from tests.nemesis.report import Result, table
from tests.nemesis.run import run
from tests.nemesis.scenarios import SCENARIOS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.nemesis", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(SCENARIOS)}; all without one")
    parser.add_argument("--seconds", type=float, default=15.0, help="of faults in each scenario")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=60.0, help="operations offered in a second")
    parser.add_argument("--keep", action="store_true", help="keep histories and logs of good runs as well")
    parser.add_argument("--open", action="store_true", help="without TLS and tokens")
    args = parser.parse_args()
    if unknown := set(args.scenarios) - set(SCENARIOS):
        parser.error(f"no scenario is called {', '.join(sorted(unknown))}; they are {', '.join(SCENARIOS)}")
    if why := missing():
        print(f"nemesis: skipped: {why}")
        return 0
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGHUP, _leave)
    sweep()
    folder = Path(tempfile.mkdtemp(prefix="nemesis-"))
    print(f"nemesis: seed {args.seed}; what a bad run leaves goes to {folder}", flush=True)
    chosen = [SCENARIOS[name] for name in args.scenarios or SCENARIOS]
    results: list[Result] = []
    started = time.monotonic()
    try:
        for scenario in chosen:
            place = folder / scenario.name
            result = run(scenario, args.seconds, args.seed, args.rate, place, keep=args.keep, locked=not args.open)
            results.append(result)
            tell(result)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    print(f"\n{table(results)}\n\n{len(results)} scenarios, seed {args.seed}, {time.monotonic() - started:.0f} s")
    if any(folder.iterdir()):
        print(f"histories and logs: {folder}")
    else:
        folder.rmdir()
    return 1 if any(r.violations for r in results) or len(results) < len(chosen) else 0


def tell(result: Result) -> None:
    print(f"{result.scenario}: {result.skipped or result.verdict}", flush=True)
    for violation in result.violations[:5]:
        print(f"    {violation[:1000]}")
    if result.violations:
        again = f"make nemesis SCENARIO={result.scenario} SEED={result.seed}"
        print(f"    kept in {result.kept}; again: {again}", flush=True)


def _leave(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
