"""Run seeds and say which broke."""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.simulation.run import Outcome, simulate

STORY_LINES = 40


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=40, help="how many")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=20.0, help="virtual seconds of one run")
    parser.add_argument("--seed", type=int, help="run this one alone")
    parser.add_argument("--trace", action="store_true", help="tell the story while it happens")
    args = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Sets of nodes iterate in hash order, and the order is part of the story.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])
    seeds = range(args.first_seed, args.first_seed + args.seeds) if args.seed is None else [args.seed]
    run = partial(simulate, virtual_s=args.seconds, trace=args.trace)
    started = time.perf_counter()
    if args.jobs == 1 or len(seeds) == 1:
        outcomes = [tell(outcome) for outcome in map(run, seeds)]
    else:
        with ProcessPoolExecutor(args.jobs) as pool:
            outcomes = [tell(outcome) for outcome in pool.map(run, seeds)]
    return summary(outcomes, time.perf_counter() - started)


def tell(outcome: Outcome) -> Outcome:
    """Print the short story of a run that broke."""
    if outcome.broken:
        print(f"seed {outcome.seed} broke: {outcome.broken}")
        for line in outcome.story[-STORY_LINES:]:
            print(f"    {line}")
        print(f"    again: python -m tests.simulation --seed {outcome.seed} --trace", flush=True)
    return outcome


def summary(outcomes: list[Outcome], wall_s: float) -> int:
    """One line for all runs; the exit code."""
    broken = [o for o in outcomes if o.broken]
    virtual = sum(o.virtual_s for o in outcomes)
    cpu = sum(o.cpu_s for o in outcomes)
    print(
        f"{len(outcomes)} seeds, {len(broken)} broken; {virtual:.0f} virtual s in {cpu:.1f} CPU s "
        f"({virtual / max(cpu, 1e-9):.1f} x), {wall_s:.1f} s on the wall; "
        f"{sum(len(o.checks.acknowledged) for o in outcomes)} acknowledged, "
        f"{sum(o.checks.unknown for o in outcomes)} unknown, {sum(o.checks.refused for o in outcomes)} refused, "
        f"{sum(o.checks.reads for o in outcomes)} linearizable reads, "
        f"{sum(o.checks.applied for o in outcomes)} applies, {sum(o.checks.installs for o in outcomes)} installs, "
        f"{sum(o.terms for o in outcomes)} terms, {sum(o.messages for o in outcomes)} messages"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
