from __future__ import annotations

from pathlib import Path

import pytest

from executors import upkeep
from executors.gpus import Gpus, Scan
from executors.host import DiskFloor
from executors.options import Options
from statemachine.commands import DrainGpu, ForgetArtifact, JoinPeer, RegisterArtifact
from statemachine.rows import WorkStatus
from statemachine.values import Gpu, Needs, PeerFacts
from tests.executors.agents import GAMES, WAIT, node, program, run
from tests.executors.memory import eventually
from tests.executors.nvml import Driver
from tests.executors.test_gpus import ScriptedGpus

EAGER = Options(
    cpu_slots=3,
    labels=("fast",),
    tick_s=0.1,
    upkeep_every_s=0.05,
    disk_floor=DiskFloor(0.0, 0),
    blob_min_age_s=0.0,
)


def test_the_join_carries_the_facts_of_the_machine_and_its_first_gpu_scan(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path, options=EAGER, gpus=ScriptedGpus()) as one:
            facts = one.cluster.state.peers["n1"].facts
            assert [g.uuid for g in facts.gpus] == ["GPU-0"]
            assert (facts.cpu_slots, facts.labels, facts.not_ready) == (3, ("fast",), "")

    run(go)


def test_a_file_that_is_forgotten_is_deleted_and_one_that_is_missing_is_said_so(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path, options=EAGER) as one:
            cluster, blobs = one.cluster, one.agent.bench.blobs
            kept, forgotten, missing = (blobs.add(text) for text in (b"kept", b"forgotten", b"missing"))
            cluster.must(JoinPeer("n2", 1, "boot-n2", "worker", "http://n2:1", PeerFacts()))
            for digest in (kept, forgotten, missing):
                cluster.must(RegisterArtifact(digest, 1, "games", "", "n1"))
            cluster.must(ForgetArtifact(forgotten))
            blobs.place(missing).unlink()
            one.agent.storage.look()
            await eventually(lambda: blobs.path(forgotten) is None)
            await eventually(lambda: "n1" not in cluster.state.artifacts[missing].holders)
            assert blobs.path(kept) is not None

    run(go)


def test_a_failing_disk_stops_the_upkeep_and_not_the_agent(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path, options=EAGER) as one:
            tries = 0

            def fail(*_: object) -> list[Path]:
                nonlocal tries
                tries += 1
                raise OSError("input/output error")

            one.agent.logs.sweep = fail
            one.agent.upkeep._tidied_s = -1e9
            await eventually(lambda: tries)
            beats = len(one.cluster.beats)
            await eventually(lambda: len(one.cluster.beats) > beats)
            assert not one.task.done()

    run(go)


def test_new_facts_are_told_with_the_next_beat_and_once(tmp_path: Path) -> None:
    async def go() -> None:
        gpus = ScriptedGpus()
        async with node(tmp_path, options=EAGER, gpus=gpus) as one:
            await eventually(lambda: one.cluster.beats)
            assert all(beat.facts is None for beat in one.cluster.beats)
            one.agent.upkeep._base = PeerFacts(cpu_slots=77)
            await eventually(lambda: one.cluster.state.peers["n1"].facts.cpu_slots == 77)
            told = len(one.cluster.beats)
            await eventually(lambda: len(one.cluster.beats) > told + 2)
            assert sum(beat.facts is not None for beat in one.cluster.beats) == 1

    run(go)


GIB = 1 << 30
LOOKING = Options(
    cpu_slots=3, tick_s=0.1, upkeep_every_s=0.05, gpu_scan_every_s=0.0, disk_floor=DiskFloor(0.0, 0), starts_per_s=1e3
)


def test_a_critical_event_drains_that_gpu_alone_and_for_a_while(tmp_path: Path, driver: Driver) -> None:
    async def go() -> None:
        driver.plays("device uuid=GPU-0", "device uuid=GPU-1")
        async with node(tmp_path / "n", options=LOOKING, gpus=Gpus()) as one:
            row = lambda: one.cluster.state.peers["n1"]  # noqa: E731
            driver.plays("device uuid=GPU-0", "device uuid=GPU-1", "event gpu=GPU-1 xid=79 number=1")
            await eventually(lambda: row().gpu_drains)
            (drain,) = row().gpu_drains
            assert (drain.gpu, "xid 79" in drain.reason) == ("GPU-1", True)
            left = drain.until_ms - one.cluster.state.now_ms
            assert 0 < left <= one.cluster.state.timing.gpu_suspect_ms
            assert not row().draining
            one.cluster.must(DrainGpu("n1", "GPU-1", False))
            looks = one.agent.upkeep._scanned_s
            await eventually(lambda: one.agent.upkeep._scanned_s > looks)
            assert not row().gpu_drains

    run(go)


def test_a_divided_device_is_drained_in_all_its_parts(tmp_path: Path, driver: Driver) -> None:
    divided = ("device uuid=GPU-0 mig=1", "part uuid=MIG-a of=GPU-0 total=10", "part uuid=MIG-b of=GPU-0 total=10")

    async def go() -> None:
        driver.plays(*divided)
        async with node(tmp_path / "n", options=LOOKING, gpus=Gpus()) as one:
            driver.plays(*divided, "event gpu=GPU-0 xid=48 number=1")
            await eventually(lambda: len(one.cluster.state.peers["n1"].gpu_drains) == 2)

    run(go)


def test_strangers_on_a_gpu_and_a_lost_gpu_are_told_to_the_cluster(tmp_path: Path, driver: Driver) -> None:
    async def go() -> None:
        driver.plays("device uuid=GPU-0", "device uuid=GPU-1")
        async with node(tmp_path / "n", options=LOOKING, gpus=Gpus()) as one:
            gpus = lambda: one.cluster.state.peers["n1"].facts.gpus  # noqa: E731
            assert [g.foreign_bytes for g in gpus()] == [0, 0]
            driver.plays("device uuid=GPU-0 used=31", "process gpu=GPU-0 pid=1 used=30", "device uuid=GPU-1 lost=1")
            await eventually(lambda: gpus()[0].foreign_bytes == 30 * GIB and gpus()[1].fault)
            first = one.agent.upkeep.telemetry[0]
            assert (first.foreign_bytes, first.reading is not None) == (30 * GIB, True)
            driver.plays("device uuid=GPU-0", "device uuid=GPU-1")
            await eventually(lambda: gpus()[0].foreign_bytes == 0 and not gpus()[1].fault)

    run(go)


def test_a_gpu_whose_memory_does_not_come_back_is_reported_until_it_does(
    tmp_path: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "GPU_SETTLE_S", 0.2)

    async def go() -> None:
        driver.plays("device uuid=GPU-0")
        async with node(tmp_path / "n", options=LOOKING, gpus=Gpus()) as one:
            gpu = lambda: one.cluster.state.peers["n1"].facts.gpus[0]  # noqa: E731
            one.cluster.setting("template/t", program(GAMES))
            one.cluster.add("a", "t", needs=Needs(gpus=1))
            one.cluster.place("a", "n1", gpus=("GPU-0",))
            driver.plays("device uuid=GPU-0 used=40")
            await eventually(lambda: one.cluster.work("a").status is WorkStatus.COMPLETED)
            await eventually(lambda: "not come back" in gpu().fault)
            assert gpu().foreign_bytes == 0
            driver.plays("device uuid=GPU-0 used=1")
            await eventually(lambda: not gpu().fault)

    run(go)


class Silent(Gpus):
    """One device that nobody has readings of."""

    def __init__(self) -> None:
        super().__init__(None)

    def scan(self) -> Scan:
        return Scan((Gpu("MPS-0", "Apple M2 Pro MPS", 24 * GIB),))


def test_a_gpu_that_shows_no_memory_is_free_again_after_each_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "GPU_SETTLE_S", 0.0)

    async def go() -> None:
        async with node(tmp_path / "n", options=LOOKING, gpus=Silent()) as one:
            one.cluster.setting("template/t", program(GAMES))
            for work in ("first", "second"):
                one.cluster.add(work, "t", needs=Needs(gpus=1))
                one.cluster.place(work, "n1", gpus=("MPS-0",))
                await eventually(lambda work=work: one.cluster.work(work).status is WorkStatus.COMPLETED)
                await eventually(lambda: not one.agent.attempts and not one.agent.upkeep.unsettled)
            facts = await one.agent.upkeep.facts()
            assert [(gpu.uuid, gpu.fault) for gpu in facts.gpus] == [("MPS-0", "")]

    run(go)


def test_memory_of_a_running_job_is_no_strangers(tmp_path: Path, driver: Driver) -> None:
    async def go() -> None:
        driver.plays("device uuid=GPU-0")
        async with node(tmp_path / "n", options=LOOKING, gpus=Gpus()) as one:
            one.cluster.setting("template/t", program(WAIT))
            one.cluster.add("a", "t", needs=Needs(gpus=1, vram_bytes=GIB))
            job = one.cluster.place("a", "n1", gpus=("GPU-0",))
            await one.says(job.job, "up")
            (attempt,) = one.agent.attempts.values()
            assert attempt.process is not None
            lines = (f"process gpu=GPU-0 pid={attempt.process.pid} used=20", "process gpu=GPU-0 pid=1 used=5")
            driver.plays("device uuid=GPU-0 used=26", *lines)
            await eventually(lambda: one.cluster.state.peers["n1"].facts.gpus[0].foreign_bytes == 5 * GIB)

    run(go)
