"""Jobs: one attempt under one fence. What a lost node still finishes counts nowhere."""

from __future__ import annotations

import pytest

from statemachine.commands import (
    CancelWork,
    CompleteJob,
    FailJob,
    RecordHeartbeats,
    ReleaseJob,
    RenewJobs,
    ReportJob,
    RetryWork,
    StopJob,
)
from statemachine.errors import Code
from statemachine.rows import Actual, Desired
from statemachine.settings import Limits, Timing
from statemachine.values import Beat, JobProgress
from tests.support.law import (
    Cluster,
    bound,
    claimed,
    completed,
    digest_of,
    failed,
    games_file,
    given,
    item,
    model_file,
    node,
    pairs,
    setting,
    started,
)


def one_job(**more) -> Cluster:
    """An item w1 bound to the agent of node a as job w1.1 under fence 1."""
    return given(node("a"), node("b"), item("w1", **more), bound("w1", "a"))


# --- starting ---------------------------------------------------------------------------------------


def test_a_job_is_pending_then_starting_then_running():
    cluster = one_job()
    assert cluster.do(ReportJob("w1.1", 1, "starting")) == "run"
    assert (cluster.job("w1").actual, cluster.status("w1")) == (Actual.STARTING, "claimed")
    assert cluster.do(ReportJob("w1.1", 1, "running")) == "run"
    assert (cluster.job("w1").actual, cluster.status("w1")) == (Actual.RUNNING, "running")
    assert cluster.events("WorkStarted") == ["w1"]


def test_only_a_real_start_burns_the_attempt():
    cluster = one_job().when(ReportJob("w1.1", 1, "starting"))
    assert cluster.state.work["w1"].attempts == 0
    cluster.do(started("w1"))
    assert cluster.state.work["w1"].attempts == 1


def test_a_repeated_or_late_report_changes_nothing():
    cluster = one_job().when(started("w1"))
    assert cluster.do(ReportJob("w1.1", 1, "running")) == "run"
    assert cluster.do(ReportJob("w1.1", 1, "starting")) == "run"
    assert cluster.job("w1").actual is Actual.RUNNING
    assert cluster.state.work["w1"].attempts == 1


def test_an_executor_may_not_report_other_states():
    cluster = one_job()
    for word in ("succeeded", "lost", "queued", ""):
        cluster.refuses(ReportJob("w1.1", 1, word), Code.INVALID, repr(word))


def test_a_report_under_an_older_fence_is_refused():
    cluster = one_job()
    for report in (
        ReportJob("w1.1", 7, "running"),
        CompleteJob("w1.1", 7, {"games": 1}),
        FailJob("w1.1", 7, "user", "x"),
        ReleaseJob("w1.1", 7, "no room"),
        StopJob("w1.1", 7, "no longer needed"),
    ):
        cluster.refuses(report, Code.STALE_FENCE, "'w1.1'", "7", "1")


def test_a_report_of_a_job_nobody_knows_is_refused():
    given().refuses(ReportJob("w9.1", 1, "running"), Code.NOT_FOUND, "'w9.1'")


def test_a_job_that_is_over_cannot_run_again():
    cluster = one_job().when(completed("w1"))
    cluster.refuses(ReportJob("w1.1", 1, "running"), Code.ILLEGAL_TRANSITION, "succeeded")


# --- completing -------------------------------------------------------------------------------------


def test_a_completion_counts_its_games_files_and_time_together():
    cluster = one_job().when(started("w1"))
    cluster.do(completed("w1", games=50, outputs=(games_file("shard", 50),), metrics={"loss": "0.5"}))
    work, job, totals = cluster.state.work["w1"], cluster.job("w1"), cluster.state.totals["square8_2p"]
    assert (work.status, work.counts["games"], work.metrics) == ("completed", 50, {"loss": "0.5"})
    assert (job.actual, job.desired, job.finished_at_ms) == (Actual.SUCCEEDED, Desired.STOP, 1_000)
    assert (totals.games, totals.positions, totals.selfplay_jobs) == (50, 500, 1)
    assert cluster.state.artifacts[digest_of("shard")].holders == ("a",)
    assert cluster.events("WorkCompleted") == ["w1"]


def test_a_completion_is_counted_once_however_often_it_is_reported():
    cluster = one_job().when(started("w1"))
    report = completed("w1", games=50)(cluster)
    assert cluster.do(report) == {"published": True}
    assert cluster.do(report) == {"published": True, "repeat": True}
    assert cluster.state.totals["square8_2p"].games == 50


def test_a_late_completion_cannot_overtake_its_successor():
    cluster = one_job().when(started("w1"))
    late = completed("w1", games=50)(cluster)
    cluster.after(302_000, beating=("b",)).do(bound("w1", "b"))
    second = cluster.job("w1")
    cluster.refuses(late, Code.STALE_FENCE, "'w1.1'", "lapsed")
    assert cluster.job("w1") == second
    assert "square8_2p" not in cluster.state.totals


def test_a_claimed_worker_that_never_reported_a_start_still_used_its_attempt():
    cluster = given(item("w1"), claimed("c1"), failed("w1")).after(10_000)
    cluster.do(claimed("c2"), completed("w1"))
    assert cluster.state.work["w1"].attempts == 2


def test_a_selfplay_without_games_is_no_success():
    cluster = one_job().when(started("w1"))
    cluster.refuses(completed("w1", games=0), Code.INVALID, "no games")
    cluster.refuses(completed("w1", counts={}), Code.INVALID, "no games")
    assert cluster.status("w1") == "running"


@pytest.mark.parametrize("work_type", ["training", "initial"])
def test_a_training_without_a_model_is_no_success(work_type):
    cluster = one_job(work_type=work_type).when(started("w1"))
    cluster.refuses(completed("w1", outputs=(games_file("x", 1),)), Code.INVALID, work_type, "no model")


def test_an_evaluation_without_a_match_is_no_success():
    cluster = one_job(work_type="evaluation").when(started("w1"))
    cluster.refuses(completed("w1", games=400), Code.INVALID, "no match")


def test_an_evaluation_of_zero_games_is_no_result():
    cluster = one_job(work_type="evaluation").when(started("w1"))
    cluster.refuses(completed("w1", match=pairs("random", "heuristic")), Code.INVALID, "no game was played")


def test_an_evaluation_counts_its_games_and_its_match():
    cluster = one_job(work_type="evaluation").when(started("w1"))
    cluster.do(completed("w1", match=pairs("random", "heuristic", losses=5, draws=1)))
    assert cluster.state.totals["square8_2p"].evaluation_games == 12
    (match,) = cluster.state.matches.values()
    assert (match.peer, match.config, match.gauntlet) == ("a", "square8_2p", "")


def test_another_kind_of_work_counts_for_nothing_but_itself():
    cluster = one_job(work_type="export").when(started("w1"), completed("w1"))
    assert cluster.status("w1") == "completed"
    assert cluster.state.totals == {}


def test_a_stopped_attempt_may_keep_the_valid_part_of_its_work():
    cluster = one_job().when(started("w1"), StopJob("w1.1", 1, "drain"))
    assert cluster.do(completed("w1", games=7, stopped=True)) == {"published": True}
    assert cluster.job("w1").actual is Actual.STOPPED
    assert (cluster.status("w1"), cluster.state.totals["square8_2p"].games) == ("completed", 7)
    assert cluster.do(FailJob("w1.1", 1, "stopped", "sent twice")) == "completed"


def test_a_training_remembers_how_many_games_it_had_seen():
    cluster = given(item("s1"), claimed("c1"), completed("s1", games=500))
    cluster.do(item("t1", "training", params={"games_seen": "400"}), claimed("c2"))
    cluster.do(completed("t1", counts={}, outputs=(model_file("m1"),)))
    assert cluster.state.totals["square8_2p"].games_at_training == 400
    cluster.do(item("t2", "training", params={"games_seen": "a lot"}), claimed("c3"))
    cluster.do(completed("t2", counts={}, outputs=(model_file("m2"),)))
    assert cluster.state.totals["square8_2p"].games_at_training == 500
    assert cluster.state.totals["square8_2p"].training_jobs == 2


def test_a_completed_job_cannot_fail_and_a_failed_one_cannot_complete():
    cluster = one_job().when(completed("w1"))
    cluster.refuses(FailJob("w1.1", 1, "user", "x"), Code.ILLEGAL_TRANSITION, "succeeded")
    cluster = one_job().when(failed("w1"))
    cluster.refuses(CompleteJob("w1.1", 1, {"games": 1}), Code.ILLEGAL_TRANSITION, "failed")


# --- failing ----------------------------------------------------------------------------------------


def test_a_failure_returns_the_item_with_a_backoff_that_doubles_up_to_its_cap():
    timing = Timing(backoff_ms=10_000, backoff_cap_ms=25_000)
    cluster = given(setting("timing", timing), setting("limits", Limits(poisoned_after_peers=99)))
    cluster.do(node("a"), item("w1", max_attempts=9))
    waits = []
    for _ in range(4):
        cluster.do(bound("w1", "a"), started("w1"), failed("w1"))
        wait = cluster.state.work["w1"].ready_at_ms - cluster.now_ms
        waits.append(wait)
        cluster.after(wait, beating=("a",))
    assert waits == [10_000, 20_000, 25_000, 25_000]


def test_what_failed_together_does_not_come_back_together():
    timing = Timing(backoff_ms=10_000, backoff_jitter_percent=20)
    cluster = given(node("a", slots=9), setting("timing", timing))
    waits = set()
    for n in range(9):
        cluster.do(item(f"w{n}"), bound(f"w{n}", "a"), started(f"w{n}"), failed(f"w{n}"))
        waits.add(cluster.state.work[f"w{n}"].ready_at_ms - cluster.now_ms)
    assert len(waits) > 5
    assert all(10_000 <= wait <= 12_000 for wait in waits)


def test_an_item_out_of_attempts_is_a_dead_letter_with_its_reason():
    cluster = given(node("a"), item("w1", max_attempts=2))
    for answer in ("pending", "failed"):
        cluster.do(bound("w1", "a"), started("w1"))
        assert cluster.do(failed("w1", error="no such engine")) == answer
        cluster.after(20_000, beating=("a",))
    work = cluster.state.work["w1"]
    assert (work.status, work.attempts, work.error_class) == ("failed", 2, "user")
    assert work.reason == "all 2 attempts failed; the last one said: no such engine"
    assert cluster.events("WorkFailed") == ["w1"]


def test_a_process_that_dies_before_anybody_saw_it_run_still_burns_its_attempt():
    cluster = given(item("w1", max_attempts=2))
    for n in range(2):
        cluster.do(claimed(f"c{n}"), failed("w1"))
        cluster.after(20_000)
    assert cluster.status("w1") == "failed"


@pytest.mark.parametrize("error_class", ["infrastructure", "preempted", "stopped"])
def test_a_failure_that_says_nothing_about_the_item_gives_the_attempt_back(error_class):
    cluster = one_job().when(started("w1"))
    assert cluster.do(failed("w1", error_class)) == "pending"
    work = cluster.state.work["w1"]
    assert (work.attempts, work.failed_on, work.error_class) == (0, (), error_class)
    assert work.ready_at_ms - cluster.now_ms == (10_000 if error_class == "infrastructure" else 0)


def test_an_item_that_fails_on_three_nodes_is_poison_whatever_attempts_are_left():
    cluster = given(*(node(n) for n in "abc"), item("w1", max_attempts=50))
    for name in "abc":
        cluster.do(bound("w1", name), started("w1"), failed("w1", "oom", f"out of memory on {name}"))
        cluster.after(60_000, beating=tuple("abc"))
        if name == "a":
            cluster.do(bound("w1", "b"), started("w1"), failed("w1", "infrastructure", "its keeper was ended"))
            cluster.after(60_000, beating=tuple("abc"))
    work = cluster.state.work["w1"]
    assert (work.status, work.error_class) == ("failed", "poisoned")
    for name in "abc":
        assert f"{name} (oom): out of memory on {name}" in work.reason
    assert "3 nodes" in work.reason
    assert "keeper" not in work.reason
    cluster.do(RetryWork("w1"), bound("w1", "a"), started("w1"), failed("w1"))
    assert (cluster.status("w1"), cluster.state.work["w1"].error_class) == ("pending", "user")


def test_an_item_that_is_given_back_for_ever_ends_some_day():
    cluster = given(item("w1", max_attempts=1))
    for n in range(20):
        assert cluster.status("w1") == "pending"
        cluster.do(claimed(f"c{n}"), failed("w1", "preempted", "spot node taken away"))
    assert cluster.status("w1") == "failed"
    assert "20 times" in cluster.state.work["w1"].reason


def test_a_repeated_failure_is_answered_and_not_counted_again():
    cluster = one_job().when(started("w1"))
    report = failed("w1")(cluster)
    assert cluster.do(report) == "pending"
    assert cluster.do(report) == "pending"
    assert cluster.state.peers["a"].failures == 1
    assert cluster.state.work["w1"].failed_on == ("a",)


def test_failures_count_against_their_node_and_fade_with_time():
    cluster = given(setting("timing", Timing(failure_half_life_ms=10_000)), node("a"))
    for n in range(3):
        cluster.do(item(f"w{n}"), bound(f"w{n}", "a"), failed(f"w{n}"))
    assert cluster.state.peers["a"].failures == 3
    cluster.after(10_000).do(item("w9"), bound("w9", "a"), failed("w9"))
    assert cluster.state.peers["a"].failures == 2


def test_a_stop_is_nobodys_fault():
    cluster = one_job().when(started("w1"), failed("w1", "stopped", "the node shuts down"))
    assert cluster.state.jobs["w1.1"].actual is Actual.STOPPED
    assert cluster.state.peers["a"].failures == 0
    assert cluster.events("JobFailed") == []


# --- releasing and stopping -------------------------------------------------------------------------


def test_a_refusal_gives_the_item_back_and_burns_no_attempt():
    cluster = one_job()
    assert cluster.do(ReleaseJob("w1.1", 1, "no room")) == "pending"
    work = cluster.state.work["w1"]
    assert (work.attempts, work.job, work.reason, work.failed_on) == (0, "", "no room", ())
    assert work.ready_at_ms == cluster.now_ms + 10_000
    assert cluster.state.jobs["w1.1"].actual is Actual.STOPPED
    assert cluster.do(ReleaseJob("w1.1", 1, "no room")) == "pending"


def test_a_running_job_is_not_released():
    cluster = one_job().when(started("w1"))
    cluster.refuses(ReleaseJob("w1.1", 1, "no room"), Code.ILLEGAL_TRANSITION, "runs")


def test_a_job_that_is_over_is_not_released():
    cluster = one_job().when(completed("w1"))
    cluster.refuses(ReleaseJob("w1.1", 1, "no room"), Code.ILLEGAL_TRANSITION, "succeeded")


def test_a_stop_is_told_once_and_the_item_returns_when_the_process_has_ended():
    cluster = one_job().when(started("w1"))
    assert cluster.do(StopJob("w1.1", 1, "preempted by training")) is True
    assert cluster.do(StopJob("w1.1", 1, "again")) is False
    assert (cluster.job("w1").desired, cluster.job("w1").reason) == (Desired.STOP, "preempted by training")
    assert cluster.do(ReportJob("w1.1", 1, "running")) == "stop"
    assert cluster.do(failed("w1", "stopped", "told to")) == "pending"
    assert cluster.do(StopJob("w1.1", 1, "late")) is False


# --- cancelled under its item -----------------------------------------------------------------------


def test_nothing_that_a_cancelled_items_job_still_makes_is_published():
    cluster = one_job().when(started("w1"), CancelWork("w1", "wrong config"))
    report = CompleteJob("w1.1", 1, {"games": 50}, outputs=(games_file("shard", 50),))
    assert cluster.do(report) == {"published": False}
    assert cluster.do(report) == {"published": False, "repeat": True}
    assert cluster.state.jobs["w1.1"].actual is Actual.STOPPED
    assert cluster.status("w1") == "cancelled"
    assert (cluster.state.totals, cluster.state.artifacts) == ({}, {})


def test_a_cancelled_items_job_may_start_fail_or_be_released_without_waking_it():
    cluster = one_job().when(CancelWork("w1"), ReportJob("w1.1", 1, "running"))
    assert cluster.then_done() == "stop"
    assert cluster.do(FailJob("w1.1", 1, "stopped", "told to")) == "cancelled"
    cluster = one_job().when(CancelWork("w1"))
    assert cluster.do(ReleaseJob("w1.1", 1, "not needed")) == "cancelled"
    assert cluster.state.work["w1"].attempts == 0


# --- leases -----------------------------------------------------------------------------------------


def test_heartbeats_carry_the_leases_of_an_agents_jobs():
    cluster = one_job().when(started("w1")).after(900_000, beating=("a",))
    assert cluster.status("w1") == "running"
    cluster.after(299_000)
    assert cluster.status("w1") == "running"
    cluster.after(1_000)
    assert cluster.status("w1") == "pending"
    assert cluster.state.jobs["w1.1"].reason == "its lease of 300000 ms lapsed on a"
    assert (cluster.state.work["w1"].attempts, cluster.state.peers["a"].failures) == (0, 0)


def test_training_has_a_longer_lease_than_selfplay():
    cluster = one_job(work_type="training").when(started("w1")).after(898_000)
    assert cluster.status("w1") == "running"
    cluster.after(2_000)
    assert cluster.status("w1") == "pending"


def test_a_job_that_never_starts_returns_to_the_queue_though_its_node_is_alive():
    cluster = one_job().after(302_000, beating=("a",))
    assert cluster.status("w1") == "pending"
    assert "did not start it within" in cluster.state.jobs["w1.1"].reason


def test_a_job_whose_node_died_before_it_started_was_lost_with_its_lease():
    cluster = one_job().after(302_000)
    assert "lapsed" in cluster.state.jobs["w1.1"].reason


def test_an_overdue_job_that_its_executor_forgot_is_lost_a_lease_after_its_limit():
    cluster = one_job(timeout_ms=100_000).when(started("w1")).after(398_000, beating=("a",))
    assert cluster.status("w1") == "running"
    cluster.after(4_000, beating=("a",))
    assert cluster.status("w1") == "pending"
    assert "its limit is 100000 ms" in cluster.state.jobs["w1.1"].reason


def test_a_renewal_names_the_fences_that_are_over_and_the_jobs_that_should_stop():
    cluster = given(*(item(f"w{n}") for n in range(4)), claimed("c1", limit=4))
    cluster.do(completed("w0"), CancelWork("w1"))
    answer = cluster.do(
        RenewJobs(
            (
                JobProgress("w0.1", 1),
                JobProgress("w1.1", 2),
                JobProgress("w2.1", 99),
                JobProgress("w3.1", 4),
                JobProgress("gone", 5),
            )
        )
    )
    assert answer == {"over": ["w0.1", "w2.1", "gone"], "stop": ["w1.1"]}


def test_a_worker_that_only_renews_has_started_its_item_though_it_was_cancelled():
    cluster = given(item("w1"), claimed("c1"), CancelWork("w1"))
    assert cluster.do(RenewJobs((JobProgress("w1.1", 1),))) == {"over": [], "stop": ["w1.1"]}
    assert cluster.status("w1") == "cancelled"


# --- progress ---------------------------------------------------------------------------------------


def progress(counts, total=None, fence=1, peer="a") -> RecordHeartbeats:
    return RecordHeartbeats((Beat(peer, 1, progress=(JobProgress("w1.1", fence, counts, total or {}),)),))


def test_progress_is_cumulative_so_order_and_repeats_do_not_matter():
    cluster = one_job().when(started("w1"))
    for counts in ({"games": 5}, {"games": 12, "positions": 80}, {"games": 5}, {"games": 12}):
        cluster.do(progress(counts, {"games": 50}))
    assert cluster.job("w1").counts == {"games": 12, "positions": 80}
    assert cluster.job("w1").total == {"games": 50}


def test_progress_under_another_fence_or_from_another_node_or_of_an_ended_job_is_not_taken():
    cluster = one_job().when(started("w1"))
    cluster.do(progress({"games": 5}, fence=2))
    cluster.do(progress({"games": 5}, peer="b"))
    assert cluster.job("w1").counts == {}
    cluster.do(completed("w1"), progress({"games": 99}))
    assert cluster.job("w1").counts["games"] == 10


def test_a_retried_item_that_nobody_could_start_gets_as_many_bindings_again():
    cluster = given(node("a"), item("w1", max_attempts=1))

    def hand_back() -> str:
        cluster.after(700_000, beating=("a",))
        cluster.do(bound("w1", "a"))
        job = cluster.job("w1")
        return cluster.do(ReleaseJob(job.job, job.fence, "no room"))

    assert [hand_back() for _ in range(20)] == ["pending"] * 19 + ["failed"]
    cluster.do(RetryWork("w1"))
    assert hand_back() == "pending"
