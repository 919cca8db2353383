"""What a queue of work items and a versioned setting do, as the checker understands them.

Nothing here is shared with the product's own law: two readings of the same promises.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from tests.nemesis.history import Op, Outcome

#: a lease may seem this much shorter than it is: the log keeps whole milliseconds
ROUNDING_S = 0.01
PENDING, CLAIMED, RUNNING, COMPLETED = "pending", "claimed", "running", "completed"
LIVE = (CLAIMED, RUNNING)
#: the fence of a claim whose answer nobody saw
UNSEEN = -1


class Item(NamedTuple):
    name: str
    phase: str = PENDING
    #: how often it was given to somebody; numbers its jobs
    grants: int = 0
    #: of the last grant; no fence comes twice, and later ones are larger
    fence: int = 0
    #: no lease of it was renewed before that, seconds
    renewed_at: float = -math.inf


Queue = tuple[Item, ...]


class QueueModel:
    """Items of one class in the order in which they were added; the oldest pending one is claimed first.

    A claimed item returns to the queue when its lease is over, and not before.
    """

    initial: Queue = ()

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s - ROUNDING_S

    def step(self, state: Queue, op: Op, earliest: float, latest: float) -> Iterator[Queue]:
        seen = op.output if op.outcome is Outcome.OK else None
        match op.kind:
            case "add":
                return self._add(state, op, seen)
            case "claim":
                return self._claim(state, seen, earliest, latest)
            case "renew":
                return self._renew(state, op, seen, earliest, latest)
            case "complete":
                return self._complete(state, op, seen, latest)
            case "read":
                return self._read(state, op, seen or {}, latest)
        raise ValueError(f"no operation of a queue is called {op.kind}")

    def _add(self, state: Queue, op: Op, seen: dict[str, object] | None) -> Iterator[Queue]:
        name = op.args["work"]
        known = any(item.name == name for item in state)
        # An earlier attempt of the same operation may be what it repeats.
        if seen is None or op.unsure or bool(seen["repeat"]) == known:
            yield state if known else (*state, Item(name))

    def _claim(self, state: Queue, seen: dict[str, object] | None, earliest: float, latest: float) -> Iterator[Queue]:
        pending = [item for item in state if item.phase == PENDING]
        if seen is not None and seen["work"] is None:
            if not pending:
                yield state
            return
        for item in state:
            if item.phase == PENDING or self._may_lapse(item, latest):
                after = item._replace(phase=CLAIMED, grants=item.grants + 1, fence=UNSEEN, renewed_at=earliest)
                if seen is None:
                    yield _put(state, after)
                elif seen["work"] == item.name and seen["job"] == after.grants and _newer(seen["fence"], item):
                    yield _put(state, after._replace(fence=seen["fence"]))
            if item.phase == PENDING:
                return

    def _renew(
        self, state: Queue, op: Op, seen: dict[str, object] | None, earliest: float, latest: float
    ) -> Iterator[Queue]:
        item = _get(state, op)
        if item is None:
            return
        live = _holds(item, op)
        if live and (seen is None or not seen["over"]):
            yield _put(state, item._replace(phase=RUNNING, renewed_at=earliest))
        if seen is None or not seen["over"]:
            return
        if not live:
            yield state
        elif self._may_lapse(item, latest):
            yield _put(state, item._replace(phase=PENDING))

    def _complete(self, state: Queue, op: Op, seen: dict[str, object] | None, latest: float) -> Iterator[Queue]:
        item = _get(state, op)
        if item is None:
            return
        live = _holds(item, op)
        done = item.phase == COMPLETED and _same(item, op)
        if seen is None:
            yield _put(state, item._replace(phase=COMPLETED)) if live else state
        elif "refused" in seen:
            if seen["refused"] != "stale_fence" or done:
                return
            if not live:
                yield state
            elif self._may_lapse(item, latest):
                yield _put(state, item._replace(phase=PENDING))
        elif seen["published"]:
            if live and (op.unsure or not seen["repeat"]):
                yield _put(state, item._replace(phase=COMPLETED))
            elif done and seen["repeat"]:
                yield state

    def _read(self, state: Queue, op: Op, seen: dict[str, object], latest: float) -> Iterator[Queue]:
        item = _get(state, op)
        if seen.get("status") is None or item is None:
            if item is None and seen.get("status") is None:
                yield state
            return
        if seen["grants"] != item.grants:
            return
        if seen["status"] == item.phase and (item.phase == PENDING or item.fence in (seen["fence"], UNSEEN)):
            # A claim whose answer was lost shows its fence here.
            yield _put(state, item if item.phase == PENDING else item._replace(fence=seen["fence"]))
        elif seen["status"] == PENDING and self._may_lapse(item, latest):
            yield _put(state, item._replace(phase=PENDING))

    def _may_lapse(self, item: Item, latest: float) -> bool:
        return item.phase in LIVE and latest - item.renewed_at >= self._lease_s


def _get(state: Queue, op: Op) -> Item | None:
    return next((item for item in state if item.name == op.args["work"]), None)


def _put(state: Queue, item: Item) -> Queue:
    return tuple(item if old.name == item.name else old for old in state)


def _same(item: Item, op: Op) -> bool:
    return item.grants == op.args["job"] and item.fence in (op.args["fence"], UNSEEN)


def _holds(item: Item, op: Op) -> bool:
    return item.phase in LIVE and _same(item, op)


def _newer(fence: object, item: Item) -> bool:
    return isinstance(fence, int) and fence > item.fence


class Register(NamedTuple):
    version: int = 0
    value: str = ""


class RegisterModel:
    """A value whose version grows by one with each change, and changes that ask for a version."""

    initial = Register()

    def step(self, state: Register, op: Op, earliest: float, latest: float) -> Iterator[Register]:
        seen = op.output if op.outcome is Outcome.OK else None
        if op.kind == "read-setting":
            if seen is None or (seen["version"], seen["value"]) == state:
                yield state
            return
        after = Register(state.version + 1, op.args["value"])
        fits = op.args["expected"] in (-1, state.version)
        if seen is None:
            yield after if fits else state
        elif "refused" in seen:
            if seen["refused"] == "conflict" and not fits:
                yield state
        elif fits and seen["version"] == after.version:
            yield after
