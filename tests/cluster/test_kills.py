"""kill -9 of everything in turn: nothing acknowledged is lost, nothing counts twice, nothing leaks."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import psutil
import pytest

from tests.support.cluster import NodeProcess, TestCluster, eventually
from tests.support.load import acknowledged

pytestmark = pytest.mark.cluster


def add(node: NodeProcess, work: str, games: int = 10, seconds: float = 0.2) -> None:
    answer = node.post(
        "/work/add",
        {
            "work_id": work,
            "work_type": "selfplay",
            "template": "stand-in",
            "params": {"games": str(games), "seconds": str(seconds)},
        },
    )
    assert answer.is_success, answer.text


def work_of(node: NodeProcess, work: str) -> dict[str, Any]:
    row: dict[str, Any] = node.get(f"/work/{work}")["work"]
    return row


def workload_of(work: str) -> psutil.Process | None:
    """The stand-in process that runs for an item, if there is one."""
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if work in line and any(part.endswith("workload.py") for part in line) and "shim" not in " ".join(line):
            return process
    return None


def all_games(node: NodeProcess) -> int:
    return sum(t["games"] for t in node.get("/status")["totals"].values())


def test_acknowledged_work_survives_the_death_of_the_leader_and_counts_once(cluster: TestCluster) -> None:
    follower = cluster.nodes["f1"]
    before = all_games(follower)
    with acknowledged(follower, "k", "selfplay") as taken:
        eventually(lambda: len(taken) > 20, "some acknowledged items")
        leader = cluster.leader()
        leader.kill()
        at_kill = len(taken)
        eventually(lambda: len(taken) > at_kill + 20, "work to be taken again after the leader died")
    leader.start()
    eventually(lambda: leader.get("/status")["ready"], "the killed voter to come back", 60.0)
    cluster.same_digest()
    known = {w["spec"]["work"] for w in _all_work(leader)}
    assert set(taken) <= known
    assert all_games(follower) == before


def _all_work(node: NodeProcess) -> list[dict[str, Any]]:
    return list(node.get("/state/dump?table=work")["tables"]["work"].values())


def test_a_job_outlives_its_node_process_and_is_adopted(cluster: TestCluster) -> None:
    node = cluster.nodes["f1"]
    add(node, "adopted", games=30, seconds=8)
    running = eventually(lambda: workload_of("adopted"), "the workload to run")
    eventually(lambda: work_of(node, "adopted")["status"] == "running", "the item to be running")
    node.kill()
    assert running.is_running()
    node.start()
    eventually(lambda: work_of(node, "adopted")["status"] == "completed", "the adopted job to be counted", 60.0)
    row = work_of(node, "adopted")
    assert row["grants"] == 1, "it was the same attempt, not a second one"
    assert row["counts"]["games"] == 30
    assert not running.is_running()


def test_a_killed_workload_is_tried_again_and_its_games_count_once(cluster: TestCluster) -> None:
    node = cluster.nodes["f1"]
    before = all_games(node)
    add(node, "murdered", games=20, seconds=4)
    victim = eventually(lambda: workload_of("murdered"), "the workload to run")
    eventually(lambda: work_of(node, "murdered")["status"] == "running", "the item to be running")
    os.kill(victim.pid, signal.SIGKILL)
    eventually(lambda: work_of(node, "murdered")["status"] == "completed", "the second attempt to be counted", 60.0)
    assert work_of(node, "murdered")["grants"] == 2
    assert all_games(node) - before == 20


def test_a_stopped_leader_hands_over_and_leaves_within_ten_seconds(cluster: TestCluster) -> None:
    leader = cluster.leader()
    term = leader.get("/status")["term"]
    began = time.monotonic()
    assert leader.terminate() == 0
    assert time.monotonic() - began < 10
    heir = cluster.leader(besides=leader.name, timeout_s=10.0)
    assert heir.get("/status")["term"] > term
    assert "leadership_handed_over" in leader.log
    leader.start()
    eventually(lambda: leader.get("/status")["ready"], "the voter to come back", 60.0)
    cluster.same_digest()


def test_all_voters_killed_at_once_lose_nothing_acknowledged(cluster: TestCluster) -> None:
    node = cluster.nodes["f1"]
    for n in range(20):
        assert node.post("/work/add", {"work_id": f"all{n}", "work_type": "validation"}).is_success
    voters = [n for n in cluster.nodes.values() if n.role == "voter"]
    for voter in voters:
        voter.kill()
    for voter in voters:
        voter.start()
    cluster.leader()
    for voter in voters:
        eventually(lambda voter=voter: voter.get("/status")["ready"], f"{voter.name} to be ready", 60.0)
    known = {w["spec"]["work"] for w in _all_work(voters[0])}
    assert {f"all{n}" for n in range(20)} <= known
    cluster.same_digest()


def test_nothing_of_ours_runs_when_nothing_should(cluster: TestCluster) -> None:
    node = cluster.nodes["f1"]
    eventually(lambda: node.get("/jobs")["active_total"] == 0, "all jobs to end")
    shims = [
        p.info["cmdline"]
        for p in psutil.process_iter(["cmdline"])
        if str(cluster.folder) in " ".join(p.info["cmdline"] or []) and "serve" not in (p.info["cmdline"] or [])
    ]
    assert shims == []
