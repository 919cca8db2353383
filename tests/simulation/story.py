"""The shortest way to a failure: the same seed with fewer faults, as long as it still fails."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from tests.simulation.run import Options, Outcome, simulate
from tests.simulation.world import BEGAN_AT

#: bounds of the search
TRIES = 60
SECONDS = 120.0


def shrink(broken: Outcome, options: Options) -> tuple[Outcome, Options]:
    """Drop faults by halves, then one by one, while the run still breaks; returns the last run that did.

    Any failure counts, for a run with fewer faults may show the same mistake elsewhere.
    """
    tries, until = TRIES, time.monotonic() + SECONDS
    failed_at_s = broken.failed_at - BEGAN_AT
    # What struck after the failure had no part in it.
    kept = [s.number for s in options.plan(broken.seed) if s.at_s <= failed_at_s]
    best, found = _again(broken.seed, options, kept)
    if not best.broken:
        return broken, options
    step = max(len(kept) // 2, 1)
    while tries > 0 and time.monotonic() < until:
        shorter = False
        at = 0
        while at < len(kept) and tries > 0 and time.monotonic() < until:
            tries -= 1
            fewer = kept[:at] + kept[at + step :]
            outcome, narrowed = _again(broken.seed, options, fewer)
            if outcome.broken:
                best, found, kept, shorter = outcome, narrowed, fewer, True
            else:
                at += step
        if step == 1 and not shorter:
            break
        step = max(step // 2, 1)
    return best, found


def _again(seed: int, options: Options, numbers: Sequence[int]) -> tuple[Outcome, Options]:
    narrowed = replace(options, only=tuple(numbers))
    return simulate(seed, narrowed), narrowed
