"""What a person meets at the door: clear refusals, the same truth everywhere, the dump on and off line."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.support.cluster import NodeProcess, TestCluster, eventually, free_ports

pytestmark = pytest.mark.cluster


def run(node: NodeProcess) -> subprocess.CompletedProcess[str]:
    return subprocess.run(node.command(), capture_output=True, text=True, timeout=60, check=False)


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ringrift_cluster", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_second_process_on_one_data_directory_is_refused_in_a_sentence(cluster: TestCluster) -> None:
    twin = replace(cluster.nodes["f1"], port=free_ports(1)[0], process=None)
    ended = run(twin)
    assert ended.returncode == 2
    assert "in use by another node process" in ended.stderr


def test_a_taken_port_is_refused_in_a_sentence(cluster: TestCluster, tmp_path: Path) -> None:
    stranger = replace(cluster.nodes["f1"], name="f9", folder=tmp_path / "f9", process=None)
    ended = run(stranger)
    assert ended.returncode == 2
    assert f"port {stranger.port}" in ended.stderr
    assert "cannot be listened on" in ended.stderr


def test_a_cluster_list_that_differs_from_the_log_is_a_warning(cluster: TestCluster) -> None:
    voter = cluster.nodes["v1"]
    voter.kill()
    fewer = replace(voter, cluster=voter.cluster.rsplit(",", 1)[0], process=None)
    fewer.start()
    try:
        eventually(lambda: fewer.get("/status")["ready"], "the voter to come back", 60.0)
        assert sorted(fewer.get("/status")["voters"]) == ["v1", "v2", "v3"]
        assert "event=cluster_list_differs voters=v1,v2,v3 flags=v1,v2" in fewer.log
    finally:
        fewer.kill()
        voter.start()
        eventually(lambda: voter.get("/status")["ready"], "the voter to come back", 60.0)


def test_two_nodes_at_one_index_print_the_same_digest(cluster: TestCluster) -> None:
    cluster.nodes["f1"].post("/work/add", {"work_id": "seen-by-all", "work_type": "validation"})
    (place,) = cluster.same_digest().items()
    assert place[0] > 0


def test_the_dump_is_the_same_live_and_offline(cluster: TestCluster) -> None:
    voter = cluster.nodes["v2"]
    voter.post("/work/add", {"work_id": "dumped", "work_type": "validation"})
    live = cli("state", "dump", "--json", "--api", voter.url)
    assert live.returncode == 0, live.stderr
    shown = json.loads(live.stdout)
    assert "dumped" in shown["tables"]["work"]
    # That an entry is committed is written down with a later one, so the newest is not known to be after a kill.
    eventually(lambda: voter.get("/raft/state")["applied"] > shown["index"] + 1, "entries after the dump")
    voter.kill()
    try:
        offline = cli("state", "dump", "--data-dir", str(voter.folder), "--index", str(shown["index"]), "--json")
        assert offline.returncode == 0, offline.stderr
        replayed = json.loads(offline.stdout)
        assert replayed["index"] == shown["index"]
        assert replayed["digest"] == shown["digest"]
        assert replayed["tables"]["work"] == shown["tables"]["work"]
    finally:
        voter.start()
        eventually(lambda: voter.get("/status")["ready"], "the voter to come back", 60.0)


def test_a_follower_takes_writes_and_shows_them_at_once(cluster: TestCluster) -> None:
    follower = cluster.nodes["f1"]
    assert follower.post("/work/add", {"work_id": "own-write", "work_type": "validation"}).is_success
    assert follower.get("/work/own-write")["work"]["status"] == "pending"


def test_a_linearizable_read_on_a_follower_sees_what_another_node_acknowledged(cluster: TestCluster) -> None:
    for n in range(5):
        assert cluster.nodes["v3"].post("/work/add", {"work_id": f"lin{n}", "work_type": "validation"}).is_success
        answer = httpx.get(f"{cluster.nodes['f1'].url}/work/lin{n}?consistency=linearizable", timeout=10.0)
        assert answer.is_success, answer.text


def test_a_pending_item_says_in_a_sentence_why_it_waits(cluster: TestCluster) -> None:
    node = cluster.nodes["f1"]
    node.post(
        "/work/add",
        {"work_id": "too-big", "work_type": "training", "template": "stand-in", "needs": {"gpus": 1}},
    )
    why = node.get("/work/too-big")["why"]
    assert "GPU" in why["sentence"]
    node.post("/work/cancel", {"work_id": "too-big"})
