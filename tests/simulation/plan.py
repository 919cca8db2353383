"""Which faults strike when: drawn before the run, so that a failing run can be repeated with fewer of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

#: kind of fault -> how often among the others
WEIGHTS = {
    "crash": 4,
    "crash_leader": 4,
    "crash_all": 1,
    "crash_writing": 2,
    "wipe": 2,
    "crash_follower": 2,
    "catch_unsynced": 3,
    "stale_reply": 3,
    "diverge": 2,
    "stale_snapshot": 2,
    "return_empty": 2,
    "crash_installing": 2,
    "crash_compacting": 2,
    "two_changes": 1,
    "return_unapplied": 1,
    "succession": 3,
    "return_late": 3,
    "partition": 4,
    "bridge": 3,
    "isolate_leader": 2,
    "one_way": 4,
    "cut_follower": 2,
    "break": 2,
    "flap": 1,
    "slow_network": 2,
    "pause": 4,
    "pause_follower": 2,
    "slow_disk": 3,
    "full_disk": 2,
    "transfer": 3,
    "snapshot": 2,
    "operator": 2,
    "voters": 4,
}
FIRST_S = 1.2


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault at a virtual second; `seed` decides whom it hits and how long it lasts."""

    number: int
    at_s: float
    kind: str
    seed: int


def draw(seed: int, until_s: float, kinds: Iterable[str] = ()) -> list[Strike]:
    """The faults of one run; `kinds` narrows them."""
    rng = Random(f"faults {seed}")
    known = [k for k in WEIGHTS if k in (set(kinds) or WEIGHTS)]
    weights = [WEIGHTS[k] for k in known]
    strikes: list[Strike] = []
    at_s = FIRST_S
    while at_s < until_s:
        strikes.append(Strike(len(strikes), at_s, rng.choices(known, weights)[0], rng.getrandbits(32)))
        at_s += rng.uniform(0.05, 1.2)
    return strikes
