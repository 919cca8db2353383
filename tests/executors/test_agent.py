from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from executors import admission, shim
from executors.attempts import Attempt
from executors.heartbeat import AgentRefused
from executors.host import DiskFloor
from executors.options import Options
from executors.ports import ClusterUnavailable
from statemachine.commands import (
    JoinPeer,
    PlaceWork,
    ReleaseJob,
)
from statemachine.rows import Actual, WorkStatus
from statemachine.settings import Template
from statemachine.state import State
from statemachine.values import Needs
from tests.executors.agents import GAMES, WAIT, node, program, run
from tests.executors.memory import MemoryCluster, eventually
from tests.executors.test_gpus import ScriptedGpus


def test_losing_the_cluster_ends_no_job_before_its_lease(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            job = one.granted(program("import time; time.sleep(0.5)\n" + GAMES))
            await eventually(lambda: one.agent.status().running == 1)
            one.cluster.cut = True
            await eventually(lambda: (one.folder(job.job) / "exit.json").exists())
            one.cluster.cut = False
            await eventually(lambda: one.cluster.work("w").status is WorkStatus.COMPLETED)

    run(go)


def test_a_lease_is_counted_from_the_moment_the_acknowledged_beat_was_sent(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            job = await one.runs(WAIT)
            folder = str(one.folder(job.job))
            first = shim.read_lease(folder, 0.0)
            await eventually(lambda: shim.read_lease(folder, 0.0) > first)
            one.cluster.cut = True
            refused = one.cluster.refused
            await eventually(lambda: one.cluster.refused > refused + 3)
            end = shim.read_lease(folder, 0.0)
            assert end == pytest.approx(one.agent.bench.heard_s + job.lease_ms / 1000, abs=0.002)
            assert end < shim.boot_s() + job.lease_ms / 1000

    run(go)


def test_progress_reaches_the_cluster_while_the_program_runs(tmp_path: Path) -> None:
    code = """
import json, time
for n in range(1, 1000):
    print(json.dumps({"counts": {"games": n}, "total": {"games": 1000}}), file=open("progress.jsonl", "a"), flush=True)
    time.sleep(0.02)
"""

    async def go() -> None:
        async with node(tmp_path) as one:
            job = one.granted(program(code))
            await eventually(lambda: one.cluster.state.jobs[job.job].counts.get("games", 0) > 3)
            assert one.cluster.state.jobs[job.job].total == {"games": 1000}

    run(go)


def test_a_full_disk_hands_work_back_and_is_told_to_the_cluster(tmp_path: Path) -> None:
    full = Options(cpu_slots=2, tick_s=0.1, upkeep_every_s=0.1, disk_floor=DiskFloor(101.0, 2**60))

    async def go() -> None:
        async with node(tmp_path, options=full) as one:
            assert one.cluster.state.peers["n1"].facts.not_ready == "low disk"

    run(go)


def test_a_replaced_process_stops_and_says_so(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            row = one.cluster.state.peers["n1"]
            one.cluster.must(JoinPeer("n1", row.incarnation + 1, row.boot_id, "worker", row.address, row.facts))
            with pytest.raises(AgentRefused, match="newer process"):
                await one.task

    run(go)


def test_a_peer_that_was_forgotten_joins_again(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            del one.cluster.state.tables["peers"]["n1"]
            await eventually(lambda: "n1" in one.cluster.state.peers)

    run(go)


def test_a_view_older_than_one_acted_on_changes_nothing(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            await one.runs(WAIT)
            passes = 0

            async def past(query: Callable[[State], Any]) -> tuple[Any, int]:
                nonlocal passes
                passes += 1
                return query(MemoryCluster().state), 1

            now, one.cluster.read = one.cluster.read, past  # type: ignore[method-assign, assignment]
            await eventually(lambda: passes > 3)
            assert one.agent.status().running == 1
            one.cluster.read = now  # type: ignore[method-assign]

    run(go)


def test_a_node_that_cannot_read_says_that_it_is_not_ready_and_takes_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "BLIND_S", 0.3)

    async def go() -> None:
        async with node(tmp_path) as one:
            facts = lambda: one.cluster.state.peers["n1"].facts  # noqa: E731
            assert facts().not_ready == ""

            async def nothing(query: Callable[[State], Any]) -> tuple[Any, int]:
                raise ClusterUnavailable("the test has taken the view away")

            now, one.cluster.read = one.cluster.read, nothing
            await eventually(lambda: facts().not_ready == admission.BLIND)
            one.cluster.read = now
            await eventually(lambda: facts().not_ready == "")
            one.cluster.unfit_because = "install the newer release here"
            await eventually(lambda: facts().not_ready == "install the newer release here")
            one.cluster.unfit_because = ""
            await eventually(lambda: facts().not_ready == "")

    run(go)


def test_grants_on_a_view_older_than_one_acted_on_are_handed_back_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "BLIND_S", 0.3)

    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/t", program(WAIT))
            one.cluster.add("runs", "t")
            one.cluster.add("late", "t")
            job = one.cluster.place("runs", "n1")
            await one.says(job.job, "up")

            async def past(query: Callable[[State], Any]) -> tuple[Any, int]:
                return query(one.cluster.state), 1

            now, one.cluster.read = one.cluster.read, past
            granted = one.cluster.place("late", "n1")
            given_back = ReleaseJob(granted.job, granted.fence, admission.BLIND)
            await eventually(lambda: given_back in one.cluster.commands)
            assert one.agent.status().running == 1
            one.cluster.read = now

            def runs_both() -> bool:
                # On a busy machine it may be blind again for a moment, and hands back what it was given.
                if one.cluster.work("late").status is WorkStatus.PENDING:
                    one.cluster.apply(PlaceWork("late", "n1", one.cluster.state.peers["n1"].incarnation))
                return one.agent.status().running == 2

            await eventually(runs_both)

    run(go)


def test_a_gpu_is_not_used_again_before_its_memory_has_come_back(tmp_path: Path) -> None:
    async def go() -> None:
        gpus = ScriptedGpus()
        async with node(tmp_path, gpus=gpus) as one:
            one.cluster.setting("template/t", program(GAMES))
            for work in ("a", "b"):
                one.cluster.add(work, "t", needs=Needs(gpus=1))
            one.cluster.place("a", "n1", gpus=("GPU-0",))
            gpus.used = 70 << 30
            await eventually(lambda: one.cluster.work("a").status is WorkStatus.COMPLETED)
            await eventually(lambda: one.agent.upkeep.unsettled)
            one.cluster.place("b", "n1", gpus=("GPU-0",))
            passes = one.agent.status().index
            await eventually(lambda: one.agent.status().index > passes + 2)
            assert one.agent.status().started == 1
            assert one.agent.status().last_pass_at_ms > 0
            gpus.used = 100 << 20
            await eventually(lambda: one.cluster.work("b").status is WorkStatus.COMPLETED)

    run(go)


def test_leases_are_renewed_though_every_disk_thread_is_busy(tmp_path: Path) -> None:
    async def go() -> None:
        enough = threading.Event()
        async with node(tmp_path) as one:
            job = await one.runs(WAIT)
            busy = [asyncio.create_task(one.agent.bench.on_disk(enough.wait)) for _ in range(16)]
            try:
                lease = one.folder(job.job) / "lease"
                beats, before = len(one.cluster.beats), float(lease.read_text())
                await eventually(lambda: len(one.cluster.beats) > beats + 3 and float(lease.read_text()) > before)
            finally:
                enough.set()
            await asyncio.gather(*busy)

    run(go)


def test_an_attempt_that_the_agent_fails_on_is_reported_and_ends_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Attempt._judge

    def fails(attempt: Attempt, template: Template) -> Any:
        if attempt.job.work == "bad":
            raise RuntimeError("a fault of ours")
        return judge(attempt, template)

    monkeypatch.setattr(Attempt, "_judge", fails)

    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/t", program(GAMES))
            for work in ("bad", "good"):
                one.cluster.add(work, "t")
            job = one.cluster.place("bad", "n1")
            one.cluster.place("good", "n1")
            await eventually(lambda: one.cluster.work("good").status is WorkStatus.COMPLETED)
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.FAILED)
            row = one.cluster.state.jobs[job.job]
            assert (row.error_class, "a fault of ours" in row.error) == ("infrastructure", True)

    run(go)


def test_many_attempts_leave_no_task_no_entry_and_no_row_of_theirs_behind(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/t", program(GAMES))
            await eventually(lambda: one.agent.bench.heard_s)
            before = {task.get_name() for task in asyncio.all_tasks()}
            for number in range(24):
                one.cluster.add(f"w{number}", "t")
            for number in range(24):
                await eventually(lambda: len(one.cluster.state.index.live_jobs_of("n1")) < 6)
                one.cluster.place(f"w{number}", "n1")
            await eventually(lambda: one.agent.status().completed == 24 and not one.agent.attempts)
            left = {task.get_name() for task in asyncio.all_tasks() if "attempt" in task.get_name()}
            assert left == set()
            await eventually(lambda: len(asyncio.all_tasks()) <= len(before) + 1)
            assert one.agent.bench.ledger.entries() == []

    run(go)
