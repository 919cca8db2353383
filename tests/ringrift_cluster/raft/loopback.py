"""Real voters on loopback, in this process, with files below a test's directory."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from ringrift_cluster.raft.conf import Limits, Timing, VoterConfig
from ringrift_cluster.raft.engine import RaftReplica
from ringrift_cluster.replica import NoLeader
from statemachine.commands import AddWork, encode_command

A = TypeVar("A")

FAST = Timing(heartbeat_s=0.05, election_min_s=0.3, election_max_s=0.6, leader_wait_s=2.0)
SECRET = b"a secret of this test"


def free_ports(count: int) -> list[int]:
    """Ports that the kernel just gave out and that are free again."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in held]
    for one in held:
        one.close()
    return ports


def add(name: str) -> bytes:
    return encode_command(AddWork(work=name, work_type="t"))


async def until(true: Callable[[], bool], what: str, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        await asyncio.sleep(0.005)


class Loopback:
    """A cluster; `async with` starts its voters and stops those that still run."""

    def __init__(self, directory: Path, names: str = "abc", *, limits: Limits | None = None) -> None:
        self.directory = directory
        ports = free_ports(len(names))
        self.voters = {n: f"127.0.0.1:{p}" for n, p in zip(names, ports, strict=True)}
        self.limits = limits or Limits()
        self.running: dict[str, RaftReplica] = {}
        self.halted: dict[str, str] = {}

    def config(self, name: str, *, secret: bytes | None = SECRET) -> VoterConfig:
        return VoterConfig(
            node_id=name,
            voters=self.voters,
            elsewhere=self.voters,
            data_dir=self.directory / name,
            secret=secret,
            timing=FAST,
            limits=self.limits,
        )

    async def start(self, *names: str) -> None:
        for name in names or tuple(self.voters):
            self.running[name] = await asyncio.to_thread(
                RaftReplica.start, self.config(name), on_halt=lambda s, name=name: self.halted.update({name: s})
            )

    async def stop(self, name: str) -> None:
        await self.running.pop(name).stop()

    async def leader(self) -> RaftReplica:
        await until(lambda: self._leader() is not None, "a ready leader")
        leader = self._leader()
        assert leader is not None
        return leader

    async def of_leader(self, order: Callable[[RaftReplica], Awaitable[A]]) -> A:
        """What the leader answers to an order that only a leader takes and that may be repeated.

        A busy machine can hold all voters of this process up for longer than an election timeout, so leadership may
        move between finding the leader and asking it.
        """
        while True:
            try:
                return await order(await self.leader())
            except NoLeader:
                await asyncio.sleep(0.02)

    def _leader(self) -> RaftReplica | None:
        for replica in self.running.values():
            status = replica.status()
            if status.role == "leader" and status.ready:
                return replica
        return None

    async def others(self) -> list[RaftReplica]:
        leader = await self.leader()
        await until(lambda: all(r.status().ready for r in self.running.values()), "everyone is ready")
        return [r for r in self.running.values() if r is not leader]

    async def __aenter__(self) -> Loopback:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self.running):
            await self.stop(name)
