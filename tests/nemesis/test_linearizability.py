"""The checker finds what is wrong and takes what is right; on tiny histories it agrees with trying everything."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as s

from tests.nemesis.history import Op, Outcome
from tests.nemesis.linearizability import Model, check
from tests.nemesis.models import QueueModel, RegisterModel

LEASE_S = 4.0
QUEUE = QueueModel(LEASE_S)
REGISTER = RegisterModel()


def op(kind: str, args: dict[str, Any], output: dict[str, Any] | None, at: float, until: float, unsure: int = 0) -> Op:
    """An operation; one without an output was never answered."""
    if output is None:
        return Op(0, "c", "k", kind, args, at, unsure=unsure)
    return Op(0, "c", "k", kind, args, at, until, Outcome.OK, output, unsure=unsure)


def put(value: str, version: int | None, at: float, until: float = math.inf, expected: int = -1) -> Op:
    seen = None if version is None else {"version": version}
    return op("write-setting", {"value": value, "expected": expected}, seen, at, until)


def look(version: int, value: str, at: float, until: float) -> Op:
    return op("read-setting", {}, {"version": version, "value": value}, at, until)


def add(work: str, at: float, until: float, *, repeat: bool = False, unsure: int = 0) -> Op:
    return op("add", {"work": work}, {"repeat": repeat}, at, until, unsure)


def claim(work: str | None, job: int, fence: int, at: float, until: float) -> Op:
    return op("claim", {}, {"work": work, "job": job, "fence": fence}, at, until)


def lost_claim(at: float) -> Op:
    return op("claim", {}, None, at, math.inf)


def renew(work: str, job: int, fence: int, at: float, until: float, *, over: bool = False) -> Op:
    return op("renew", {"work": work, "job": job, "fence": fence}, {"over": over}, at, until)


def complete(
    work: str,
    job: int,
    fence: int,
    at: float,
    until: float,
    *,
    repeat: bool = False,
    refused: str = "",
    unsure: int = 0,
) -> Op:
    seen: dict[str, Any] = {"refused": refused} if refused else {"published": True, "repeat": repeat}
    return op("complete", {"work": work, "job": job, "fence": fence}, seen, at, until, unsure)


def read(work: str, status: str | None, grants: int, fence: int, at: float, until: float) -> Op:
    return op("read", {"work": work}, {"status": status, "grants": grants, "fence": fence}, at, until)


GOOD_REGISTERS = {
    "a read that overlaps a write sees either": [put("a", 1, 0, 9), look(0, "", 1, 2), look(1, "a", 3, 4)],
    "a lost write may take effect much later": [put("a", None, 0), look(0, "", 5, 6), look(1, "a", 7, 8)],
    "a lost write may never take effect": [put("a", None, 0), put("b", 1, 1, 2), look(1, "b", 3, 4)],
    "a lost write between two seen ones leaves its gap": [put("a", 1, 0, 1), put("b", None, 2), put("c", 3, 3, 4)],
    "a comparison refused for a version that was not there": [
        put("a", 1, 0, 1),
        op("write-setting", {"value": "b", "expected": 0}, {"refused": "conflict"}, 2, 3),
        look(1, "a", 4, 5),
    ],
}
BAD_REGISTERS = {
    "a stale read": [put("a", 1, 0, 1), look(0, "", 2, 3)],
    "a read that goes back": [put("a", 1, 0, 9), look(1, "a", 1, 2), look(0, "", 3, 4)],
    "a lost acknowledged write": [put("a", 1, 0, 1), put("b", 1, 2, 3)],
    "a request that took effect twice": [put("a", 1, 0, 1), put("b", 3, 2, 3)],
    "a read of what nobody wrote": [put("a", 1, 0, 1), look(1, "x", 2, 3)],
    "two comparisons with one version that both won": [put("a", 1, 0, 9, expected=0), put("b", 1, 1, 8, expected=0)],
}
GOOD_QUEUES = {
    "an item's life": [
        add("x", 0, 1),
        read("x", "pending", 0, 0, 1, 2),
        claim("x", 1, 5, 2, 3),
        renew("x", 1, 5, 3, 4),
        read("x", "running", 1, 5, 4, 4.5),
        complete("x", 1, 5, 5, 6),
        complete("x", 1, 5, 7, 8, repeat=True),
        claim(None, 0, 0, 8, 9),
    ],
    "a lapsed lease gives the item to another": [
        add("x", 0, 1),
        claim("x", 1, 5, 1, 2),
        claim("x", 2, 6, 5.5, 6),
        complete("x", 1, 5, 6, 7, refused="stale_fence"),
        complete("x", 2, 6, 7, 8),
    ],
    "a claim nobody saw holds the item for a lease": [
        add("x", 0, 1),
        lost_claim(1),
        claim(None, 0, 0, 2, 3),
        read("x", "claimed", 1, 7, 3, 4),
        claim("x", 2, 8, 5, 6),
    ],
    "a repeat after a lost answer": [add("x", 0, 1, repeat=True, unsure=1), claim("x", 1, 5, 2, 3)],
    "the older item first": [add("x", 0, 1), add("y", 2, 3), claim("x", 1, 5, 4, 5), claim("y", 1, 6, 4, 5)],
}
BAD_QUEUES = {
    "an acknowledged item is lost": [add("x", 0, 1), read("x", None, 0, 0, 2, 3)],
    "an acknowledged item is not given out": [add("x", 0, 1), claim(None, 0, 0, 2, 3)],
    "two live claims": [add("x", 0, 1), claim("x", 1, 5, 2, 3), claim("x", 2, 6, 3, 4)],
    "a renewed lease lapses as if it were not": [
        add("x", 0, 1),
        claim("x", 1, 5, 1, 2),
        renew("x", 1, 5, 4, 5),
        claim("x", 2, 6, 6, 7),
    ],
    "a fence that comes again": [add("x", 0, 1), claim("x", 1, 5, 1, 2), claim("x", 2, 5, 7, 8)],
    "completed under a fence that is over": [
        add("x", 0, 1),
        claim("x", 1, 5, 1, 2),
        claim("x", 2, 6, 7, 8),
        complete("x", 1, 5, 9, 10),
    ],
    "completed twice": [
        add("x", 0, 1),
        claim("x", 1, 5, 1, 2),
        complete("x", 1, 5, 2, 3),
        complete("x", 1, 5, 4, 5),
    ],
    "completed and given out again": [
        add("x", 0, 1),
        claim("x", 1, 5, 1, 2),
        complete("x", 1, 5, 2, 3),
        claim("x", 2, 6, 9, 10),
    ],
    "queued twice": [add("x", 0, 1), add("x", 2, 3)],
    "the younger item first": [add("x", 0, 1), add("y", 2, 3), claim("y", 1, 5, 4, 5)],
    "an acknowledged completion is lost": [
        add("x", 0, 1),
        claim("x", 1, 5, 1, 2),
        complete("x", 1, 5, 2, 3),
        read("x", "claimed", 1, 5, 4, 5),
    ],
}


def cases(named: dict[str, list[Op]]) -> Any:
    return pytest.mark.parametrize("ops", named.values(), ids=named.keys())


@cases(GOOD_REGISTERS)
def test_a_good_history_of_a_register_is_taken(ops: list[Op]) -> None:
    assert check(ops, REGISTER).ok


@cases(BAD_REGISTERS)
def test_a_bad_history_of_a_register_is_refused(ops: list[Op]) -> None:
    verdict = check(ops, REGISTER)
    assert not verdict.ok
    assert "nothing explains" in verdict.reason


@cases(GOOD_QUEUES)
def test_a_good_history_of_a_queue_is_taken(ops: list[Op]) -> None:
    assert check(ops, QUEUE).ok


@cases(BAD_QUEUES)
def test_a_bad_history_of_a_queue_is_refused(ops: list[Op]) -> None:
    assert not check(ops, QUEUE).ok


def test_a_history_that_takes_too_long_is_undecided_and_not_good() -> None:
    ops = [put(f"v{n}", None, 0) for n in range(12)] + [look(40, "v1", 1, 2)]
    verdict = check(ops, REGISTER, max_states=500)
    assert not verdict.ok
    assert verdict.reason.startswith("undecided")


def brute(ops: list[Op], model: Model[Any]) -> bool:
    """Every order of every choice of the unanswered ones."""
    sure = [o for o in ops if o.returned_at < math.inf]
    unsure = [o for o in ops if o.returned_at == math.inf]
    chosen = itertools.chain.from_iterable(itertools.combinations(unsure, n) for n in range(len(unsure) + 1))
    return any(_fits(order, model) for some in chosen for order in itertools.permutations([*sure, *some]))


def _fits(order: tuple[Op, ...], model: Model[Any]) -> bool:
    states = {model.initial}
    for n, taken in enumerate(order):
        earliest = max(o.invoked_at for o in order[: n + 1])
        latest = min(o.returned_at for o in order[n:])
        if earliest > latest:
            return False
        states = {after for state in states for after in model.step(state, taken, earliest, latest)}
    return bool(states)


times = s.tuples(s.integers(0, 8), s.integers(1, 6)).map(lambda t: (float(t[0]), float(t[0] + t[1])))


@s.composite
def register_ops(draw: s.DrawFn) -> Op:
    at, until = draw(times)
    if draw(s.booleans()):
        version = draw(s.integers(0, 3))
        return look(version, draw(s.sampled_from("ab")) if version else "", at, until)
    version = draw(s.none() | s.integers(1, 3))
    return put(draw(s.sampled_from("ab")), version, at, until, expected=draw(s.sampled_from([-1, -1, 0, 1])))


@s.composite
def queue_ops(draw: s.DrawFn) -> Op:
    at, until = draw(times)
    work, job, fence = draw(s.sampled_from("xy")), draw(s.integers(1, 2)), draw(s.integers(1, 3))
    made = draw(
        s.sampled_from(
            [
                add(work, at, until),
                add(work, at, until, repeat=True, unsure=1),
                claim(work, job, fence, at, until),
                claim(None, 0, 0, at, until),
                lost_claim(at),
                renew(work, job, fence, at, until),
                complete(work, job, fence, at, until),
                complete(work, job, fence, at, until, repeat=True, unsure=1),
                read(work, "pending", job - 1, 0, at, until),
                read(work, "claimed", job, fence, at, until),
            ]
        )
    )
    if made.kind != "read" and draw(s.integers(0, 4)) == 0:
        return op(made.kind, made.args, None, at, math.inf)
    return made


@settings(max_examples=100, deadline=None)
@given(s.lists(register_ops(), max_size=5))
def test_a_register_is_judged_as_by_trying_everything(ops: list[Op]) -> None:
    assert check(ops, REGISTER).ok == brute(ops, REGISTER)


@settings(max_examples=100, deadline=None)
@given(s.lists(queue_ops(), max_size=4))
def test_a_queue_is_judged_as_by_trying_everything(ops: list[Op]) -> None:
    ops = [add("x", 0, 1), *ops]
    assert check(ops, QUEUE).ok == brute(ops, QUEUE)
