"""Followers that nobody can dial: everything that is asked of them comes through the connections they opened."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from statemachine import settings as st
from statemachine.commands import ChangeSetting
from tests.nemesis.cluster import NemesisCluster
from tests.nemesis.links import SHUT, towards
from tests.nemesis.locks import Locks
from tests.nemesis.network import CLIENTS, Network, missing, sweep
from tests.support.cluster import PATIENCE, NodeProcess, eventually

#: says a line now and then until it is enough, and leaves a file
TALKER = """
import json, os, pathlib, sys, time
folder = pathlib.Path(os.environ["RINGRIFT_JOB_DIR"])
n = 0
while n < 3 or not pathlib.Path(sys.argv[1]).exists():
    print(f"line {n}", flush=True)
    time.sleep(0.1)
    n += 1
(folder / "out").mkdir(exist_ok=True)
(folder / "out" / "games.txt").write_text("games")
counts = {"games": 1}
result = {"counts": counts, "outputs": [{"path": "games.txt", "kind": "games", "counts": counts}]}
(folder / "result.json").write_text(json.dumps(result))
"""


@dataclass
class HiddenCluster(NemesisCluster):
    """Voters that everybody can dial, and followers that can only dial out; TLS and tokens everywhere."""

    __test__ = False

    followers: int = 2
    spares: tuple[str, ...] = ()

    def start(self) -> None:
        self.lay_out()
        for node in self.voter_nodes:
            node.start()
        leader = self.leader()
        assert self.locks is not None
        self.locks.let_in(leader)
        self.nodes["f1"].cpu_slots = 1
        for node in self.nodes.values():
            node.token = self.locks.token
            if not node.alive:
                node.start()

    def seed(self) -> None:
        talker = self.folder / "talker.py"
        talker.write_text(TALKER)
        timing = st.Timing(
            heartbeat_ms=1_000,
            suspect_after_ms=6_000,
            dead_after_ms=20_000,
            lease_ms={"default": 30_000},
            grace_ms=500,
        )
        template = st.Template(argv=("{python}", str(talker), "{until}"), require_outputs=("games",))
        files = st.Artifacts(collect_ms=200, manifest_age_ms=200, push_after_ms=400)
        self.leader().propose(
            ChangeSetting("timing", st.encode(timing)),
            ChangeSetting("artifacts", st.encode(files)),
            ChangeSetting("template/talker", st.encode(template)),
        )

    def command(self, place: str, *arguments: str) -> subprocess.Popen[str]:
        """`ringrift-node` at a place of the network."""
        assert self.network is not None
        assert self.locks is not None
        environ = {
            **os.environ,
            "RINGRIFT_TLS_CA": str(self.folder / "ca.crt"),
            "RINGRIFT_AUTH_TOKEN": self.locks.token,
        }
        return subprocess.Popen(
            [*self.network.launcher(place), sys.executable, "-m", "ringrift_cluster", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ,
        )  # fmt: skip

    def run(self, place: str, *arguments: str) -> str:
        with self.command(place, *arguments) as process:
            said, _ = process.communicate(timeout=60 * PATIENCE)
        assert process.returncode == 0, said
        return said

    @property
    def voters_api(self) -> str:
        return ",".join(node.url for node in self.voter_nodes if node.alive)

    def channels(self) -> dict[str, str]:
        """Which voter has each follower's channel."""
        found = next(node for node in self.voter_nodes if node.alive).get("/relay/status")
        return {row["node_id"]: row["voter"] for row in found["channels"]}

    def add(self, work: str, until: Path) -> str:
        body = {"work_id": work, "work_type": "export", "template": "talker", "params": {"until": str(until)}}
        self.leader().post("/work/add", body).raise_for_status()
        return f"{work}.1"

    def job(self, job: str) -> Any:
        return next(node for node in self.voter_nodes if node.alive).get(f"/jobs/{job}")["job"]


def in_a_thread(work: Callable[[], None]) -> None:
    """A thread that enters a namespace does not come back, and this process goes on in its own."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised below, where somebody sees it
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


@contextlib.contextmanager
def hidden(folder: Path) -> Iterator[HiddenCluster]:
    """The cluster, run from the clients' namespace, which this thread is in from now on."""
    names = HiddenCluster.names(3, 2)
    with Network(names, 1) as network, network.rules(towards([CLIENTS, *names], ["f1", "f2"], SHUT)):
        made = HiddenCluster(folder, network=network, locks=Locks(folder))
        try:
            made.start()
            made.seed()
            yield made
        finally:
            made.stop()


def test_a_follower_that_nobody_can_dial_is_reached_through_its_channel(tmp_path: Path) -> None:
    if why := missing():
        pytest.skip(why)
    sweep()

    def scenario() -> None:
        with hidden(tmp_path) as cluster:
            f1 = cluster.nodes["f1"]
            eventually(lambda: {"f1", "f2"} <= cluster.channels().keys(), "the followers' channels", 60.0)
            with pytest.raises(httpx.ConnectTimeout):
                httpx.get(f"{f1.url}/health", verify=cluster.locks.context, timeout=0.5)  # type: ignore[union-attr]
            _its_log_is_followed_while_its_voter_dies(cluster)
            _it_is_looked_at(cluster)
            _a_template_is_tried_on_it(cluster)
            _it_begins_anew_and_keeps_its_job(cluster, f1)
            cluster.run(CLIENTS, "shutdown", "f1", "--api", cluster.voters_api)
            assert f1.process is not None
            assert f1.process.wait(20 * PATIENCE) == 0

    in_a_thread(scenario)


def _its_log_is_followed_while_its_voter_dies(cluster: HiddenCluster) -> None:
    """Live, through another follower that cannot be dialled either; then its file is at a voter."""
    enough = cluster.folder / "enough-one"
    job = cluster.add("one", enough)
    eventually(lambda: cluster.job(job)["actual"] == "running", "the job to run")
    assert cluster.job(job)["peer"] == "f1"
    with cluster.command("f2", "logs", job, "-f", "--api", cluster.nodes["f2"].url) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == "line 0\n"
        before = eventually(lambda: cluster.channels().get("f1", ""), "f1 to have its channel, which may just move")
        cluster.nodes[before].kill()
        eventually(lambda: cluster.channels().get("f1", before) != before, "a new channel", 60.0)
        enough.touch()
        said = following.stdout.read()
    assert following.returncode == 0, said
    lines = said.splitlines()
    assert lines == [f"line {n}" for n in range(1, len(lines) + 1)], "lines were lost or shown twice"
    (whole,) = (cluster.folder / "f1" / "jobs").glob("one.1-*/stdout.log")
    assert lines[-1:] == whole.read_text().splitlines()[-1:], "the end was not shown"
    cluster.nodes[before].start()
    voters = set(cluster.voting)
    (file,) = eventually(lambda: cluster.leader().get("/artifacts?kind=games")["artifacts"], "the file's row")
    digest = file["digest"]
    eventually(
        lambda: voters & set(cluster.leader().get(f"/artifacts/{digest}/info")["artifact"]["holders"]),
        "the file to reach a voter",
    )


def _it_is_looked_at(cluster: HiddenCluster) -> None:
    node = cluster.leader()
    assert node.get("/relay/f1/health")["node_id"] == "f1"
    metrics = httpx.get(
        f"{node.url}/relay/f1/metrics",
        headers=node.headers,
        verify=cluster.locks.context,
        timeout=10,  # type: ignore[union-attr]
    ).text
    assert "relay_channel_open 1.0" in metrics
    refused = node.post("/relay/forward", {"node_id": "f1", "path": "/settings"})
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")


def _a_template_is_tried_on_it(cluster: HiddenCluster) -> None:
    said = cluster.run(
        "f2", "workload", "try", "talker", "-p", "until=/", "--node", "f1", "--json",
        "--api", cluster.nodes["f2"].url,
    )  # fmt: skip
    lines = [json.loads(line) for line in said.splitlines()]
    assert lines[0]["type"] == "started"
    assert lines[-1]["report"]["verdict"] == "completed", lines[-1]
    assert lines[-1]["stdout"] == "line 0\nline 1\nline 2\n"


def _it_begins_anew_and_keeps_its_job(cluster: HiddenCluster, f1: NodeProcess) -> None:
    enough = cluster.folder / "enough-two"
    job = cluster.add("two", enough)
    eventually(lambda: cluster.job(job)["actual"] == "running", "the second job to run")
    assert f1.process is not None
    cluster.run(CLIENTS, "restart", "f1", "--api", cluster.voters_api)
    eventually(lambda: f1.log.count("event=node_started") == 2, "the node to begin anew", 60.0)
    assert f1.process.poll() is None, "it is another process"
    eventually(lambda: "adopted attempts=1" in f1.log, "its job to be adopted")
    enough.touch()
    eventually(lambda: cluster.job(job)["actual"] == "succeeded", "the job to end")
