"""Hosts without an agent in a cluster of real processes: a tournament on two of them, by way of their gateway."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from executors import shim
from statemachine import settings as st
from statemachine.commands import ChangeSetting
from tests.support.cluster import TestCluster, eventually
from tests.support.sshd import Sshd

pytestmark = pytest.mark.cluster

PLAY = """
import os, sys, time
a, b, games, hold = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
if a == "D1" and "/h1/" in os.getcwd():
    sys.exit("the engine is broken on this host")
while b == "D9" and not os.path.exists(hold):
    time.sleep(0.05)
print(f"score {games - 3}-1-2", flush=True)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestCluster, Path]]:
    """A voter, a gateway, and two hosts that only the gateway reaches."""
    folder = tmp_path_factory.mktemp("hosts")
    servers = [Sshd("asyncssh", folder / f"sshd-{name}") for name in ("h1", "h2")]
    made = TestCluster(folder, voters=1, followers=1, cpu_slots=0)
    try:
        made.lay_out()
        gateway = made.nodes["f1"]
        gateway.flags += ("--ssh-key-file", str(servers[0].key_file))
        for node in made.nodes.values():
            node.start()
        made.leader()
        made.seed()
        play = folder / "play.py"
        play.write_text(PLAY)
        template = st.Template(
            argv=("{python}", str(play), "{participant_a}", "{participant_b}", "{games}", str(folder / "hold")),
            summary=r"score (?P<wins_a>\d+)-(?P<draws>\d+)-(?P<wins_b>\d+)",
        )
        changes = [ChangeSetting("template/tournament", st.encode(template))]
        for number, server in enumerate(servers, 1):
            host = st.Host(
                gateway="f1",
                address="127.0.0.1",
                port=server.port,
                user=server.user,
                host_key=server.host_key,
                key_file=str(server.key_file) if number == 2 else "",
                python=sys.executable,
                root=str(folder / "roots"),
                slots=2,
            )
            changes.append(ChangeSetting(f"host/h{number}", st.encode(host)))
        made.leader().propose(*changes)
        yield made, folder
    finally:
        made.stop()
        for path in folder.glob("roots/*/*/jobs/*"):
            shim.end_group(0, str(path))
        for server in servers:
            server.kill()


def status(cluster: TestCluster, run_id: str) -> Any:
    return cluster.nodes["v1"].get(f"/ssh_tournament/status?run_id={run_id}")


def test_a_tournament_is_played_on_hosts_and_what_one_of_them_fails_another_one_plays(
    site: tuple[TestCluster, Path],
) -> None:
    cluster, _ = site
    body = {"run_id": "t1", "board": "square8", "tiers": "D1,D2,D3", "games_per_matchup": 10, "retries": 2}
    eventually(lambda: {"h1", "h2"} <= {p["peer"] for p in cluster.nodes["v1"].get("/peers")["peers"]}, "hosts to join")
    answer = cluster.nodes["f1"].post("/ssh_tournament/run", body)
    assert answer.is_success, answer.text
    eventually(lambda: status(cluster, "t1")["status"] == "completed", "the tournament to end", 60)
    assert cluster.nodes["f1"].post("/ssh_tournament/run", body).json()["status"] == "repeated"
    now = status(cluster, "t1")
    assert (now["items_done"], now["games_done"]) == (3, 30)
    assert [(p["wins_a"], p["draws"], p["wins_b"]) for p in now["pairs"]] == [(7, 1, 2)] * 3
    assert {item["host"] for item in now["items"] if item["a"] == "D1"} == {"h2"}
    failed = [item for item in now["items"] if item.get("failed_on")]
    assert all(item["failed_on"] == ["h1"] for item in failed)
    job = now["items"][0]["work_id"] + f".{now['items'][0]['attempts']}"
    voter = cluster.nodes["v1"]
    assert "score 7-1-2" in httpx.get(f"{voter.url}/jobs/{job}/log", timeout=10).text


def test_a_gateway_that_is_killed_finds_its_hosts_jobs_running_and_counts_them_once(
    site: tuple[TestCluster, Path],
) -> None:
    cluster, folder = site
    gateway = cluster.nodes["f1"]
    body = {"run_id": "t2", "board": "square8", "tiers": "D5,D9", "games_per_matchup": 8}
    assert gateway.post("/ssh_tournament/run", body).is_success
    eventually(lambda: status(cluster, "t2")["by_status"].get("running"), "the pair to be played")
    gateway.kill()
    gateway.start()
    eventually(lambda: gateway.get("/status")["ready"], "the gateway to be back")
    (folder / "hold").touch()
    eventually(lambda: status(cluster, "t2")["status"] == "completed", "the pair to be counted", 60)
    (item,) = status(cluster, "t2")["items"]
    assert (item["attempts"], status(cluster, "t2")["games_done"]) == (1, 8)
