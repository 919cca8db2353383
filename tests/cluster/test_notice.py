"""A machine that its provider takes away: its work goes on on another one, from the checkpoint that it sent away."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from statemachine import settings as st
from statemachine.commands import AddWork, ChangeSetting, PauseCluster
from tests.support.cluster import NodeProcess, TestCluster, eventually

pytestmark = pytest.mark.cluster

#: runs until it is stopped, and completes when it finds what an earlier attempt left
RESUMES = """
import json, os, signal, sys, time
if os.path.exists("checkpoint/at"):
    open("result.json", "w").write(json.dumps({"metrics": {"went on at": open("checkpoint/at").read()}}))
    sys.exit(0)
def end(*_):
    open("checkpoint/at", "w").write("a million")
    sys.exit(0)
signal.signal(15, end)
open("progress.jsonl", "w").write('{"counts": {"steps": 1}}\\n')
time.sleep(600)
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[TestCluster]:
    made = TestCluster(tmp_path, voters=1, followers=2)
    made.lay_out()
    for name in ("f1", "f2"):
        node = made.nodes[name]
        node.flags = (*node.flags, "--notice-file", str(tmp_path / f"{name}.notice"), "--notice-every-s", "0.5")
    try:
        for node in made.nodes.values():
            node.start()
        made.leader()
        for node in made.nodes.values():
            eventually(lambda node=node: node.get("/status")["ready"], f"{node.name} to be ready", 60.0)
        made.seed()
        yield made
    finally:
        made.stop()


def test_work_of_a_machine_that_is_taken_away_goes_on_on_another_one_from_its_checkpoint(cluster: TestCluster) -> None:
    voter = cluster.nodes["v1"]
    argv = (sys.executable, "-c", RESUMES.replace("{", "{{").replace("}", "}}"))
    voter.propose(
        ChangeSetting("template/resumes", st.encode(st.Template(argv=argv))),
        AddWork("w", "task", template="resumes"),
    )

    def running() -> NodeProcess | None:
        (job,) = voter.get("/jobs?work_type=task")["active_jobs"] or (None,)
        return cluster.nodes[job["peer"]] if job and job["counts"] else None

    first = eventually(running, "the program to have begun", 60.0)
    voter.propose(PauseCluster(True, "a test"))  # so that nobody fetches it from the machine while that is there
    (cluster.folder / f"{first.name}.notice").write_text("in two minutes")

    def sent_away() -> dict[str, Any] | None:
        rows = voter.get("/state/dump?table=artifacts")["tables"]["artifacts"].values()
        return next((row for row in rows if row["kind"] == "checkpoint" and "v1" in row["holders"]), None)

    def completed() -> dict[str, Any] | None:
        row: dict[str, Any] = voter.get("/work/w")["work"]
        return row if row["status"] == "completed" else None

    def told() -> bool:
        peers = {row["peer"]: row for row in voter.get("/peers")["peers"]}
        return "in two minutes" in peers[first.name]["facts"].get("not_ready", "")

    eventually(sent_away, "the checkpoint to be on the storage node", 60.0)
    eventually(told, "the cluster to know of the notice", 60.0)
    first.kill()
    voter.propose(PauseCluster(False))
    done = eventually(completed, "the item to be completed elsewhere", 90.0)
    assert done["metrics"] == {"went on at": "a million"}
    last = voter.get(f"/jobs/{done['job']}")["job"]["peer"]
    assert last != first.name
