"""The chaos test's own judgement: good stories pass, each bad one is named."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chaos.checks import lives, miscounted, overlaps

GOOD = ["w 1 10 1.0 start", "w 1 10 2.0 runs", "w 5 11 2.5 start", "w 5 11 3.0 end"]


def tables(**changes: Any) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {
        "work": {"w": {"status": "completed", "reason": "", "counts": {"games": 1}}},
        "jobs": {
            "w.1": {"job": "w.1", "work": "w", "fence": 1, "actual": "failed"},
            "w.2": {"job": "w.2", "work": "w", "fence": 5, "actual": "succeeded"},
        },
        "totals": {"c": {"games": 1}},
        "artifacts": {"d": {"kind": "games"}},
    }
    for name, rows in changes.items():
        found[name].update(rows)
    return found


def test_a_good_story_has_no_problems() -> None:
    assert overlaps(lives(GOOD)) == []
    assert miscounted(["w"], tables(), lives(GOOD)) == []


def test_a_process_that_lives_on_while_its_successor_runs_is_named() -> None:
    (problem,) = overlaps(lives([*GOOD, "w 1 12 2.6 child"]))
    assert "fence 5" in problem


def test_a_process_that_lives_on_while_it_is_started_again_under_its_fence_is_named() -> None:
    again = ["w 1.1 13 2.2 start", "w 1.1 13 2.3 end"]
    assert overlaps(lives([*GOOD, *again])) == []
    (problem,) = overlaps(lives([*GOOD, *again, "w 1 10 2.25 runs"]))
    assert "fence 1.1 ran at 2.200 s, and 1.0 until 2.250 s" in problem


def test_a_mark_that_tore_is_no_mark() -> None:
    with pytest.raises(ValueError, match="no mark"):
        lives(["w 1 10"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"work": {"w": {"status": "failed", "reason": "poor", "counts": {}}}}, "w is failed: poor"),
        ({"jobs": {"w.1": {"job": "w.1", "work": "w", "fence": 1, "actual": "succeeded"}}}, "2 jobs that succeeded"),
        ({"jobs": {"w.3": {"job": "w.3", "work": "w", "fence": 9, "actual": "running"}}}, "w.3 is still running"),
        ({"jobs": {"w.2": {"job": "w.2", "work": "w", "fence": 6, "actual": "succeeded"}}}, "no program of that fence"),
        ({"totals": {"c": {"games": 2}}}, "the totals 2"),
        ({"artifacts": {"e": {"kind": "games"}}}, "2 files"),
    ],
)
def test_what_is_counted_wrongly_is_named(changes: dict[str, Any], said: str) -> None:
    assert any(said in problem for problem in miscounted(["w"], tables(**changes), lives(GOOD)))
