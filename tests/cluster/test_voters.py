"""Voters that are added, replaced and removed while clients work: none of them sees a failure."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ringrift_cluster.client import Client
from tests.support.cluster import NodeProcess, TestCluster, eventually, free_ports
from tests.support.load import Load

pytestmark = pytest.mark.cluster
#: the operator's token, which no node but the voters sees
TOKEN = "operators-own-secret"


@pytest.fixture
def grown(tmp_path: Path) -> Iterator[TestCluster]:
    """One voter and two followers that may become voters."""
    cluster = TestCluster(tmp_path, voters=1, followers=2, cpu_slots=0, token=TOKEN)
    cluster.lay_out()
    for name, port in zip(("f1", "f2"), free_ports(2), strict=True):
        cluster.nodes[name] = replace(cluster.nodes[name], flags=(*cluster.nodes[name].flags, "--raft-port", str(port)))
    try:
        for node in cluster.nodes.values():
            node.start()
        for node in cluster.nodes.values():
            eventually(lambda node=node: node.get("/status")["ready"], f"{node.name} to be ready", 60.0)
        yield cluster
    finally:
        cluster.stop()


def everyone_counts(cluster: TestCluster, *names: str) -> None:
    """All nodes agree on who votes, wherever one looks."""

    def agreed() -> bool:
        for node in cluster.living():
            status, listed = node.get("/status"), node.get("/raft/voters")
            if sorted(status["voters"]) != sorted(names) or not status["ready"]:
                return False
            if sorted(v["node_id"] for v in listed["voters"]) != sorted(names):
                return False
            if (status["role"] in ("voter", "leader", "candidate")) is not (node.name in names):
                return False
        return True

    eventually(agreed, f"everyone to count {names}", 60.0)


def alive_in_the_log(cluster: TestCluster, *names: str) -> None:
    def joined() -> bool:
        peers = {p["peer"]: p["status"] for p in cluster.leader().get("/peers")["peers"]}
        return all(peers.get(name) == "alive" for name in names)

    eventually(joined, f"{names} to be alive", 60.0)


def restart(node: NodeProcess) -> None:
    assert node.terminate(60.0) == 0
    node.start()
    eventually(lambda: node.get("/ready")["ready"], f"{node.name} to be ready", 60.0)


def test_a_follower_becomes_a_voter_and_the_leader_a_follower_under_load(grown: TestCluster) -> None:
    alive_in_the_log(grown, "f1")
    urls = [n.url for n in grown.nodes.values()]
    with Load(urls, TOKEN) as load, Client(urls, token=TOKEN, retry_s=60.0) as client:
        assert client.add_voter("f1").voters == ["f1", "v1"]
        everyone_counts(grown, "f1", "v1")
        load.goes_on()
        leader = grown.leader()
        (heir,) = {"f1", "v1"} - {leader.name}
        assert client.remove_voter(leader.name).voters == [heir]
        everyone_counts(grown, heir)
        load.goes_on()
    assert not load.failures


@pytest.mark.skipif(not os.environ.get("RINGRIFT_TEST_LONG"), reason="make voters runs it")
def test_one_voter_grows_to_three_is_restarted_replaced_and_shrinks_under_load(grown: TestCluster) -> None:
    alive_in_the_log(grown, "f1", "f2")
    urls = [n.url for n in grown.nodes.values()]
    with Load(urls, TOKEN) as load, Client(urls, token=TOKEN, retry_s=60.0) as client:
        first = client.add_voter("f1")
        assert (first.voters, "2 voters survive no more" in first.warning) == (["f1", "v1"], True)
        assert client.add_voter("f2").voters == ["f1", "f2", "v1"]
        everyone_counts(grown, "f1", "f2", "v1")
        load.goes_on()

        # A rolling restart: one after the other, each waits until the one before it is ready.
        for node in grown.nodes.values():
            restart(node)
            load.goes_on()
        everyone_counts(grown, "f1", "f2", "v1")

        # A voter whose disk was lost is turned away until it is removed and added as a new member.
        lost = grown.nodes["f2"]
        lost.kill()
        shutil.rmtree(lost.folder)
        lost.start()
        assert lost.process is not None
        assert lost.process.wait(60.0) == 70
        assert "`ringrift-node voters remove f2`" in lost.log
        before = next(v.log_id for v in client.voters().voters if v.node_id == "f2")
        client.remove_voter("f2")
        lost.start()
        eventually(lambda: lost.get("/status")["ready"], "the replaced node to follow", 60.0)
        alive_in_the_log(grown, "f2")
        assert client.add_voter("f2").voters == ["f1", "f2", "v1"]
        everyone_counts(grown, "f1", "f2", "v1")
        assert before != next(v.log_id for v in client.voters().voters if v.node_id == "f2")
        load.goes_on()

        # The leader goes: it hands over first, and goes on as a follower.
        leader = grown.leader()
        rest = sorted({"f1", "f2", "v1"} - {leader.name})
        assert client.remove_voter(leader.name).voters == rest
        everyone_counts(grown, *rest)
        assert list(leader.folder.glob("raft.removed-*"))
        load.goes_on()
        restart(leader)
        everyone_counts(grown, *rest)

        # What remains must have a majority that answers.
        other = next(n for n in grown.nodes.values() if n.name in rest and n is not grown.leader())
        assert client.remove_voter(other.name).warning.startswith("one voter alone")
        everyone_counts(grown, grown.leader().name)
        load.goes_on()
    assert not load.failures
    with Client(urls, token=TOKEN, retry_s=60.0) as client:
        for work in load.added[:: max(1, len(load.added) // 50)]:
            assert client.work(work)
    grown.same_digest()
