"""Voters without Raft and a network without sockets, for followers: applications by host, any of them down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from executors.blobs import Blobs
from executors.logs import Logs
from ringrift_cluster.api.app import create_app
from ringrift_cluster.api.services import AgentStatus, Services
from ringrift_cluster.feed import wire
from ringrift_cluster.feed.router import FeedRouter
from ringrift_cluster.raft.window import Applied, Window
from ringrift_cluster.replica import Proposed
from statemachine.entries import encode_entry
from statemachine.machine import Machine
from statemachine.snapshot import freeze, header, write
from statemachine.values import Beat
from tests.support.memory_replica import MemoryReplica
from tests.support.streaming import Pipe, Streaming


@dataclass(frozen=True)
class File:
    path: Path


class Voter(MemoryReplica):
    """Applies at once, keeps a window, writes snapshots. Several may share one log: `follow` repeats it."""

    def __init__(self, node_id: str, directory: Path, *, keep: int = 1000) -> None:
        super().__init__(node_id)
        self.directory = directory
        self.window = Window(keep, 1 << 30)
        self.snapshots = 0
        self.beats: list[Beat] = []
        self.followers: list[Voter] = []
        #: raft indexes without an entry of ours, as no-ops leave them
        self.gap = 0

    def commit(self, commands: Sequence[bytes]) -> Proposed:
        self.proposed += commands
        index = self.machine.index + 1 + self.gap
        self.gap = 0
        self._elapsed_ms += 1
        entry = encode_entry(1, self._elapsed_ms, commands)
        results = self.take(index, entry)
        for other in self.followers:
            other.take(index, entry)
        return Proposed(index, self.says.term, results)

    def take(self, index: int, entry: bytes) -> tuple[Any, ...]:
        results = self.machine.apply(index, self.says.term, entry)
        self.window.append(Applied(index, self.says.term, entry, self.machine.chain))
        self.window.wake()
        if self._grown is not None:
            self._grown.set()
            self._grown = None
        return tuple(results)

    def adopt(self, machine: Machine) -> None:
        self.machine = machine
        self.window.restart(machine.index)

    def feed_since(self, index: int, limit: int = 1000) -> Sequence[Applied] | None:
        return self.window.since(index, limit)

    def subscribe(self, wake: Callable[[], None]) -> int:
        return self.window.subscribe(wake)

    def unsubscribe(self, ticket: int) -> None:
        self.window.unsubscribe(ticket)

    async def snapshot_file(self, max_behind: int = 5_000) -> File:
        self.snapshots += 1
        path = self.directory / f"{self.says.node_id}-{self.machine.index}.snap"
        frozen = freeze(self.machine)
        with path.open("wb") as out:
            write(frozen, header(frozen, self.says.cluster_id, self.says.voters), out)
        frozen.release()
        return File(path)

    async def record(self, beat: Beat) -> int:
        self.beats.append(beat)
        return self.commit(()).index


class Network(httpx.AsyncBaseTransport):
    """Applications by host name. A host in `down` refuses; `cut` breaks its answers after some bytes."""

    def __init__(self) -> None:
        self.apps: dict[str, Streaming] = {}
        self.down: set[str] = set()
        #: hosts whose answers are lost: the request arrives, the answer does not
        self.deaf: set[str] = set()
        self.cut: dict[str, int] = {}
        self.requests: list[httpx.Request] = []
        #: hosts that never answer until the event is set
        self.held: dict[str, asyncio.Event] = {}
        #: the feed's streams, which end when their host goes down
        self._streams: dict[str, list[Pipe]] = {}

    def take_down(self, *hosts: str) -> None:
        """They are gone, and what they were sending breaks off."""
        self.down.update(hosts)
        for host in hosts:
            for pipe in self._streams.pop(host, []):
                pipe.end(httpx.ReadError(f"{host} went down"))

    def add(self, host: str, app: Any) -> None:
        self.apps[host] = Streaming(app)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        self.requests.append(request)
        if host in self.down:
            raise httpx.ConnectError(f"{host} is down", request=request)
        if host in self.held:
            await self.held[host].wait()
        response = await self.apps[host].handle_async_request(request)
        if request.url.path == wire.ENTRIES and isinstance(response.stream, Pipe):
            self._streams.setdefault(host, []).append(response.stream)
            return response
        if host in self.deaf:
            raise httpx.ReadError(f"{host} fell silent", request=request)
        if host in self.cut:
            body = await response.aread()
            return httpx.Response(
                response.status_code, headers=response.headers, stream=_Cut(body, self.cut.pop(host), request)
            )
        return response


class _Cut(httpx.AsyncByteStream):
    def __init__(self, body: bytes, after: int, request: httpx.Request) -> None:
        self._body, self._after, self._request = body, after, request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._body[: self._after]
        if self._after < len(self._body):
            raise httpx.ReadError("the connection broke", request=self._request)


class Lazily:
    """An application that is made when it is first asked: making one takes a while."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._app is None:
            self._app = self._make()
        await self._app(scope, receive, send)


def services_of(replica: Voter, urls: dict[str, str], *, token: str | None = None) -> Services:
    """What a node would give its HTTP face."""
    return Services(
        replica=replica,
        heartbeats=replica,
        blobs=Blobs(replica.directory / "blobs"),
        logs=Logs(replica.directory),
        agent=lambda: AgentStatus(True),
        shutdown=lambda order: None,
        voters=urls,
        feed=FeedRouter(replica, beat_s=0.05),
        token=token,
    )


class Cluster:
    """Three voters of one log behind a network; `a` commits."""

    def __init__(self, directory: Path, *, keep: int = 1000, token: str | None = None) -> None:
        self.net = Network()
        self.voters = {name: Voter(name, directory, keep=keep) for name in ("a", "b", "c")}
        self.leader = self.voters["a"]
        self.leader.followers = [self.voters["b"], self.voters["c"]]
        self.urls = {name: f"http://{name}:8770" for name in self.voters}
        for name, voter in self.voters.items():
            if voter is not self.leader:
                voter.pretend(leader_id="a", role="voter")
                voter.propose = self.leader.propose  # type: ignore[method-assign]
            self.net.add(name, Lazily(lambda voter=voter: create_app(services_of(voter, self.urls, token=token))))

    def http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=self.net)
