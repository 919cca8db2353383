"""Gaps, recoveries, the rules of the wires and the other checks, on histories made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.nemesis import checks
from tests.nemesis.faults import Mark
from tests.nemesis.history import History, Op, Outcome
from tests.nemesis.links import CUT, Rule, between, decode, encode, merged, towards
from tests.nemesis.report import Result, longest_gap, recoveries, summed_up, table
from tests.nemesis.scenarios import SCENARIOS


def wrote(history: History, at: float, until: float, kind: str = "add", **output: Any) -> Op:
    op = history.invoke("c", f"queue/{at}", kind, {"work": f"w{at}", "job": 1, "fence": 1}, at)
    op.returned_at, op.outcome, op.output = until, Outcome.OK, output
    return op


def test_a_gap_is_the_longest_time_without_an_acknowledged_write() -> None:
    history = History()
    for at in (1.0, 2.0, 5.0):
        wrote(history, at, at + 0.5)
    wrote(history, 3.0, 3.5, refused="conflict")
    wrote(history, 3.0, 3.6, kind="read")
    history.invoke("c", "k", "add", {}, 3.0)
    assert longest_gap(history, 1.0, 6.0) == 3.0
    assert longest_gap(history, 1.0, 30.0) == 24.5


def test_a_fault_is_over_with_the_first_write_that_began_after_it() -> None:
    history = History()
    wrote(history, 1.0, 9.0)
    wrote(history, 5.0, 6.0)
    marks = [Mark("kill", "v1", 4.0), Mark("kill", "v2", 8.0)]
    assert recoveries(history, marks, ended_at=20.0) == {"kill": [2.0, 12.0]}


def test_the_table_names_what_was_skipped_and_what_broke() -> None:
    history = History()
    wrote(history, 1.0, 2.0)
    broken = summed_up("kill", 7, history, [Mark("kill-one", "v1", 0.5)], 0.0, 3.0)
    broken.violations.append("an item is gone")
    shown = table([broken, Result("clock", 7, skipped="no compiler")])
    assert "1 violations" in shown
    assert "skipped: no compiler" in shown
    assert "kill-one" in shown.splitlines()[-1]
    assert (broken.operations, broken.acknowledged, broken.ambiguous, broken.gap_s) == (1, 1, 0, 2.0)


def test_a_history_is_written_as_events_in_their_order(tmp_path: Path) -> None:
    history = History()
    late = wrote(history, 2.0, 3.0, repeat=False)
    history.invoke("d", "k", "claim", {}, 1.0)
    history.write(tmp_path / "h")
    events = [json.loads(line) for line in (tmp_path / "h").read_text().splitlines()]
    assert [(e["event"], e["op"]) for e in events] == [("invoke", 1), ("invoke", late.number), ("ok", late.number)]


def test_what_certainly_did_nothing_is_not_for_the_checker() -> None:
    history = History()
    wrote(history, 1.0, 2.0).outcome = Outcome.FAIL
    assert history.by_key() == {}


def test_faults_at_one_time_add_up_and_each_direction_has_its_own() -> None:
    slow = between(["a"], ["b"], Rule(loss=0.5, delay_ms=10.0))
    both = merged([slow, towards(["a"], ["b"])])
    assert both["a", "b"] == Rule(loss=1.0, delay_ms=10.0)
    assert both["b", "a"] == Rule(loss=0.5, delay_ms=10.0)
    assert decode(encode(both)) == both
    assert merged([]) == {}
    assert ("a", "a") not in between(["a", "b"], ["a", "b"], CUT)


def row(status: str, job: str = "", config: str = "k") -> dict[str, Any]:
    return {"status": status, "job": job, "spec": {"config": config}}


def state(**tables: Any) -> checks.Tables:
    return {"work": {}, "jobs": {}, "totals": {}, "settings": {}} | tables


def test_an_acknowledged_item_that_is_gone_is_found() -> None:
    history = History()
    op = wrote(history, 1.0, 2.0, repeat=False)
    assert list(checks.nothing_lost(history, state(work={op.args["work"]: row("pending")}))) == []
    assert len(list(checks.nothing_lost(history, state()))) == 1


def test_an_acknowledged_completion_that_is_gone_is_found() -> None:
    history = History()
    op = wrote(history, 1.0, 2.0, "complete", published=True, repeat=False)
    work = op.args["work"]
    assert list(checks.nothing_lost(history, state(work={work: row("completed", f"{work}.1")}))) == []
    assert len(list(checks.nothing_lost(history, state(work={work: row("completed", f"{work}.2")})))) == 1
    assert len(list(checks.nothing_lost(history, state(work={work: row("pending")})))) == 1


def test_games_that_count_twice_are_found() -> None:
    work = {"x": row("completed")}
    once = {"k": {"games": 7, "selfplay_jobs": 1}}
    twice = {"k": {"games": 14, "selfplay_jobs": 2}}
    assert list(checks.nothing_doubled(History(), state(work=work, totals=once))) == []
    assert len(list(checks.nothing_doubled(History(), state(work=work, totals=twice)))) == 1


@pytest.mark.parametrize(("first", "second", "good"), [(1, 2, True), (2, 2, False), (2, 1, False)])
def test_fences_that_do_not_grow_are_found(first: int, second: int, good: bool) -> None:
    history = History()
    wrote(history, 1.0, 2.0, "claim", work="x", job=1, fence=first)
    wrote(history, 3.0, 4.0, "claim", work="y", job=1, fence=second)
    assert (list(checks.fences_grow(history, state())) == []) is good


def test_claims_that_overlap_may_have_their_fences_in_any_order() -> None:
    history = History()
    wrote(history, 1.0, 4.0, "claim", work="x", job=1, fence=2)
    wrote(history, 3.0, 3.5, "claim", work="y", job=1, fence=1)
    assert list(checks.fences_grow(history, state())) == []


def test_a_run_without_an_answer_is_no_good_run() -> None:
    history = History()
    history.invoke("c", "queue/k", "add", {"work": "x"}, 1.0)
    assert "no operation was answered" in checks.all_of(history, state(), 4.0)


def test_scenarios_are_known_by_their_names() -> None:
    assert all(name == scenario.name for name, scenario in SCENARIOS.items())
    assert {s.voters for s in SCENARIOS.values()} == {3, 5}
