"""A node's agent on a cluster of one process, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from executors import processes, shim
from executors.agent import Agent
from executors.host import DiskFloor
from executors.options import Options
from statemachine.rows import Job
from statemachine.settings import Template, Timing
from tests.executors.memory import QUICK, MemoryCluster, eventually

NO_FLOOR = DiskFloor(percent=0.0, free_bytes=0)


OPTIONS = Options(
    cpu_slots=8, tick_s=0.1, upkeep_every_s=0.1, progress_every_s=0.05, disk_floor=NO_FLOOR, starts_per_s=1000.0
)


GAMES = """
import json, os
os.makedirs("out/deep", exist_ok=True)
open("out/deep/games.bin", "w").write("five games of " + os.environ["RINGRIFT_JOB_ID"])
outputs = [{"path": "deep/games.bin", "kind": "games", "counts": {"games": 5}}]
counts = {"games": 5, "positions": 50}
open("result.json", "w").write(json.dumps({"counts": counts, "outputs": outputs, "metrics": {"speed": 1.5}}))
"""


WAIT = "import time; print('up', flush=True); time.sleep(600)"


STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"


KEEPS_A_PART = """
import json, signal, sys, time
def end(*_):
    open("result.json", "w").write(json.dumps({"counts": {"games": 2}, "stopped": True}))
    sys.exit(0)
signal.signal(15, end)
print("up", flush=True)
time.sleep(600)
"""


class Node:
    """One node of the test: a data directory and the agent that uses it at the moment."""

    def __init__(self, cluster: MemoryCluster, data_dir: Path, **agent: Any) -> None:
        self.cluster = cluster
        self.data_dir = data_dir
        self._options = {"options": OPTIONS, "peer": "n1", "role": "worker", "address": "http://n1:1"} | agent
        self.agent = self._make()
        self.task = asyncio.create_task(self.agent.run())

    def _make(self) -> Agent:
        return Agent(self.cluster, data_dir=self.data_dir, **self._options)

    async def joined(self) -> None:
        await eventually(lambda: self.agent.status().joined or self.task.done())

    async def crash(self) -> None:
        """What a kill -9 of the node process leaves: no report, no goodbye, keepers alive."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def again(self) -> None:
        self.agent = self._make()
        self.task = asyncio.create_task(self.agent.run())

    def granted(self, template: Template, **item: Any) -> Job:
        """The job of a new item `w`, granted to this node."""
        self.cluster.setting("template/t", template)
        self.cluster.add("w", "t", **item)
        return self.cluster.place("w", "n1")

    async def runs(self, code: str, **template: Any) -> Job:
        """The job of a new item `w`, whose program has said `up`."""
        job = self.granted(program(code, **template))
        await self.says(job.job, "up")
        return job

    async def says(self, job: str, text: str) -> None:
        def said() -> bool:
            folders = list((self.data_dir / "jobs").glob(f"{job}-*/stdout.log"))
            return bool(folders) and text in folders[0].read_text()

        await eventually(said)

    def folder(self, job: str) -> Path:
        return next((self.data_dir / "jobs").glob(f"{job}-*"))


@asynccontextmanager
async def node(data_dir: Path, timing: Timing = QUICK, **agent: Any) -> Any:
    cluster = MemoryCluster()
    cluster.setting("timing", timing)
    one = Node(cluster, data_dir, **agent)
    await one.joined()
    try:
        yield one
    finally:
        if not one.task.done():
            cluster.cut = False
            for attempt in one.agent.attempts.values():
                attempt.disown()
            await eventually(lambda: not any(a.is_alive for a in one.agent.attempts.values()))
            await one.agent.stop()
        await asyncio.gather(one.task, return_exceptions=True)
        # The guard of a killed keeper looks twice before it goes.
        await eventually(lambda: not strays_of(data_dir))


def strays_of(data_dir: Path) -> list[int]:
    folders = [str(p) for p in (data_dir / "jobs").iterdir()]
    return [pid for f in folders for pid in (*shim.strays(f), *shim.strays(f, processes.KEEPER))]


def program(code: str, **more: Any) -> Template:
    return Template(argv=("{python}", "-c", code.replace("{", "{{").replace("}", "}}")), **more)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 40))


def first_steps(cluster: MemoryCluster) -> None:
    cluster.setting("template/t", program(WAIT))
    cluster.add("w", "t")
    cluster.place("w", "n1")
