"""Figures of the executor on this machine: python -m tests.bench.executor [--starts N] [--jobs N]

start        from the committed placement to the running keeper, and to its program's start
interpreter  what an empty Python program takes at the same time, and a keeper that finds nothing to keep: a start
             contains the second once
pass         one reconcile pass over many jobs that need nothing
adoption     from a new agent's first step to its having taken over every running job
follower     CPU and memory of a real follower process, with nothing to do and with 64 jobs
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from executors import attempts, processes, shim
from executors.agent import Agent
from executors.host import DiskFloor, boot_id
from executors.options import Options
from executors.reconcile import Held, Phase, Room, plan
from executors.views import view_of, wanted
from statemachine import settings
from statemachine.commands import AddWork, ChangeSetting, JoinPeer
from statemachine.settings import Template, Timing
from statemachine.values import PeerFacts
from tests.executors.memory import MemoryCluster, eventually
from tests.support.cluster import TestCluster

SLEEP = Template(argv=("/bin/sleep", "600"))
QUIET = Timing(grace_ms=2_000)


def agent(cluster: MemoryCluster, data: Path) -> Agent:
    options = Options(cpu_slots=512, starts_per_s=10_000.0, max_processes=512, disk_floor=DiskFloor(0.0, 0))
    return Agent(cluster, peer="n1", address="http://n1:1", role="worker", data_dir=data, options=options)


def quantiles(values: list[float]) -> str:
    ordered = sorted(values)
    at = lambda q: ordered[min(int(q * len(ordered)), len(ordered) - 1)] * 1000  # noqa: E731
    return f"p50 {at(0.5):.1f} ms  p99 {at(0.99):.1f} ms  max {ordered[-1] * 1000:.1f} ms  n {len(ordered)}"


def program_s(*words: str) -> float:
    began = shim.boot_s()
    subprocess.run([sys.executable, "-I", "-S", *words], stderr=subprocess.DEVNULL, check=False)
    return shim.boot_s() - began


async def measure(starts: int, jobs: int, data: Path) -> None:
    cluster = MemoryCluster()
    cluster.setting("timing", QUIET)
    cluster.setting("template/sleep", SLEEP)
    begun: dict[str, float] = {}
    real = processes.start

    def start(folder: Path, *rest: Any) -> processes.Identity:
        process = real(folder, *rest)
        begun[folder.name] = shim.boot_s()
        return process

    attempts.processes.start = start
    one = agent(cluster, data)
    life = asyncio.create_task(one.run())
    await eventually(lambda: one.status().joined)

    to_keeper, to_program, empty, idle = [], [], [], []
    for number in range(starts):
        cluster.add(f"s{number}", "sleep")
        placed = shim.boot_s()
        job = cluster.place(f"s{number}", "n1")
        folder = data / "jobs" / f"{job.job}-{job.fence}"
        await eventually((folder / "pids.json").exists)
        to_keeper.append(begun[folder.name] - placed)
        to_program.append((folder / "pids.json").stat().st_mtime - (time.time() - shim.boot_s() + placed))
        empty.append(program_s("-c", "pass"))
        idle.append(program_s(shim.__file__, "/nonexistent"))
    print(f"interpreter     {quantiles(empty)}")
    print(f"idle keeper     {quantiles(idle)}")
    print(f"start, keeper   {quantiles(to_keeper)}")
    print(f"start, program  {quantiles(to_program)}")

    for number in range(starts, jobs):
        cluster.add(f"s{number}", "sleep")
        cluster.place(f"s{number}", "n1")
    await eventually(lambda: one.status().running == jobs, 120)
    await eventually(lambda: len(list((data / "jobs").glob("*/pids.json"))) == jobs, 120)

    began = shim.boot_s()
    await one.stop()
    await life
    two = agent(cluster, data)
    began = shim.boot_s()
    life = asyncio.create_task(two.run())
    await eventually(lambda: two.status().running == jobs, 60)
    print(f"adoption        {jobs} jobs in {(shim.boot_s() - began) * 1000:.0f} ms")
    await eventually(lambda: two.status().joined)

    keepers = [psutil.Process(a.process.pid) for a in two.attempts.values() if a.process]
    guards = [guard for keeper in keepers for guard in keeper.children() if guard.cmdline() == keeper.cmdline()]
    before = sum(sum(k.cpu_times()[:2]) for k in keepers)
    own = psutil.Process()
    mine = sum(own.cpu_times()[:2])
    await asyncio.sleep(10)
    rss = statistics.mean(k.memory_full_info().uss for k in keepers) / 2**20
    spent = sum(sum(k.cpu_times()[:2]) for k in keepers) - before
    beside = statistics.mean(g.memory_full_info().uss for g in guards) / 2**20
    print(f"keepers         {len(keepers)} use {spent * 10:.1f} % of a core together, {rss:.1f} MiB each of their own")
    print(f"guards          {len(guards)}, {beside:.1f} MiB each of their own")
    print(f"agent           {(sum(own.cpu_times()[:2]) - mine) * 10:.2f} % of a core with {jobs} jobs")
    await two.stop(stop_jobs=True)
    await life


def measure_plan(count: int) -> None:
    cluster = MemoryCluster()
    cluster.setting("template/sleep", SLEEP)
    cluster.must(JoinPeer("n1", 1, boot_id(), "worker", "http://n1:1", PeerFacts(cpu_slots=count)))
    for number in range(count):
        cluster.add(f"w{number}", "sleep")
        cluster.place(f"w{number}", "n1")
    held = [Held(j.job, j.fence, j.work, Phase.RUNNING, 0.0) for j in cluster.state.jobs.values()]
    took = []
    for _ in range(200):
        began = time.perf_counter()
        view = view_of(cluster.state, "n1")
        assert plan([wanted(a) for a in view.assignments], held, 1.0, Room()) == []
        took.append(time.perf_counter() - began)
    print(f"pass, {count} jobs  {quantiles(took)}")


def follower(folder: Path, jobs: int) -> None:
    """A voter and a follower as `serve` starts them; what the follower takes."""
    cluster = TestCluster(folder, voters=1, followers=1, cpu_slots=jobs)
    try:
        cluster.start()
        one = cluster.nodes["f1"]
        process = psutil.Process(one.process.pid if one.process else 0)
        time.sleep(5)
        used("follower, idle", process)
        argv = ("/bin/sleep", "600")
        one.propose(
            ChangeSetting("template/sleep", settings.encode(Template(argv=argv))),
            *(AddWork(f"w{number}", "task", template="sleep") for number in range(jobs)),
        )
        deadline = time.monotonic() + 120
        while len(list((folder / "f1" / "jobs").glob("*/pids.json"))) < jobs and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(10)
        used(f"follower, {jobs} jobs", process)
    finally:
        for record in (folder / "f1" / "jobs").glob("*/pids.json"):
            os.kill(json.loads(record.read_text())["pid"], signal.SIGKILL)
        cluster.stop()


def used(name: str, process: psutil.Process, span_s: float = 20.0) -> None:
    before = sum(process.cpu_times()[:2])
    time.sleep(span_s)
    spent = (sum(process.cpu_times()[:2]) - before) / span_s
    memory = process.memory_full_info()
    print(
        f"{name:15} {spent * 100:.2f} % of a core, {memory.rss / 2**20:.0f} MiB RSS, {memory.uss / 2**20:.0f} its own"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=100)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure_plan(200)
        asyncio.run(measure(chosen.starts, chosen.jobs, Path(folder) / "busy"))
        follower(Path(folder) / "follower", 64)


if __name__ == "__main__":
    main()
