"""Selfplay makes room for a training that has waited too long, and for nothing else."""

from __future__ import annotations

import pytest

from ringrift_cluster.controllers.placement import place
from ringrift_cluster.controllers.yielding import make_room
from statemachine import settings as st
from statemachine.commands import (
    AddWork,
    ChangeSetting,
    ClaimWork,
    CompleteJob,
    FailJob,
    JoinPeer,
    PauseCluster,
    PlaceWork,
    RecordHeartbeats,
    ReportJob,
    StopJob,
)
from statemachine.rows import Actual
from statemachine.values import Beat, Gpu, Needs, PeerFacts
from tests.support.fleet import Fleet

GIB = 1 << 30
SHARE = Needs(gpus=1, vram_bytes=8 * GIB)
WHOLE = Needs(gpus=1)


@pytest.fixture
def fleet() -> Fleet:
    """One peer with two GPUs: two selfplay jobs on the stronger one, one on the other."""
    fleet = Fleet(peers=0)
    timing = st.Timing(yield_after_ms=20_000, suspect_after_ms=10**9, dead_after_ms=2 * 10**9)
    fleet.apply(ChangeSetting("timing", st.encode(timing)))
    gpus = (Gpu("GPU-0", "H100", 80 * GIB), Gpu("GPU-1", "RTX 3060", 12 * GIB))
    facts = PeerFacts(cpu_slots=2, gpus=gpus, ram_bytes=64 * GIB)
    fleet.apply(JoinPeer("a", 1, "boot", "follower", "http://a", facts))
    for name, gpu in (("s0", "GPU-0"), ("s1", "GPU-0"), ("s2", "GPU-1")):
        fleet.apply(AddWork(name, "selfplay", "connect4_2p", template="selfplay", needs=SHARE))
        fleet.apply(PlaceWork(name, "a", 1, (gpu,)))
        fleet.apply(ReportJob(f"{name}.1", fleet.state.jobs[f"{name}.1"].fence, "running"))
    return fleet


def training(fleet: Fleet, name: str = "t", needs: Needs = WHOLE, config: str = "connect4_2p") -> None:
    fleet.apply(AddWork(name, "training", config, template="training", needs=needs, priority=1))


def wait(fleet: Fleet, ms: int = 20_000) -> None:
    while ms > 0:
        fleet.apply(RecordHeartbeats((Beat("a", 1),)), step_ms=2_000)
        ms -= 2_000


def stopped(fleet: Fleet) -> list[str]:
    commands = make_room(fleet.state)
    assert all(isinstance(c, StopJob) for c in commands)
    return [c.job for c in commands if isinstance(c, StopJob)]


def test_selfplay_goes_on_until_a_training_has_waited_longer_than_the_setting(fleet: Fleet) -> None:
    training(fleet)
    wait(fleet, 18_000)
    assert stopped(fleet) == []
    wait(fleet, 4_000)
    assert stopped(fleet) == ["s2.1"], "the GPU where the fewest jobs have to stop"
    (command,) = make_room(fleet.state)
    assert isinstance(command, StopJob)
    assert "makes room for t" in command.reason


def test_room_that_is_being_made_is_neither_made_twice_nor_given_to_others(fleet: Fleet) -> None:
    training(fleet)
    wait(fleet)
    fleet.apply(*make_room(fleet.state))
    assert fleet.state.jobs["s2.1"].desired == "stop"
    assert stopped(fleet) == []
    job = fleet.state.jobs["s2.1"]
    fleet.apply(AddWork("s9", "selfplay", "connect4_2p", template="selfplay", needs=Needs(gpus=1, vram_bytes=GIB)))
    assert [c.gpus for c in place(fleet.state) if isinstance(c, PlaceWork)] == [("GPU-0",)]
    fleet.apply(CompleteJob(job.job, job.fence, {"games": 3}, stopped=True))
    assert fleet.state.jobs["s2.1"].actual is Actual.STOPPED
    assert fleet.state.totals["connect4_2p"].games == 3, "its part is kept"
    first = place(fleet.state)[0]
    assert isinstance(first, PlaceWork)
    assert (first.work, first.gpus) == ("t", ("GPU-1",)), "before selfplay of a higher priority"


def test_a_freed_gpu_is_kept_for_the_training_while_another_part_of_the_room_is_not_free_yet(fleet: Fleet) -> None:
    training(fleet, needs=Needs(gpus=1, vram_bytes=40 * GIB))
    wait(fleet)
    assert sorted(stopped(fleet)) == ["s0.1", "s1.1"], "only the larger GPU has the memory"
    fleet.apply(*make_room(fleet.state))
    job = fleet.state.jobs["s0.1"]
    fleet.apply(FailJob(job.job, job.fence, "stopped", "it kept nothing"))
    assert fleet.state.work["s0"].status == "pending"
    assert place(fleet.state) == [], "s0 would fit beside s1 again"


def test_two_overdue_trainings_get_room_of_their_own(fleet: Fleet) -> None:
    training(fleet, "t1")
    training(fleet, "t2", config="square8_2p")
    wait(fleet)
    assert sorted(stopped(fleet)) == ["s0.1", "s1.1", "s2.1"]


def test_where_slots_are_short_as_well_those_that_began_last_stop(fleet: Fleet) -> None:
    for name in ("c0", "c1"):
        fleet.apply(AddWork(name, "selfplay", "connect4_2p", template="selfplay"), PlaceWork(name, "a", 1))
    training(fleet, needs=Needs(cpu_slots=1))
    wait(fleet)
    assert stopped(fleet) == ["c1.1"]


def test_nothing_stops_for_a_training_that_could_not_run_there_anyway(fleet: Fleet) -> None:
    training(fleet, "big", Needs(gpus=1, vram_bytes=200 * GIB))
    training(fleet, "blocked", config="square8_2p")
    fleet.apply(AddWork("first", "training", "square8_2p", template="training", priority=90))
    fleet.apply(ClaimWork("c", "worker", ("training",), ("square8_2p",)))
    wait(fleet)
    assert stopped(fleet) == []


def test_nothing_stops_for_another_kind_of_work_nor_without_the_setting_nor_in_a_pause(fleet: Fleet) -> None:
    fleet.apply(AddWork("e", "evaluation", "connect4_2p", template="evaluation", needs=WHOLE))
    wait(fleet)
    assert stopped(fleet) == []
    training(fleet)
    wait(fleet)
    assert stopped(fleet)
    fleet.apply(PauseCluster(True, "power work"))
    assert stopped(fleet) == []
    fleet.apply(PauseCluster(False))
    timing = st.Timing(yield_after_ms=0, suspect_after_ms=10**9, dead_after_ms=2 * 10**9)
    fleet.apply(ChangeSetting("timing", st.encode(timing)))
    assert stopped(fleet) == []


def test_a_training_that_a_free_peer_can_take_stops_nobody(fleet: Fleet) -> None:
    training(fleet)
    wait(fleet)
    facts = PeerFacts(gpus=(Gpu("GPU-9", "L4", 24 * GIB),))
    fleet.apply(JoinPeer("b", 1, "boot-b", "follower", "http://b", facts))
    assert stopped(fleet) == []
    first = place(fleet.state)[0]
    assert isinstance(first, PlaceWork)
    assert (first.work, first.peer) == ("t", "b")


def test_a_training_that_waits_for_something_else_hides_none_that_lacks_only_room(fleet: Fleet) -> None:
    fleet.apply(AddWork("later", "training", "connect4_2p", template="training", needs=WHOLE, depends_on=("never",)))
    fleet.apply(AddWork("theirs", "training", "connect4_2p", needs=WHOLE))
    training(fleet)
    wait(fleet, 22_000)
    assert stopped(fleet) == ["s2.1"]
