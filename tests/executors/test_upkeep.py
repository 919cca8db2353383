from __future__ import annotations

from pathlib import Path

from executors.host import DiskFloor
from executors.options import Options
from statemachine.commands import ForgetArtifact, JoinPeer, RegisterArtifact
from statemachine.values import PeerFacts
from tests.executors.memory import eventually
from tests.executors.test_agent import node, run
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
            blobs.drop(missing)
            one.agent.upkeep._tidied_s = -1e9
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
