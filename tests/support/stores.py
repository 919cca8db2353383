"""Several nodes' stores on one law: real files, real HTTP on loopback, one process and one event loop."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from executors.bench import Bench
from executors.blobs import Blobs
from executors.drivers.local import Local
from executors.host import HostClock
from executors.logs import Logs
from executors.options import Options
from executors.storage import Storage
from executors.transfers import Patience, Transfers, Vault
from ringrift_cluster.api.app import create_app
from ringrift_cluster.api.services import AgentStatus, Services
from statemachine.commands import ChangeSetting, JoinPeer, RegisterArtifact
from statemachine.queries import ResolvedInput, resolve
from statemachine.rows import Artifact
from statemachine.values import PeerFacts
from tests.executors.memory import MemoryCluster
from tests.ringrift_cluster.api.conftest import DirectHeartbeats
from tests.support.memory_replica import MemoryReplica

EAGER = Options(
    storage_every_s=0.02,
    scrub_bytes_per_s=0.0,
    blob_min_age_s=3600.0,
    evict_min_age_s=0.0,
    patience=Patience(unreachable_s=5.0, busy_s=60.0, pause_s=0.02),
)


class Site:
    """The nodes of one test."""

    def __init__(self, root: Path, url: str, http: httpx.AsyncClient, pool: ThreadPoolExecutor) -> None:
        self.root = root
        self.url = url
        self.http = http
        self.pool = pool
        self.cluster = MemoryCluster()
        self.nodes: dict[str, Node] = {}

    def node(
        self,
        name: str,
        *labels: str,
        quota_bytes: int = 0,
        reachable: bool = True,
        options: Options = EAGER,
        vault: Vault | None = None,
    ) -> Node:
        """A node joins; one that is not reachable dials out only, one with a `vault` has access to an object store."""
        address = f"{self.url}/{name}" if reachable else "http://127.0.0.1:1"
        facts = PeerFacts(labels=(*labels, *([vault.name] if vault else [])), store_bytes=quota_bytes)
        self.cluster.must(JoinPeer(name, 1, f"boot-{name}", "follower", address, facts))
        made = self.nodes[name] = Node(self, name, quota_bytes, options, vault)
        return made

    def row(self, digest: str) -> Artifact:
        return self.cluster.state.artifacts[digest]

    def gates(self, digest: str) -> tuple[tuple[str, str], ...]:
        """The nodes that can get a file from an object store."""
        return resolve(self.cluster.state, "", digest).gates

    def rules(self, text: str) -> None:
        self.cluster.must(ChangeSetting("artifacts", text))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        _, name, path = scope["path"].split("/", 2)
        await self.nodes[name].app({**scope, "path": f"/{path}"}, receive, send)


class Node:
    def __init__(self, site: Site, name: str, quota_bytes: int, options: Options, vault: Vault | None) -> None:
        self.site = site
        self.name = name
        self.blobs = Blobs(site.root / name, site.pool, quota_bytes)
        self.transfers = Transfers(
            self.blobs,
            site.http,
            name,
            vault=vault,
            patience=options.patience,
            rng=random.Random(f"transfers of {name}"),
        )
        self.bench = Bench(
            cluster=site.cluster,
            clock=HostClock(),
            ledger=None,  # type: ignore[arg-type]
            blobs=self.blobs,
            disk=site.pool,
            starts=site.pool,
            data_dir=site.root / name,
            driver=Local(site.root / name, site.pool, site.pool, "boot"),
            margin_s=1.0,
            max_log_bytes=1,
            wake=lambda: None,
            transfers=self.transfers,
        )
        self.storage = Storage(self.bench, options, name, random.Random(f"storage of {name}"))
        replica = MemoryReplica(name)
        replica.machine = site.cluster.machine
        self.services = Services(
            replica=replica,
            heartbeats=DirectHeartbeats(replica),
            blobs=self.blobs,
            logs=Logs(site.root / name),
            agent=lambda: AgentStatus(healthy=True),
            shutdown=lambda order: None,
            storage=self.storage.status,
            restore=self.storage.restore,
        )
        self.app = create_app(self.services)

    def make(self, data: bytes, kind: str = "games") -> str:
        """A file that this node made and holds."""
        digest = self.blobs.add(data)
        self.site.cluster.must(RegisterArtifact(digest, len(data), kind, "square8_2p", self.name))
        return digest

    async def fetch(self, digest: str) -> Path:
        async def again() -> ResolvedInput:
            return resolve(self.site.cluster.state, "", digest)

        return await self.transfers.fetch(await again(), again)


class Behind(MemoryCluster):
    """The way of one node to the cluster: what it proposes gets there, what it sees is from before there were files."""

    def __init__(self, cluster: MemoryCluster, peer: str, rules: str) -> None:
        super().__init__()
        row = cluster.state.peers[peer]
        join = JoinPeer(peer, row.incarnation, f"boot-{peer}", "follower", row.address, row.facts)
        self.must(join, ChangeSetting("artifacts", rules))
        self.propose = cluster.propose  # type: ignore[method-assign]


@asynccontextmanager
async def site(root: Path) -> AsyncIterator[Site]:
    """Serve the nodes of a test below http://127.0.0.1:PORT/NAME until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(4) as pool:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        limits = httpx.Limits(max_connections=400, max_keepalive_connections=100)
        async with httpx.AsyncClient(timeout=10.0, limits=limits) as http:
            made = Site(root, url, http, pool)
            config = uvicorn.Config(made, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            try:
                yield made
            finally:
                await http.aclose()
                server.should_exit = True
                await serving


@asynccontextmanager
async def looked_after(*nodes: Node) -> AsyncIterator[None]:
    """Run the upkeep of some nodes' files until the block ends."""
    tasks = [asyncio.create_task(node.storage.run()) for node in nodes]
    try:
        yield
        assert not any(task.done() for task in tasks), [task.exception() for task in tasks if task.done()]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
