"""Work: the log is the queue. Adding is idempotent, ends are final, and every end has a reason."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from statemachine.commands import AddWork, CancelWork, FailJob, RetryWork
from statemachine.errors import Code
from statemachine.rows import Desired, WorkStatus
from statemachine.settings import Limits, Retention
from statemachine.values import Needs
from tests.support.law import (
    CONFIG,
    Cluster,
    bound,
    claimable,
    claimed,
    completed,
    failed,
    given,
    item,
    node,
    setting,
    started,
    template,
)


def test_a_queued_item_is_pending_and_ready():
    cluster = given(claimable("w1", priority=70, ttl_ms=5_000))
    work = cluster.state.work["w1"]
    assert (work.work, work.status, work.seq, work.attempts) == ("w1", "pending", 1, 0)
    assert (work.created_at_ms, work.ready_at_ms, work.expires_at_ms) == (1_000, 1_000, 6_000)
    assert cluster.last.value == {"work": "w1", "status": "pending"}
    assert cluster.events() == ["WorkQueued"]


def test_the_same_item_again_is_answered_and_not_queued_twice():
    cluster = given(replace(item("w1"), at_ms=5), claimed("c1"))
    assert cluster.do(replace(item("w1"), at_ms=9)) == {"work": "w1", "status": "claimed", "repeat": True}
    assert len(cluster.state.work) == 1


@pytest.mark.parametrize("other", [{"priority": 51}, {"config": "hex8_3p"}, {"params": {"seed": "1"}}, {"ttl_ms": 1}])
def test_an_id_with_other_content_is_refused(other):
    same = {"work": "w1", "work_type": "selfplay", "config": "square8_2p"}
    given(item("w1")).refuses(AddWork(**{**same, **other}), Code.CONFLICT, "'w1'", "another id")


def test_each_type_and_config_has_a_queue_bound_of_its_own_so_none_starves_another():
    cluster = given(setting("limits", Limits(pending_per_class=2)), item("w1"), item("w2"))
    cluster.refuses(item("w3"), Code.LIMIT, "2 items", "selfplay square8_2p")
    cluster.do(item("t1", "training"), item("h1", config="hex8_3p"), item("w1"))
    cluster.do(claimed("c1"), item("w3"))


def test_two_open_items_never_hold_one_unique_name():
    cluster = given(item("t1", "training", unique="train-a"))
    cluster.refuses(item("t2", "training", unique="train-a"), Code.CONFLICT, "'t1'", "'train-a'")
    cluster.do(claimed("c1"))
    cluster.refuses(item("t2", "training", unique="train-a"), Code.CONFLICT, "'t1'")
    cluster.do(CancelWork("t1"), item("t2", "training", unique="train-a"))
    assert cluster.state.index.unique == {"train-a": "t2"}


def test_an_item_that_could_never_run_is_refused_at_the_door():
    cluster = given(template())
    cluster.refuses(item("w1", template="walk"), Code.INVALID, "template/walk")
    cluster.refuses(item("w1", depends_on=("w0", "w1")), Code.INVALID, "'w1'", "itself")
    cluster.do(item("w1", template="run"))


# --- ending -----------------------------------------------------------------------------------------


def test_cancelling_ends_an_item_once():
    cluster = given(item("w1"))
    assert cluster.do(CancelWork("w1", "duplicate")) == "cancelled"
    assert cluster.do(CancelWork("w1", "again")) == "cancelled"
    assert (cluster.state.work["w1"].reason, cluster.state.work["w1"].finished_at_ms) == ("duplicate", 1_000)
    assert cluster.events("WorkCancelled") == ["w1"]


def test_cancelling_a_running_item_tells_its_job_to_stop():
    cluster = given(node("a"), item("w1"), bound("w1", "a"), started("w1"), CancelWork("w1"))
    assert (cluster.job("w1").desired, cluster.job("w1").reason) == (Desired.STOP, "cancelled")
    assert cluster.state.index.live_jobs_of("a") == ["w1.1"]


def test_a_finished_item_is_not_cancelled():
    cluster = given(item("w1"), claimed("c1"), completed("w1"))
    cluster.refuses(CancelWork("w1"), Code.ILLEGAL_TRANSITION, "'w1'", "completed")
    cluster.refuses(CancelWork("w9"), Code.NOT_FOUND, "'w9'")


def test_an_item_that_waits_longer_than_its_time_to_live_expires_with_the_reason():
    cluster = given(item("w1", ttl_ms=5_000)).after(4_999)
    assert cluster.status("w1") == "pending"
    cluster.after(1)
    assert cluster.status("w1") == "expired"
    assert "its time to live was 5000 ms" in cluster.state.work["w1"].reason
    assert cluster.events("WorkExpired") == ["w1"]


def test_an_item_does_not_expire_while_it_runs_but_when_it_comes_back_too_late():
    cluster = given(item("w1", ttl_ms=5_000), claimed("c1")).after(9_000)
    assert cluster.status("w1") == "claimed"
    cluster.do(failed("w1", "preempted"))
    cluster.after(1)
    assert cluster.status("w1") == "expired"


# --- retrying ---------------------------------------------------------------------------------------


def dead_letter():
    return given(node("a"), item("w1", max_attempts=1, ttl_ms=60_000), bound("w1", "a"), failed("w1", error="boom"))


def test_an_operator_gives_a_dead_letter_its_attempts_back():
    cluster = dead_letter()
    assert cluster.status("w1") == "failed"
    cluster.after(1_000)
    assert cluster.do(RetryWork("w1", "fixed the engine")) == "pending"
    work = cluster.state.work["w1"]
    assert (work.attempts, work.failed_on, work.error_class, work.job) == (0, (), "", "")
    assert (work.ready_at_ms, work.finished_at_ms, work.expires_at_ms) == (2_000, 0, 62_000)
    assert cluster.do(RetryWork("w1")) == "pending"
    assert cluster.events("WorkRetried") == ["w1"]


def test_a_retried_item_gets_a_job_and_a_fence_that_nobody_held_before():
    cluster = dead_letter().when(RetryWork("w1"), bound("w1", "a"))
    assert (cluster.job("w1").job, cluster.job("w1").fence) == ("w1.2", 2)
    assert cluster.do(FailJob("w1.1", 1, "user", "boom")) == "claimed"
    assert cluster.status("w1") == "claimed"


def test_an_item_is_not_retried_while_it_runs_or_after_it_was_counted():
    cluster = given(item("w1"), claimed("c1"))
    cluster.refuses(RetryWork("w1"), Code.ILLEGAL_TRANSITION, "claimed")
    cluster.do(completed("w1"))
    cluster.refuses(RetryWork("w1"), Code.ILLEGAL_TRANSITION, "completed")
    cluster.refuses(RetryWork("w9"), Code.NOT_FOUND, "'w9'")


def test_a_cancelled_item_is_not_run_a_second_time_while_its_process_is_still_stopping():
    cluster = given(node("a"), item("w1"), bound("w1", "a"), started("w1"), CancelWork("w1"))
    cluster.refuses(RetryWork("w1"), Code.CONFLICT, "'w1.1'", "still stopping")
    cluster.do(failed("w1", "stopped"), RetryWork("w1"), bound("w1", "a"))


def test_a_retry_does_not_take_a_unique_name_from_another_item():
    cluster = given(item("t1", unique="u"), CancelWork("t1"), item("t2", unique="u"))
    cluster.refuses(RetryWork("t1"), Code.CONFLICT, "'t2'", "'u'")
    cluster.do(CancelWork("t2"), RetryWork("t1"))
    assert cluster.state.work["t1"].expires_at_ms == 0


# --- retention --------------------------------------------------------------------------------------


def test_finished_items_are_kept_for_their_retention_and_go_with_all_their_jobs():
    cluster = given(setting("retention", Retention(work_ms=60_000)), item("w1"), claimed("c1"), failed("w1"))
    cluster.after(10_000).do(claimed("c2"), completed("w1"))
    assert list(cluster.state.jobs) == ["w1.1", "w1.2"]
    cluster.after(59_000)
    assert "w1" in cluster.state.work
    cluster.after(1_000)
    assert (cluster.state.work, cluster.state.jobs, cluster.state.index.claims) == ({}, {}, {})
    assert cluster.state.totals["square8_2p"].games == 10


def test_an_item_that_ended_before_the_clock_moved_is_dropped_too():
    cluster = Cluster(clock_ms=0)
    cluster.do(setting("retention", Retention(work_ms=1_000)), item("w1"), CancelWork("w1"))
    assert cluster.now_ms == 0
    cluster.after(2_000)
    assert cluster.state.work == {}


def test_needs_and_defaults_are_what_the_item_said():
    cluster = given(item("w1", needs=Needs(cpu_slots=2)), claimed("c1"))
    assert cluster.job("w1").needs == Needs(cpu_slots=2)


def test_open_items_are_counted_by_type_config_and_status():
    cluster = given(node("a"), item("w1"), item("w2"), bound("w1", "a"))
    count = cluster.state.index.open_items
    assert [count("selfplay", CONFIG, status) for status in (WorkStatus.PENDING, WorkStatus.CLAIMED)] == [1, 1]
    assert count("selfplay", "hex8_9p", WorkStatus.PENDING) == count("training", CONFIG, WorkStatus.PENDING) == 0
