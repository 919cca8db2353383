"""A program that failed and is started again on its node: one job, one fence, one attempt."""

from __future__ import annotations

import msgspec
import pytest
from msgspec import UNSET

from statemachine import queries, settings
from statemachine.commands import (
    CancelWork,
    RecordHeartbeats,
    RestartJob,
    StopJob,
    decode_command,
    encode_command,
)
from statemachine.errors import Code
from statemachine.rows import Actual, Restarts
from statemachine.values import Beat, JobProgress
from tests.support.law import Cluster, bound, completed, failed, given, item, node, started


def restarted(count: int = 1, error_class: str = "cuda", error: str = "CUDA error: lost") -> RestartJob:
    return RestartJob("w.1", 1, count, error_class, error)


def running() -> Cluster:
    return given(node("a"), node("b"), item("w"), bound("w", "a"), started("w"))


def told(cluster: Cluster, counts: dict[str, int], total: dict[str, int] | None = None) -> None:
    beat = Beat("a", cluster.state.peers["a"].incarnation, None, (JobProgress("w.1", 1, counts, total or {}),))
    cluster.do(RecordHeartbeats((beat,)))


def test_a_restart_is_noted_with_what_the_program_failed_of_and_burns_nothing() -> None:
    cluster = running()
    assert cluster.do(restarted()) == "run"
    job = cluster.job("w")
    assert job.restarts == Restarts(1, cluster.now_ms, "cuda", "CUDA error: lost")
    assert (job.actual, job.times_restarted, cluster.state.work["w"].attempts) == (Actual.RUNNING, 1, 1)
    assert cluster.events("JobRestarting") == ["w.1"]
    assert not cluster.state.peers["a"].failures, "a failure that was healed speaks against nobody"
    cluster.do(restarted(2, "infrastructure", "killed"))
    assert cluster.job("w").times_restarted == 2
    assert cluster.do(completed("w"))["published"]
    assert cluster.state.work["w"].attempts == 1


def test_a_repeat_of_a_restart_is_answered_like_the_first_and_counts_once() -> None:
    cluster = running()
    cluster.do(restarted(2))
    before = cluster.job("w")
    assert cluster.do(restarted(2)) == "run"
    assert cluster.do(restarted(1)) == "run"
    assert cluster.job("w") == before
    assert cluster.events("JobRestarting") == ["w.1"]


def test_a_program_that_failed_before_anybody_saw_it_run_has_started_all_the_same() -> None:
    cluster = given(node("a"), item("w"), bound("w", "a"))
    assert cluster.do(restarted()) == "run"
    assert cluster.job("w").actual is Actual.RUNNING
    assert cluster.state.work["w"].attempts == 1


def test_what_the_failed_program_counted_is_gone_with_it_and_the_next_has_time_to_count() -> None:
    cluster = running()
    told(cluster, {"games": 40}, {"games": 50})
    cluster.after(20_000, beating=("a",))
    cluster.do(restarted())
    job = cluster.job("w")
    assert (job.counts, job.total, job.progress_at_ms) == ({}, {}, cluster.now_ms)
    told(cluster, {"games": 3})
    assert cluster.job("w").counts == {"games": 3}


def test_a_job_that_was_told_to_stop_is_not_started_again() -> None:
    cluster = running()
    cluster.do(StopJob("w.1", 1, "make room"))
    assert cluster.do(restarted()) == "stop"
    assert cluster.job("w").times_restarted == 0
    cancelled = running().when(CancelWork("w"))
    assert cancelled.do(restarted()) == "stop"


def test_a_restart_under_a_fence_that_is_over_is_refused() -> None:
    cluster = running()
    cluster.refuses(RestartJob("w.1", 7, 1, "cuda", "x"), Code.STALE_FENCE)
    cluster.refuses(RestartJob("w.9", 1, 1, "cuda", "x"), Code.NOT_FOUND)
    cluster.do(failed("w", "user"))
    cluster.refuses(restarted(), Code.ILLEGAL_TRANSITION, "'w.1'", "failed")
    lost = running()
    lost.after(400_000)
    lost.refuses(restarted(), Code.STALE_FENCE)


def test_the_clock_of_a_jobs_limit_goes_on_over_its_restarts() -> None:
    cluster = running()
    began = cluster.job("w").started_at_ms
    cluster.after(20_000, beating=("a",))
    cluster.do(restarted())
    assert cluster.job("w").started_at_ms == began


def test_why_says_how_often_it_was_started_again_and_what_it_failed_of() -> None:
    cluster = running()
    cluster.do(restarted(2))
    why = queries.why(cluster.state, "w")
    assert why is not None
    assert "failed there 2 times and was started again, the last time (cuda): CUDA error: lost" in why.sentence


def test_a_job_without_a_restart_is_written_as_it_always_was() -> None:
    job = running().job("w")
    assert job.restarts is UNSET
    assert "restarts" not in msgspec.to_builtins(job)
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(job), type=type(job))
    assert again == job


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"attempts": 21}', "$.restart.attempts"),
        ('{"on": ["oom"]}', "$.restart.on"),
        ('{"jitter_percent": 101}', "$.restart.jitter_percent"),
        ('{"delay": 5}', "delay"),
        ('{"delay_ms": 5000, "cap_ms": 1000}', "cap_ms 1000 is below its delay_ms 5000"),
        ('{"on": []}', "on is empty"),
    ],
)
def test_a_policy_that_means_nothing_is_refused_with_its_field(text: str, words: str) -> None:
    with pytest.raises(ValueError, match="template/t") as refused:
        settings.decode("template/t", f'{{"argv": ["x"], "restart": {text}}}')
    assert words in str(refused.value)


def test_a_template_starts_nothing_again_unless_it_says_so() -> None:
    plain = settings.decode("template/t", '{"argv": ["x"]}')
    asked = settings.decode("template/t", '{"argv": ["x"], "restart": {}}')
    assert isinstance(plain, settings.Template)
    assert isinstance(asked, settings.Template)
    assert plain.restart is None
    assert asked.restart == settings.Restart(2, ("infrastructure", "cuda"), 10_000, 120_000, 25)


def test_the_command_is_on_the_wire_under_its_own_kind() -> None:
    assert decode_command(encode_command(restarted())) == restarted()
    with pytest.raises(msgspec.ValidationError, match=r"\$\.count"):
        decode_command(encode_command(restarted(0)))
