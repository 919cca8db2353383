"""Run seeds and say which broke."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from tests.simulation.run import Options, Outcome, simulate
from tests.simulation.story import shrink
from tests.simulation.switches import BY_MESSAGES, SWITCHES

STORY_LINES = 60
#: seeds after which a long run says how far it is
TELL_EVERY = 100


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=40, help="how many")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=20.0, help="virtual seconds of one run")
    parser.add_argument("--seed", type=int, help="run this one alone")
    parser.add_argument("--trace", action="store_true", help="tell the story of --seed while it happens")
    parser.add_argument("--only", type=numbers, help="of the seed's faults those with these numbers: 3,7,8 or none")
    parser.add_argument("--faults", type=names, default=(), help="kinds of faults: crash,partition")
    parser.add_argument("--voters", type=int, default=0, help="3 or 5; left out, the seed chooses")
    parser.add_argument("--held-up", type=float, default=0.0, help="turns pause for up to so long, in seconds")
    parser.add_argument("--disable", type=names, default=(), help=f"switch corrections off: {','.join(SWITCHES)}")
    parser.add_argument("--whole", action="store_true", help="do not look for a shorter story")
    parser.add_argument(
        "--proof", action="store_true", help="switch off one correction after the other, or those of --disable"
    )
    args = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Sets of nodes iterate in hash order, and the order is part of the story.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])
    if args.proof:
        return prove(args.seeds, args.first_seed, args.disable)
    options = Options(args.seconds, args.faults, args.only, args.disable, args.voters, args.held_up)
    seeds = range(args.first_seed, args.first_seed + args.seeds) if args.seed is None else [args.seed]
    run = partial(simulate, options=options, trace=args.trace)
    started = time.perf_counter()
    outcomes: list[Outcome] = []
    with ExitStack() as stack:
        if args.jobs == 1 or len(seeds) == 1:
            ended: Iterable[Outcome] = map(run, seeds)
        else:
            ended = stack.enter_context(ProcessPoolExecutor(args.jobs)).map(run, seeds)
        for outcome in ended:
            outcomes.append(tell(outcome, options, args.whole or args.trace))
            if len(outcomes) % TELL_EVERY == 0:
                print(
                    f"{len(outcomes)} of {len(seeds)} seeds, {sum(bool(o.broken) for o in outcomes)} broken", flush=True
                )
    return summary(outcomes, time.perf_counter() - started)


def names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def numbers(text: str) -> tuple[int, ...]:
    return () if text == "none" else tuple(int(number) for number in text.split(","))


def tell(outcome: Outcome, options: Options, whole: bool) -> Outcome:
    """Print the shortest story of a run that broke, and how to see it again."""
    if outcome.broken:
        print(f"seed {outcome.seed} broke: {outcome.broken}", flush=True)
        shown = options
        story = outcome
        if not whole:
            story, shown = shrink(outcome, options)
            print(f"    with {len(shown.plan(outcome.seed))} of {len(options.plan(outcome.seed))} faults:")
        for line in story.story[-STORY_LINES:]:
            print(f"    {line}")
        print(f"    again: python -m tests.simulation --seed {outcome.seed}{shown.as_arguments()} --trace", flush=True)
    return outcome


def prove(seeds: int, first_seed: int, only: Sequence[str]) -> int:
    """For each correction the first seed that breaks without it; 1 when one was never missed.

    The same seed with the correction has to end well, or it would show nothing. What no run can show is shown by
    tests with the messages that break the library.
    """
    missed = 0
    print(f"{'off':11} {'seed':>4} {'found at':>10}  {'without it':<46} what noticed", flush=True)
    for name, switch in SWITCHES.items():
        if only and name not in only:
            continue
        options = Options(kinds=switch.kinds, size=switch.size, disabled=(name,), held_up_s=switch.held_up_s)
        runs = (simulate(seed, options) for seed in range(first_seed, first_seed + seeds))
        caught = next((outcome for outcome in runs if outcome.broken), None)
        if caught is None:
            missed += 1
            print(f"{name:11} {'-':>4} {'-':>10}  {switch.says:<46} nothing in {seeds} seeds", flush=True)
            continue
        control = simulate(caught.seed, replace(options, disabled=())).broken
        missed += control is not None
        noticed = f"{caught.broken}" + (f"; BUT WITH THE CORRECTION: {control}" if control else "")
        print(f"{name:11} {caught.seed:>4} {caught.virtual_s:>8.1f} s  {switch.says:<46} {noticed}", flush=True)
    for name, (says, tests) in BY_MESSAGES.items():
        if only and name not in only:
            continue
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        missed += ran.returncode != 0
        result = (ran.stdout.strip().splitlines() or [ran.stderr])[-1].partition(" in ")[0]
        print(f"{name:11} {'-':>4} {'messages':>10}  {says:<46} {result}: {tests}", flush=True)
    return 1 if missed else 0


def summary(outcomes: list[Outcome], wall_s: float) -> int:
    """One line for all runs; the exit code."""
    broken = [o for o in outcomes if o.broken]
    virtual = sum(o.virtual_s for o in outcomes)
    cpu = sum(o.cpu_s for o in outcomes)
    counted = ", ".join(f"{sum(o.counts[name] for o in outcomes)} {name}" for name in outcomes[0].counts)
    print(
        f"{len(outcomes)} seeds, {len(broken)} broken; {virtual:.0f} virtual s in {cpu:.1f} CPU s "
        f"({virtual / max(cpu, 1e-9):.1f} x), {wall_s:.1f} s on the wall; {counted}"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
