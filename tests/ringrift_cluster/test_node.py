"""How a node meets trouble with its agent, its cluster and its own leaving."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from executors.agent import Agent
from executors.heartbeat import AgentRefused
from executors.ledger import LedgerError
from executors.ports import ClusterUnavailable
from ringrift_cluster.api.services import ShutdownOrder
from ringrift_cluster.departure import EXIT_AGAIN, EXIT_HALTED, EXIT_SETUP
from ringrift_cluster.node import Node
from ringrift_cluster.port import OLD_VIEW_MS, ReplicaPort
from ringrift_cluster.replica import ReadOnly
from ringrift_cluster.seat import Seat
from ringrift_cluster.settings import resolve
from ringrift_cluster.sources import load
from ringrift_cluster.vitals import Executor
from ringrift_cluster.watch import Watch
from statemachine.commands import ReleaseJob
from tests.executors.agents import OPTIONS, WAIT, node, program, strays_of
from tests.support.cluster import NodeProcess, eventually, free_ports
from tests.support.memory_replica import MemoryReplica

#: a node process with one function of the project replaced by one that hangs
HANGING = """
import asyncio, runpy, sys, time
import executors.agent, ringrift_cluster.node
async def hang(*_):
    await asyncio.sleep(600)
{patch}
sys.argv = ["ringrift-node", *sys.argv[1:]]
runpy.run_module("ringrift_cluster", run_name="__main__")
"""


class StubAgent:
    """Joins and does what it is told by `life`."""

    def __init__(self, life: Callable[[], Any], joined: bool) -> None:
        self._life = life
        self._joined = joined

    async def run(self) -> None:
        await self._life()

    def status(self) -> Any:
        return type("Status", (), {"joined": self._joined})


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Node]:
    config = resolve(
        load({"cluster": "a=127.0.0.1:9001", "node_id": "f1", "port": 9031, "data_dir": str(tmp_path)}),
        stored_id=None,
        hostname="box",
        fresh_id="f1",
    )
    with socket.socket() as listener:
        yield Node(config, listener, Seat.FOLLOWER)


def watch_of(one: Node) -> Watch:
    return Watch(one.config, one.departure, one.beside)


def lone_voter(folder: Path) -> NodeProcess:
    http, raft = free_ports(2)
    return NodeProcess("v1", f"v1=127.0.0.1:{http}/{raft}", http, folder, "voter", 1)


def hanging(voter: NodeProcess, patch: str) -> subprocess.Popen[str]:
    script = HANGING.format(patch=patch)
    process = subprocess.Popen(
        [sys.executable, "-c", script, *voter.command()[3:]], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    eventually(lambda: voter.get("/status")["ready"] and voter.get("/peers")["peers"], "the node to be ready", 30.0)
    return process


def test_an_agent_that_cannot_start_ends_its_node_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"this is no database " * 400)
    voter = lone_voter(tmp_path)
    ended = subprocess.run(voter.command(), capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == EXIT_SETUP, ended.stderr
    assert "Traceback" not in ended.stderr
    (said,) = [line for line in ended.stderr.splitlines() if line.startswith("ringrift-node:")]
    assert "ledger.sqlite cannot be opened" in said


def test_an_agent_that_fails_at_work_is_followed_by_another_and_its_node_stays(
    one: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringrift_cluster.supervise.FIRST_PAUSE_S", 0.01)

    async def go() -> None:
        hired: list[str] = []
        at_work = asyncio.Event()

        async def fail() -> None:
            raise LedgerError("the ledger cannot be read: disk I/O error; look at the disk")

        async def work() -> None:
            at_work.set()
            await asyncio.Event().wait()

        def hire(cluster_id: str) -> Any:
            hired.append(cluster_id)
            return StubAgent(fail if len(hired) == 1 else work, joined=True)

        executor = Executor(MemoryReplica(), hire)
        task = asyncio.create_task(one._supervised("agent", lambda: one._obey(executor)))
        await asyncio.wait_for(at_work.wait(), 10)
        assert hired == ["memory", "memory"]
        assert one._reports["agent"].failures == 1
        assert not one.departure.begun()
        task.cancel()

    asyncio.run(go())


def test_an_agent_that_is_refused_takes_its_node_down_and_is_not_followed(
    one: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    async def go() -> None:
        async def refused() -> None:
            raise AgentRefused("a newer process of f1 has joined; this one must stop")

        executor = Executor(MemoryReplica(), lambda _: StubAgent(refused, joined=True))  # type: ignore[arg-type, return-value]
        await one._obey(executor)
        assert one.departure.begun()
        await executor.run()  # nothing is hired any more

    asyncio.run(go())
    assert one.departure.exit_code == EXIT_SETUP
    assert "a newer process of f1 has joined" in capsys.readouterr().err


def test_a_voter_writes_snapshots_as_often_as_it_is_told(tmp_path: Path) -> None:
    voter = lone_voter(tmp_path / "v1")
    often = replace(voter, flags=("--snapshot-every-entries", "100"))
    often.start()
    try:
        eventually(lambda: often.get("/status")["ready"], "the voter to be ready", 30.0)

        def written() -> list[Path]:
            for _ in range(20):
                often.post("/work/add", {"work_type": "validation"})
            return list((often.folder / "raft" / "snapshots").glob("*.snap"))

        first = eventually(written, "a snapshot after a hundred entries")
        assert int(first[0].name.partition("-")[0]) < 300
    finally:
        often.kill()


def test_a_follower_that_halts_ends_its_node(one: Node, capsys: pytest.CaptureFixture[str]) -> None:
    replica = MemoryReplica()
    executor = Executor(replica, lambda _: pytest.fail("nobody is hired here"))
    watch_of(one).look(replica, executor)  # type: ignore[arg-type]
    assert not one.departure.begun()
    replica.says = replace(replica.says, halted="f1 stopped at entry 7: the digests differ")
    watch_of(one).look(replica, executor)  # type: ignore[arg-type]
    assert one.departure.begun()
    assert one.departure.exit_code == EXIT_HALTED
    assert capsys.readouterr().err == "ringrift-node: f1 stopped at entry 7: the digests differ\n"


def test_a_cluster_that_changes_under_a_follower_ends_its_node(one: Node, capsys: pytest.CaptureFixture[str]) -> None:
    replica = MemoryReplica()
    executor = Executor(replica, lambda _: pytest.fail("nobody is hired here"))
    executor.cluster_id = "memory"
    watch_of(one).look(replica, executor)  # type: ignore[arg-type]
    assert not one.departure.begun()
    replica.says = replace(replica.says, cluster_id="another")
    watch_of(one).look(replica, executor)  # type: ignore[arg-type]
    assert one.departure.begun()
    assert one.departure.exit_code == EXIT_AGAIN
    assert "cluster another now, the jobs here are of memory" in capsys.readouterr().err


def test_a_disk_that_hangs_does_not_keep_a_node_from_leaving(tmp_path: Path) -> None:
    process = hanging(lone_voter(tmp_path), "executors.agent.Agent._close = lambda self: time.sleep(600)")
    try:
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 0, said
        assert time.monotonic() - began < 10
        assert "event=agent_left_behind" in said
        assert "event=node_left" in said
    finally:
        process.kill()


def test_a_node_that_shall_begin_anew_leaves_that_to_its_service_manager_when_its_disk_hangs(tmp_path: Path) -> None:
    voter = lone_voter(tmp_path)
    process = hanging(voter, "executors.agent.Agent._close = lambda self: time.sleep(600)")
    try:
        voter.post("/admin/restart", {"reason": "a new release"})
        _, said = process.communicate(timeout=30)
        assert process.returncode == EXIT_AGAIN, said
        assert "event=agent_left_behind" in said
    finally:
        process.kill()


def test_so_does_one_that_becomes_a_voter_or_ceases_to_be_one(one: Node) -> None:
    assert one.departure.code_when_stuck == 0
    one.departure.change_seat(Seat.VOTER, "f1 is a voter now")
    assert one.departure.code_when_stuck == EXIT_AGAIN
    one.departure.obey_signal(signal.SIGTERM)
    assert one.departure.code_when_stuck == 0


def test_a_second_signal_while_leaving_ends_the_node_at_once(tmp_path: Path) -> None:
    process = hanging(lone_voter(tmp_path), "ringrift_cluster.node.Node._depart = hang")
    try:
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        while "event=node_leaving" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
        assert process.returncode == 128 + signal.SIGINT
    finally:
        process.kill()


def test_a_signal_to_leave_outweighs_a_restart_that_was_ordered_before_it(one: Node) -> None:
    one.departure.begin(ShutdownOrder("a new release", stop_jobs=False, restart=True))
    assert one.departure.restarts
    one.departure.obey_signal(signal.SIGTERM)
    assert not one.departure.restarts


def test_jobs_of_an_earlier_process_are_stopped_although_the_node_never_learnt_its_cluster(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as before:
            before.cluster.setting("template/t", program(WAIT))
            before.cluster.add("w", "t")
            await before.says(before.cluster.place("w", "n1").job, "up")
            await before.crash()
            assert strays_of(tmp_path)

            def hire(cluster_id: str) -> Agent:
                assert cluster_id == ""
                return Agent(
                    before.cluster,
                    data_dir=tmp_path,
                    options=OPTIONS,
                    peer="n1",
                    role="follower",
                    address="http://n1:1",
                )

            replica = MemoryReplica()
            replica.says = replace(replica.says, cluster_id="")
            executor = Executor(replica, hire)
            life = asyncio.create_task(executor.run())
            await asyncio.sleep(0)
            await executor.stop(stop_jobs=True)
            await life
            assert not strays_of(tmp_path)

    asyncio.run(asyncio.wait_for(go(), 40))


def test_a_ledger_that_cannot_be_opened_does_not_keep_a_node_from_leaving(caplog: pytest.LogCaptureFixture) -> None:
    def hire(_: str) -> Agent:
        raise LedgerError("the ledger cannot be opened: disk I/O error")

    asyncio.run(Executor(MemoryReplica(), hire).stop(stop_jobs=True))
    assert "event=jobs_not_stopped" in caplog.text


def test_a_read_only_or_lagging_replica_says_that_its_node_should_be_given_nothing() -> None:
    replica = MemoryReplica()
    port = ReplicaPort(replica, lambda _: asyncio.sleep(0, 0))
    assert port.unfit() == ""
    replica.says = replace(replica.says, contact_age_ms=OLD_VIEW_MS + 1)
    assert port.unfit() == "it has not heard of the cluster's leader lately"
    replica.says = replace(replica.says, read_only="the cluster is at feature level 2; install the newer release here")
    assert port.unfit() == "the cluster is at feature level 2; install the newer release here"


def test_a_read_only_replica_takes_no_proposal_through_the_port() -> None:
    replica = MemoryReplica()
    replica.refusing = ReadOnly("install the newer release here")

    async def go() -> None:
        with pytest.raises(ClusterUnavailable, match="install the newer release"):
            await ReplicaPort(replica, lambda _: asyncio.sleep(0, 0)).propose(
                [ReleaseJob("w.1", 1, "the node is stopping")]
            )

    asyncio.run(go())
