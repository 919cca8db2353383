"""Pace: a job hangs when it is silent for three times the median of its kind, and at least the floor."""

from __future__ import annotations

from itertools import count

import pytest

from statemachine import pace
from statemachine.commands import CompleteJob, RecordHeartbeats
from statemachine.rows import Pace
from statemachine.settings import Timing
from statemachine.values import Beat, JobProgress
from tests.support.law import CONFIG, Cluster, bound, claimed, completed, given, item, node, setting, started

KIND = f"selfplay {CONFIG}"
numbers = count()


@pytest.mark.parametrize(
    ("silences", "floor", "limit"),
    [
        (None, 10, 0),
        ((100, 100), 10, 0),
        ((100, 100, 100), 10, 300),
        ((100, 100, 100), 900, 900),
        ((1, 100, 10_000), 10, 300),
        ((1, 2, 3, 4), 1, 9),
    ],
)
def test_the_limit_is_three_times_the_median_and_at_least_the_floor(silences, floor, limit):
    row = Pace("selfplay", CONFIG, silences) if silences is not None else None
    assert pace.limit_ms(row, floor) == limit


def told(cluster: Cluster, work: str, games: int) -> RecordHeartbeats:
    job = cluster.job(work)
    return RecordHeartbeats((Beat(job.peer, 1, progress=(JobProgress(job.job, job.fence, {"games": games}),)),))


def fleet(floor_ms: int = 60_000) -> Cluster:
    return given(setting("timing", Timing(hung_floor_ms=floor_ms)), node("a", slots=8))


def run_well(cluster: Cluster, silence_ms: int) -> None:
    name = f"well-{next(numbers)}"
    cluster.do(item(name), bound(name, "a"), started(name))
    cluster.after(silence_ms, beating=("a",))
    cluster.do(told(cluster, name, 1))
    cluster.after(1_000, beating=("a",)).do(completed(name))


def test_the_longest_silence_of_each_success_is_remembered_for_its_kind():
    cluster = fleet()
    for seconds in range(20):
        run_well(cluster, 10_000 + seconds * 1_000)
    assert cluster.state.paces[KIND].silences_ms == tuple(range(15_000, 30_000, 1_000))


def test_a_run_without_any_progress_is_one_silence_and_one_that_nobody_saw_run_is_none():
    cluster = fleet().when(item("w1"), bound("w1", "a"), started("w1")).after(30_000, beating=("a",))
    cluster.do(completed("w1"), item("w2"), bound("w2", "a"), completed("w2"))
    assert cluster.state.paces[KIND].silences_ms == (30_000,)


def test_a_part_and_progress_before_the_start_say_nothing_about_the_pace_of_a_kind():
    cluster = fleet().when(item("w1"), bound("w1", "a"))
    cluster.do(told(cluster, "w1", 1), started("w1"))
    cluster.after(30_000, beating=("a",))
    cluster.do(CompleteJob("w1.1", 1, counts={"games": 1}, stopped=True))
    assert cluster.state.paces == {}


def test_a_job_that_is_silent_for_too_long_hangs_and_the_evidence_says_how_long():
    cluster = fleet()
    for _ in range(3):
        run_well(cluster, 40_000)
    cluster.do(item("w1"), bound("w1", "a"))
    assert pace.hangs(cluster.state, cluster.job("w1")) == ""
    cluster.do(started("w1"))
    cluster.do(told(cluster, "w1", 7))
    cluster.after(119_000, beating=("a",))
    assert pace.hangs(cluster.state, cluster.job("w1")) == ""
    cluster.after(1_000, beating=("a",))
    said = pace.hangs(cluster.state, cluster.job("w1"))
    assert "no progress for 120 s" in said
    assert "40 s in the median of the last 3" in said
    assert "games=7" in said
    cluster.do(told(cluster, "w1", 8))
    assert pace.hangs(cluster.state, cluster.job("w1")) == ""


def test_nothing_hangs_while_its_node_is_not_heard_nor_right_after_it_came_back():
    cluster = fleet()
    for _ in range(3):
        run_well(cluster, 10_000)
    cluster.do(item("w1"), bound("w1", "a"), started("w1"))
    cluster.after(100_000)
    assert pace.hangs(cluster.state, cluster.job("w1")) == ""
    cluster.after(1_000, beating=("a",))
    assert cluster.state.peers["a"].flaps == 1
    assert pace.hangs(cluster.state, cluster.job("w1")) == ""
    cluster.after(61_000, beating=("a",))
    assert pace.hangs(cluster.state, cluster.job("w1"))


def test_a_claimed_job_is_judged_by_its_own_renewals():
    cluster = fleet()
    for _ in range(3):
        run_well(cluster, 10_000)
    cluster.do(item("w1"), claimed("c1", "stranger"), started("w1"))
    cluster.after(70_000)
    assert pace.hangs(cluster.state, cluster.job("w1")) == ""
