from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

from executors import host, processes
from executors.ledger import Ledger
from statemachine.commands import (
    FailJob,
    JoinPeer,
)
from statemachine.rows import Actual, WorkStatus
from statemachine.values import PeerFacts
from tests.executors.agents import GAMES, STUBBORN, WAIT, Node, first_steps, node, program, run, strays_of
from tests.executors.memory import QUICK, MemoryCluster, eventually


def test_jobs_survive_the_agent_and_are_adopted_by_the_next_one(tmp_path: Path) -> None:
    code = GAMES + "\nimport time\nprint('up', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.02)"

    async def go() -> None:
        async with node(tmp_path) as one:
            job = await one.runs(code)
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.RUNNING)
            pids = strays_of(tmp_path)
            await one.crash()
            assert sorted(strays_of(tmp_path)) == sorted(pids)
            await one.again()
            await one.joined()
            await eventually(lambda: one.agent.status().running == 1)
            assert sorted(strays_of(tmp_path)) == sorted(pids)
            (one.folder(job.job) / "go").touch()
            await eventually(lambda: one.cluster.work("w").status is WorkStatus.COMPLETED)
            assert len(one.cluster.jobs_of("w")) == 1

    run(go)


def test_an_end_that_nobody_saw_is_reported_by_the_next_agent(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            job = one.granted(program("import time; time.sleep(0.3)\n" + GAMES))
            await eventually(lambda: one.agent.status().running == 1)
            await one.crash()
            await eventually(lambda: (one.folder(job.job) / "exit.json").exists())
            await one.again()
            await eventually(lambda: one.cluster.work("w").status is WorkStatus.COMPLETED)

    run(go)


def test_a_job_that_is_not_wanted_any_more_is_killed_by_the_next_agent(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            job = await one.runs(STUBBORN)
            await one.crash()
            one.cluster.must(FailJob(job.job, job.fence, "infrastructure", "lost meanwhile"))
            await one.again()
            await eventually(lambda: not strays_of(tmp_path))
            await eventually(lambda: not one.agent.attempts)

    run(go)


def test_a_keeper_whose_handle_was_not_saved_in_time_is_found_again(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            job = await one.runs(WAIT)
            one.agent.bench.ledger.handle(job.job, job.fence, processes.Identity("", 0, 0))
            await one.crash()
            pids = strays_of(tmp_path)
            await one.again()
            await eventually(lambda: one.agent.status().running == 1)
            assert sorted(strays_of(tmp_path)) == sorted(pids)

    run(go)


def test_an_attempt_of_an_unknown_release_is_ended_and_not_adopted(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            job = await one.runs(STUBBORN)
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.RUNNING)
            await one.crash()
            ledger = Ledger(tmp_path / "ledger.sqlite")
            (entry,) = ledger.entries()
            ledger.intend(job.job, job.fence, b"words of another time", entry.folder, host.boot_id(), 1.0)
            ledger.handle(job.job, job.fence, entry.process)
            ledger.close()
            await one.again()
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.FAILED)
            await eventually(lambda: not strays_of(tmp_path))

    run(go)


def test_after_a_reboot_nothing_is_adopted(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path, boot_id="first") as one:
            job = one.granted(program("import time; time.sleep(0.2)"))
            await eventually(lambda: one.agent.status().running == 1)
            await one.crash()
            await eventually(lambda: (one.folder(job.job) / "exit.json").exists())
            one._options["boot_id"] = "second"
            await one.again()
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.LOST)
            await eventually(lambda: not one.agent.attempts)
            assert not one.agent.bench.ledger.entries()

    run(go)


def test_a_stop_leaves_jobs_for_adoption_and_another_stop_takes_them_along(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            job = await one.runs(WAIT)
            await one.agent.stop()
            await one.task
            assert strays_of(tmp_path)
            await one.again()
            await one.joined()
            await eventually(lambda: one.agent.status().running == 1)
            await one.agent.stop(stop_jobs=True)
            await one.task
            await eventually(lambda: not strays_of(tmp_path))
            assert one.cluster.state.jobs[job.job].actual is Actual.STOPPED

    run(go)


def test_a_stop_of_jobs_before_anything_was_adopted_stops_what_an_earlier_process_left(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            await one.runs(WAIT)
            await one.crash()
            assert strays_of(tmp_path)
            await one.again()
            await asyncio.sleep(0)  # it runs, and has adopted nothing yet
            assert not one.agent.attempts
            await one.agent.stop(stop_jobs=True)
            await one.task
            await eventually(lambda: not strays_of(tmp_path))

    run(go)


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.executors.memory import QUICK
from tests.executors.agents import Node, WAIT, first_steps
from tests.executors.memory import MemoryCluster, eventually

async def main():
    cluster = MemoryCluster()
    cluster.setting("timing", QUICK)
    one = Node(cluster, Path(sys.argv[1]))
    await one.joined()
    first_steps(cluster)
    await one.says("w.1", "up")
    await eventually(lambda: one.agent.status().running == 1)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_a_node_process_that_is_killed_leaves_its_job_running_for_the_next_one(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, capture_output=True, text=True, timeout=30, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    pids = strays_of(tmp_path)
    assert len(pids) == 3, "a keeper, its guard and the program"

    async def go() -> None:
        cluster = MemoryCluster()
        cluster.setting("timing", QUICK)
        cluster.must(JoinPeer("n1", 1, host.boot_id(), "worker", "http://n1:1", PeerFacts(cpu_slots=1)))
        first_steps(cluster)  # the same commands, so the same job under the same fence
        one = Node(cluster, tmp_path)
        await one.joined()
        await eventually(lambda: cluster.state.jobs["w.1"].actual is Actual.RUNNING)
        assert sorted(strays_of(tmp_path)) == sorted(pids)
        await one.agent.stop(stop_jobs=True)
        assert not strays_of(tmp_path)
        assert cluster.state.jobs["w.1"].actual is Actual.STOPPED

    run(go)
