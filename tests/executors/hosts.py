"""A gateway with one host behind it that a test may cut off, and the cluster that both are peers of."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from executors import shim
from executors.blobs import Blobs
from executors.drivers.link import Door
from executors.gateway import Gateway, Keys
from executors.host import DiskFloor
from executors.options import Options
from statemachine import settings
from statemachine.commands import JoinPeer
from statemachine.rows import WorkStatus
from statemachine.settings import Template, Timing
from statemachine.values import PeerFacts
from tests.executors.agents import program
from tests.executors.memory import QUICK, MemoryCluster, eventually
from tests.support.sshd import Proxy, Sshd

OPTIONS = Options(
    tick_s=0.1,
    upkeep_every_s=0.1,
    progress_every_s=0.05,
    margin_s=0.5,
    disk_floor=DiskFloor(percent=0.0, free_bytes=0),
    starts_per_s=1000.0,
)


class Site:
    """A gateway with one host behind a proxy, and the cluster that both are peers of."""

    def __init__(self, server: Sshd, proxy: Proxy, data_dir: Path, keys: Keys, timing: Timing) -> None:
        self.cluster = MemoryCluster()
        self.cluster.setting("timing", timing)
        self.cluster.must(JoinPeer("gate", 1, "boot", "follower", "http://gate:1", PeerFacts()))
        self.server = server
        self.proxy = proxy
        self.root = data_dir / "host"
        self.host = settings.Host(
            gateway="gate",
            address="127.0.0.1",
            port=proxy.port,
            user=server.user,
            host_key=server.host_key,
            root=str(self.root),
            python=sys.executable,
            slots=8,
        )
        self.data_dir = data_dir / "gate"
        self.keys = replace(keys, key_file=server.key_file)
        self.blobs = Blobs(self.data_dir / "artifacts")
        self.http = httpx.AsyncClient()
        self.begin()

    def begin(self, node: str = "gate") -> None:
        self.gateway = Gateway(
            self.cluster,
            node=node,
            address=f"http://{node}:1",
            data_dir=self.data_dir,
            blobs=self.blobs,
            http=self.http,
            options=OPTIONS,
            keys=self.keys,
            cluster_id=lambda: "c1",
            look_s=0.05,
        )
        self.task = asyncio.create_task(self.gateway.run())

    async def crash(self) -> None:
        """What a kill -9 of the node process leaves."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def joined(self) -> None:
        self.cluster.setting("host/h1", self.host)

        def has() -> bool:
            post = self.gateway.posts.get("h1")
            return post is not None and post.agent is not None and post.agent.status().joined

        await eventually(has)

    @property
    def attempts(self) -> list[Any]:
        post = self.gateway.posts.get("h1")
        return list(post.agent.attempts.values()) if post and post.agent else []

    def folder(self, job: str) -> Path:
        return next((self.data_dir / "hosts/h1/jobs").glob(f"{job}-*"))

    async def says(self, job: str, text: str) -> None:
        await eventually(lambda: any(text in p.read_text() for p in self.folders(job)))

    def folders(self, job: str) -> list[Path]:
        return list((self.data_dir / "hosts/h1/jobs").glob(f"{job}-*/stdout.log"))

    def over_there(self) -> list[Path]:
        jobs = self.root / "c1/h1/jobs"
        return list(jobs.iterdir()) if jobs.is_dir() else []

    def living(self) -> list[int]:
        return [pid for folder in self.over_there() for pid in shim.strays(str(folder))]

    def place(self, work: str, template: Template, **more: Any) -> Any:
        self.cluster.setting("template/t", template)
        self.cluster.add(work, "t", **more)
        return self.cluster.place(work, "h1")

    async def ended(self, work: str, status: WorkStatus = WorkStatus.COMPLETED) -> None:
        await eventually(lambda: self.cluster.state.work[work].status is status)


@asynccontextmanager
async def site(server: Sshd, tmp_path: Path, keys: Keys | None = None, timing: Timing = QUICK) -> Any:
    proxy = await Proxy(server.port).start()
    one = Site(server, proxy, tmp_path, keys or Keys(), timing)
    try:
        await one.joined()
        yield one
        for attempt in one.attempts:
            attempt.disown()
        await eventually(lambda: not any(a.is_alive for a in one.attempts))
    finally:
        await one.crash()
        await one.http.aclose()
        await proxy.stop()
    assert not one.living()


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def door(server: Sshd, tmp_path: Path) -> Door:
    root = str(tmp_path / "root")
    return Door("127.0.0.1", server.port, server.user, server.key_file, server.host_key, None, root, sys.executable)


PULSE = """
import json, os, time
for beat in range(1, 400):
    with open("progress.jsonl", "a") as file:
        file.write(json.dumps({"counts": {"games": beat}}) + chr(10))
    print("beat", beat, os.getpid(), flush=True)
    if os.path.exists(os.path.expanduser(GO)):
        break
    time.sleep(0.02)
open("result.json", "w").write(json.dumps({"counts": {"games": 1}, "metrics": {"pid": os.getpid()}}))
"""


def pulse(go: Path) -> Template:
    return program(PULSE.replace("GO", repr(str(go))))
