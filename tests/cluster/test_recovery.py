"""Backups of a live cluster, new clusters from them, and the way back from lost quorum. Real processes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ringrift_cluster.cli.app import app
from tests.support.cluster import PATIENCE, NodeProcess, TestCluster, eventually, free_ports
from tests.support.load import acknowledged

pytestmark = pytest.mark.cluster


def cli(*words: str, code: int = 0) -> str:
    """The command line in this process: starting Python takes longer than what is asked."""
    ended = CliRunner().invoke(app, list(words))
    assert ended.exit_code == code, f"{ended.output} {ended.exception}"
    return ended.stdout if code == 0 else ended.output


def add(node: NodeProcess, work: str) -> bool:
    return node.post("/work/add", {"work_id": work, "work_type": "validation"}).is_success


def work_of(node: NodeProcess) -> set[str]:
    return set(node.get("/state/dump?table=work")["tables"]["work"])


def started(node: NodeProcess, **changes: Any) -> NodeProcess:
    again = replace(node, process=None, **changes)
    again.start()
    return again


def test_a_backup_under_load_is_the_state_of_one_entry_and_a_new_cluster_goes_on_from_it(
    cluster: TestCluster, tmp_path: Path
) -> None:
    node, file = cluster.nodes["f1"], tmp_path / "state.backup"
    with acknowledged(cluster.nodes["v2"], "before", "validation") as added:
        eventually(lambda: len(added) > 20, "some acknowledged items")
        certain = set(added)
        taken = json.loads(cli("backup", str(file), "--json", "--api", node.url))
    index = str(taken["index"])

    def live() -> Any:
        """The voter's own files tell what the state was at that entry."""
        return json.loads(
            cli("state", "dump", "--json", "--data-dir", str(cluster.nodes["v3"].folder), "--index", index)
        )

    eventually(lambda: cluster.nodes["v3"].get("/raft/state")["applied"] > taken["index"] + 2, "the voter to be there")
    then = live()
    assert then["digest"] == taken["digest"]
    assert certain <= set(then["tables"]["work"])

    port, raft = free_ports(2)
    where, folder = f"n1=127.0.0.1:{port}/{raft}", tmp_path / "n1"
    cli("restore", str(file), "--data-dir", str(folder), "--cluster", where)
    restored = json.loads(cli("state", "dump", "--json", "--data-dir", str(folder)))
    assert restored["index"] == taken["index"]
    assert restored["cluster_id"] != taken["cluster_id"]
    same = set(then["tables"]) - {"cluster", "events", "voters"}
    assert {t: restored["tables"][t] for t in same} == {t: then["tables"][t] for t in same}

    new = NodeProcess("n1", where, port, folder, "voter", 0)
    new.start()
    try:
        eventually(lambda: new.get("/status")["ready"], "the new cluster to be ready", 60.0)
        assert add(new, "after")
        assert work_of(new) == {*then["tables"]["work"], "after"}
        assert new.get("/raft/state")["applied"] > taken["index"]
    finally:
        new.kill()


def test_a_cluster_that_lost_two_of_three_voters_goes_on_from_the_third(cluster: TestCluster) -> None:
    keep, follower = cluster.nodes["v2"], cluster.nodes["f1"]
    assert all(add(keep, f"kept{n}") for n in range(10))
    old = keep.get("/status")["cluster_id"]
    cluster.same_digest()
    kept = work_of(keep)
    for name in ("v1", "v3"):
        cluster.nodes[name].kill()
    assert "a node runs on the data directory" in cli("raft", "verify", "--data-dir", str(keep.folder), code=2)
    keep.kill()

    member = next(m for m in keep.cluster.split(",") if m.startswith("v2="))
    words = ("raft", "recover", "--data-dir", str(keep.folder), "--keep", member)
    assert "what only the lost voters have is gone" in cli(*words, code=2)
    assert "the old files are in" in cli(*words, "--yes-i-have-lost-quorum")

    again = cluster.nodes["v2"] = started(keep, cluster=member)
    eventually(lambda: again.get("/status")["ready"], "the recovered cluster to be ready", 60.0)
    assert again.get("/status")["cluster_id"] != old
    assert kept <= work_of(again)
    assert add(again, "new")

    # A follower notices, leaves, and begins anew in the new cluster.
    assert follower.process is not None
    assert follower.process.wait(30 * PATIENCE) == 75
    assert "the voters are of cluster" in follower.log
    follower.start()
    eventually(lambda: "new" in work_of(follower), "the follower to follow the new cluster", 60.0)

    # A lost voter that comes back on its old files is not let in, and changes nothing.
    lost = cluster.nodes["v1"]
    lost.start()
    eventually(
        lambda: any("belongs to cluster" in s for s in lost.get("/status")["refused"].values()), "a refusal", 30.0
    )
    assert not lost.get("/status")["ready"]
    lost.kill()
    assert again.get("/status")["voters"] == ["v2"]

    # Without them it comes as a follower, and is made a voter again.
    (lost.folder / "raft").rename(lost.folder / "raft.old")
    lost.start()
    eventually(lambda: lost.get("/status")["ready"], "the replaced voter to follow", 60.0)
    eventually(
        lambda: "voters from entry" in cli("voters", "add", "v1", "--api", again.url), "the voter to be added", 60.0
    )
    eventually(lambda: lost.get("/status")["voters"] == ["v1", "v2"], "the voter to know that it counts", 60.0)
    assert "new" in work_of(lost)
