"""The named scenarios: which cluster, which surroundings, which faults."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from tests.nemesis import faults, voters
from tests.nemesis.cluster import Places
from tests.nemesis.faults import Fault

NETWORK: tuple[Fault, ...] = (
    faults.isolate_leader,
    faults.partition,
    faults.one_way,
    faults.bridge,
    faults.lossy,
    faults.slow,
    faults.flapping,
)
PROCESSES: tuple[Fault, ...] = (
    faults.kill_one,
    faults.kill_leader,
    faults.kill_all,
    faults.kill_in_snapshot,
    faults.pause_leader,
    faults.pause_some,
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """`faults` in an order drawn from the seed, `lanes` of them at a time, with a rest of about `rest_s` after each."""

    name: str
    faults: tuple[Fault, ...]
    voters: int = 3
    lanes: int = 1
    rest_s: float = 3.0
    #: frequent enough that most kills come close to one
    snapshot_every_entries: int = 300
    small_disks: bool = False
    own_clocks: bool = False

    @property
    def places(self) -> Places:
        return Places(self.small_disks, self.own_clocks, self.snapshot_every_entries)

    def missing(self) -> str:
        """Why it cannot run here; empty when it can."""
        if self.own_clocks and shutil.which("cc") is None:
            return "a C compiler is missing (Debian package gcc)"
        return ""


SCENARIOS: dict[str, Scenario] = {
    made.name: made
    for made in (
        Scenario("calm", ()),
        Scenario("kill-one", (faults.kill_one,)),
        Scenario("kill-leader", (faults.kill_leader,)),
        Scenario("kill-all", (faults.kill_all,)),
        Scenario("kill-in-snapshot", (faults.kill_in_snapshot,), rest_s=1.0, snapshot_every_entries=100),
        Scenario("pause-leader", (faults.pause_leader,)),
        Scenario("pause-some", (faults.pause_some,)),
        Scenario("isolate-leader", (faults.isolate_leader,)),
        Scenario("partition", (faults.partition,)),
        Scenario("one-way", (faults.one_way,)),
        Scenario("bridge", (faults.bridge,)),
        Scenario("lossy", (faults.lossy, faults.slow, faults.flapping), rest_s=1.0),
        Scenario("full-disk", (faults.full_disk,), small_disks=True),
        Scenario("clock-jump", (faults.clock_jump,), own_clocks=True, rest_s=1.0),
        Scenario("wiped-disk", (faults.wiped_disk,)),
        Scenario("change-voters", (voters.change_voters,)),
        Scenario("replace-wiped", (voters.replace_wiped,)),
        Scenario("change-voters-faults", (voters.change_voters, faults.kill_one, faults.isolate_leader), lanes=2),
        Scenario("five-processes", PROCESSES, voters=5),
        Scenario("five-network", NETWORK, voters=5),
        Scenario(
            "random",
            (*PROCESSES, *NETWORK, faults.full_disk, faults.clock_jump),
            lanes=2,
            rest_s=2.0,
            small_disks=True,
            own_clocks=True,
        ),
        Scenario(
            "random-five",
            (*PROCESSES, *NETWORK, faults.full_disk, faults.clock_jump),
            voters=5,
            lanes=2,
            rest_s=2.0,
            small_disks=True,
            own_clocks=True,
        ),
    )
}
