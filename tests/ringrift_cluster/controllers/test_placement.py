"""Placement as a table: who gets what, and why."""

from __future__ import annotations

import pytest

from ringrift_cluster.controllers import placement
from ringrift_cluster.controllers.liveness import suspects, vouch
from ringrift_cluster.controllers.placement import place
from ringrift_cluster.controllers.power import gpu_power
from statemachine.commands import AddWork, DrainPeer, FailJob, JoinPeer, PlaceWork, RecordHeartbeats, ReportJob
from statemachine.eligibility import peer_obstacle
from statemachine.values import Beat, Gpu, Needs, PeerFacts
from tests.support.fleet import Fleet

GIB = 1 << 30


@pytest.fixture
def fleet() -> Fleet:
    """No peers yet, and no config that would make work of its own."""
    return Fleet(peers=0)


def join(fleet: Fleet, name: str, **facts: object) -> None:
    fleet.apply(JoinPeer(name, 1, f"boot-{name}", "follower", f"http://{name}", PeerFacts(**facts)))  # type: ignore[arg-type]


def placements(fleet: Fleet) -> list[tuple[str, str]]:
    commands = place(fleet.state)
    assert all(isinstance(c, PlaceWork) for c in commands)
    return [(c.work, c.peer) for c in commands if isinstance(c, PlaceWork)]


def add(fleet: Fleet, name: str, **fields: object) -> None:
    fields = {"template": "selfplay", "work_type": "selfplay", **fields}
    (answer,) = fleet.apply(AddWork(work=name, **fields))  # type: ignore[arg-type]
    assert type(answer).__name__ == "Done"


def test_the_higher_priority_goes_first_when_there_is_one_slot(fleet: Fleet) -> None:
    join(fleet, "a", cpu_slots=1)
    add(fleet, "low", priority=10)
    add(fleet, "high", priority=90)
    assert placements(fleet) == [("high", "a")]


def test_waiting_raises_an_item_above_a_newer_one_of_slightly_higher_priority(fleet: Fleet) -> None:
    add(fleet, "old", priority=50, config="connect4_2p")
    for _ in range(200):
        fleet.apply(step_ms=2_000)
    join(fleet, "a", cpu_slots=1)
    add(fleet, "new", priority=54, config="square8_2p")
    assert placements(fleet) == [("old", "a")]


def test_configs_share_the_slots_by_their_weights(fleet: Fleet) -> None:
    join(fleet, "a", cpu_slots=13)
    for n in range(15):
        add(fleet, f"c{n}", config="connect4_2p")
        add(fleet, f"s{n}", config="square8_2p")
    placed = [work[0] for work, _ in placements(fleet)]
    assert (placed.count("c"), placed.count("s")) == (10, 3)


def test_a_pass_never_gives_a_peer_more_than_its_slots(fleet: Fleet) -> None:
    join(fleet, "a", cpu_slots=2)
    join(fleet, "b", cpu_slots=1)
    for n in range(6):
        add(fleet, f"w{n}")
    assert sorted(peer for _, peer in placements(fleet)) == ["a", "a", "b"]


@pytest.mark.parametrize(
    ("facts", "placed"),
    [
        ({"cpu_slots": 0}, False),
        ({"cpu_slots": 1, "not_ready": "disk below its floor"}, False),
        ({"cpu_slots": 1}, True),
    ],
)
def test_a_peer_takes_work_only_with_a_slot_and_while_it_is_ready(
    fleet: Fleet, facts: dict[str, object], placed: bool
) -> None:
    join(fleet, "a", **facts)
    add(fleet, "w")
    assert bool(placements(fleet)) is placed


def test_a_drained_peer_gets_nothing(fleet: Fleet) -> None:
    join(fleet, "a", cpu_slots=1)
    fleet.apply(DrainPeer(peer="a", drain=True, reason="new disk"))
    add(fleet, "w")
    assert placements(fleet) == []


def test_a_suspect_gets_nothing(fleet: Fleet) -> None:
    join(fleet, "a", cpu_slots=1)
    for _ in range(5):
        fleet.apply(step_ms=2_000)
    assert fleet.state.peers["a"].status == "suspect"
    add(fleet, "w")
    assert placements(fleet) == []


def test_an_item_that_failed_on_a_peer_goes_to_another_one_first(fleet: Fleet) -> None:
    join(fleet, "a", cpu_slots=1)
    add(fleet, "w")
    fleet.apply(*place(fleet.state))
    (job,) = fleet.state.jobs.values()
    fleet.apply(ReportJob(job.job, job.fence, "running"), FailJob(job.job, job.fence, "user", "it crashed"))
    fleet.apply(step_ms=2_000)
    join(fleet, "b", cpu_slots=1)
    assert placements(fleet) == [("w", "b")]


def test_a_gpu_job_gets_the_strongest_free_gpu_by_uuid_and_never_a_faulty_one(fleet: Fleet) -> None:
    slow = Gpu("GPU-slow", "NVIDIA GeForce RTX 3060", 12 * GIB)
    fast = Gpu("GPU-fast", "NVIDIA H100 80GB HBM3", 80 * GIB)
    broken = Gpu("GPU-bad", "NVIDIA H100 80GB HBM3", 80 * GIB, "XID 79: fell off the bus")
    join(fleet, "a", gpus=(slow,))
    join(fleet, "b", gpus=(broken, fast))
    add(fleet, "t", needs=Needs(gpus=1))
    (command,) = place(fleet.state)
    assert isinstance(command, PlaceWork)
    assert (command.peer, command.gpus) == ("b", ("GPU-fast",))


def test_selfplay_shares_a_gpu_by_its_memory_and_training_takes_one_whole(fleet: Fleet) -> None:
    join(fleet, "a", gpus=(Gpu("GPU-1", "NVIDIA A100", 10 * GIB),), ram_bytes=64 * GIB)
    for n in range(4):
        add(fleet, f"w{n}", needs=Needs(gpus=1, vram_bytes=4 * GIB))
    assert len(placements(fleet)) == 2
    fleet.apply(*place(fleet.state))
    add(fleet, "t", needs=Needs(gpus=1), priority=100)
    assert placements(fleet) == []


def test_an_item_without_a_template_is_left_for_a_worker_that_claims_it(fleet: Fleet) -> None:
    join(fleet, "a", cpu_slots=1)
    add(fleet, "w", template="")
    assert placements(fleet) == []


@pytest.mark.parametrize(
    ("name", "power"),
    [("NVIDIA GH200 480GB", 2000), ("NVIDIA H200", 2500), ("NVIDIA GeForce RTX 4090", 330), ("something", 10)],
)
def test_a_gh200_is_not_taken_for_an_h200(name: str, power: int) -> None:
    assert gpu_power(name) == power


def test_a_suspect_that_answers_a_probe_is_vouched_for_and_does_not_die(fleet: Fleet) -> None:
    join(fleet, "a", cpu_slots=1)
    seen = False
    for _ in range(40):
        fleet.apply(step_ms=2_000)
        found = suspects(fleet.state, "leader")
        seen = seen or bool(found)
        fleet.apply(*vouch({(one.peer, one.incarnation): "leader" for one in found}))
    assert seen
    assert fleet.state.peers["a"].status == "suspect"
    fleet.apply(RecordHeartbeats((Beat("a", 1),)))
    assert fleet.state.peers["a"].status == "alive"


def test_an_item_goes_to_another_of_its_nodes_after_one_has_failed_it(fleet: Fleet) -> None:
    for name in ("a", "b", "c"):
        join(fleet, name, cpu_slots=4)
    add(fleet, "w", needs=Needs(peers=("b", "c")))
    assert placements(fleet) == [("w", "b")]
    fleet.apply(*place(fleet.state), FailJob("w.1", fleet.state.cluster.fence + 1, "user", "broken"))
    while fleet.state.work["w"].ready_at_ms > fleet.state.now_ms:
        fleet.apply(step_ms=2_000)
    fleet.apply(*(RecordHeartbeats((Beat(name, 1),)) for name in ("a", "b", "c")))
    assert placements(fleet) == [("w", "c")]


def test_a_thousand_items_that_nobody_can_run_hide_nothing_behind_them(fleet: Fleet) -> None:
    for n in range(600):
        add(fleet, f"blocked{n}", priority=90, needs=Needs(labels=("moon",)))
    add(fleet, "runnable", priority=10)
    join(fleet, "a", cpu_slots=1)
    assert placements(fleet) == [("runnable", "a")]


def test_needs_that_nobody_can_meet_are_asked_about_once_a_pass(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(300):
        add(fleet, f"w{n}", config="connect4_2p")
        add(fleet, f"v{n}", config="square8_2p")
    join(fleet, "a", cpu_slots=0)
    asked = 0

    def counted(*arguments: object) -> object:
        nonlocal asked
        asked += 1
        return peer_obstacle(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(placement, "peer_obstacle", counted)
    assert placements(fleet) == []
    assert asked <= 2, "600 waiting items must not cost 600 looks at every peer on the consensus thread"


@pytest.mark.parametrize(
    ("sizes", "budget", "given"),
    [
        ([], 10, []),
        ([4], 10, [4]),
        ([40], 10, [10]),
        ([1_000, 1_000, 3], 103, [50, 50, 3]),
        ([1_000, 0, 1_000], 10, [5, 0, 5]),
        ([9, 9, 9], 2, [1, 1, 1]),
    ],
)
def test_the_looks_of_a_pass_are_shared_by_all_classes(sizes: list[int], budget: int, given: list[int]) -> None:
    assert placement.shares(sizes, budget) == given


def test_classes_that_cannot_run_now_do_not_keep_a_pass_from_looking_at_the_others(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "MAX_LOOKED", 12)
    join(fleet, "a", cpu_slots=4)
    for config in ("hex8_2p", "hex8_3p", "square8_2p"):
        for n in range(10):
            add(fleet, f"{config}-{n}", config=config, depends_on=("last",))
    add(fleet, "last", config="connect4_2p")
    assert placements(fleet) == [("last", "a")]
