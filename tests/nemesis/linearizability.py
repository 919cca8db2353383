"""Is there an order of the operations of one key in which each of them makes sense?

The search of Wing and Gong ("Testing and verifying concurrent objects", 1993): take any operation that began before
every other one had ended, let the model say whether its answer fits, go on; on a dead end try another. With Lowe's
memory ("Testing for linearizability", 2017): the set of operations taken and the state reached are visited once.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from tests.nemesis.history import Op

S = TypeVar("S", bound=Hashable)

#: a key that needs more is reported as undecided
MAX_STATES = 500_000


class Model(Protocol[S]):
    """What one key is, one operation after another."""

    @property
    def initial(self) -> S: ...

    def step(self, state: S, op: Op, earliest: float, latest: float) -> Iterable[S]:
        """The states after `op`, none when its answer does not fit.

        It takes effect somewhere within [earliest, latest] (seconds). More than one state is possible when its answer
        was not seen.
        """


@dataclass(frozen=True, slots=True)
class Verdict:
    """`order` is a linearization when there is one, else the longest beginning of one that was found."""

    ok: bool
    states: int
    order: tuple[Op, ...]
    reason: str = ""


def check(ops: Sequence[Op], model: Model[S], max_states: int = MAX_STATES) -> Verdict:
    """Judge the operations of one key; those without an answer may take effect later or never."""
    ops = sorted(ops, key=lambda op: op.invoked_at)
    needed = sum(1 << n for n, op in enumerate(ops) if op.returned_at < math.inf)
    seen: set[tuple[int, S]] = set()
    stack: list[tuple[int, S, tuple[int, ...]]] = [(0, model.initial, ())]
    best: tuple[int, ...] = ()
    best_state = model.initial
    while stack:
        done, state, path = stack.pop()
        if done & needed == needed:
            return Verdict(True, len(seen), tuple(ops[n] for n in path))
        if (done, state) in seen:
            continue
        seen.add((done, state))
        if len(seen) > max_states:
            return Verdict(False, len(seen), tuple(ops[n] for n in best), f"undecided after {max_states} states")
        if len(path) > len(best):
            best, best_state = path, state
        open_ops = [(n, op) for n, op in enumerate(ops) if not done >> n & 1]
        # Whatever comes next comes before the first answer that is still to be explained.
        latest = min(op.returned_at for _, op in open_ops)
        # Sorted by their beginning: the last one taken began last, and what comes next comes after that.
        newest = ops[done.bit_length() - 1].invoked_at if done else -math.inf
        able = [(n, op) for n, op in open_ops if op.invoked_at <= latest]
        for n, op in sorted(able, key=lambda entry: -entry[1].returned_at):
            stack.extend(
                (done | 1 << n, after, (*path, n))
                for after in model.step(state, op, max(newest, op.invoked_at), latest)
                # Without an answer and without an effect, "never" explains it as well.
                if op.returned_at < math.inf or after != state
            )
    taken = set(best)
    left = [op for n, op in enumerate(ops) if n not in taken and op.returned_at < math.inf]
    first = min(left, key=lambda op: op.returned_at)
    return Verdict(
        False,
        len(seen),
        tuple(ops[n] for n in best),
        f"nothing explains [{first}] after {len(best)} ops at {best_state}",
    )
