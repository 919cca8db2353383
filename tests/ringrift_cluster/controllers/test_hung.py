"""Hung jobs are stopped with their evidence; a pass stops a bounded number of them."""

from __future__ import annotations

from ringrift_cluster.controllers import hung
from ringrift_cluster.controllers.hung import stop_hung
from statemachine.commands import PauseCluster, StopJob
from statemachine.settings import Timing
from tests.support.law import Cluster, bound, completed, given, item, node, setting, started


def silent_jobs(count: int) -> Cluster:
    cluster = given(setting("timing", Timing(hung_floor_ms=60_000)), node("a", slots=16))
    for n in range(3):
        cluster.do(item(f"ok{n}"), bound(f"ok{n}", "a"), started(f"ok{n}"))
        cluster.after(10_000, beating=("a",)).do(completed(f"ok{n}"))
    for n in range(count):
        cluster.do(item(f"w{n}"), bound(f"w{n}", "a"), started(f"w{n}"))
    return cluster


def test_jobs_that_hang_are_stopped_as_failures_of_their_own_class() -> None:
    cluster = silent_jobs(2)
    cluster.do(item("young"), bound("young", "a"))
    assert stop_hung(cluster.state) == []
    cluster.after(60_000, beating=("a",)).do(PauseCluster(paused=True))
    assert stop_hung(cluster.state) == []
    cluster.do(PauseCluster(paused=False))
    stops = stop_hung(cluster.state)
    assert [(s.job, s.error_class) for s in stops if isinstance(s, StopJob)] == [("w0.1", "hung"), ("w1.1", "hung")]
    cluster.do(*stops)
    assert stop_hung(cluster.state) == []


def test_a_pass_stops_a_bounded_number(monkeypatch) -> None:
    monkeypatch.setattr(hung, "MAX_STOPPED", 2)
    cluster = silent_jobs(4).after(60_000, beating=("a",))
    assert len(stop_hung(cluster.state)) == 2
