"""What must hold in every run, whatever the faults."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from statemachine.machine import Machine
from tests.simulation.voter import Voter
from tests.simulation.world import Broken


@dataclass(slots=True)
class Checks:
    """The one log that all voters must agree on, and what clients were told."""

    #: index -> (term, entry, chain after it), as the first voter applied it
    log: dict[int, tuple[int, bytes, bytes]] = field(default_factory=dict)
    leaders: dict[int, str] = field(default_factory=dict)
    #: request id -> index it was acknowledged at
    acknowledged: dict[str, int] = field(default_factory=dict)
    unknown: int = 0
    refused: int = 0
    reads: int = 0
    applied: int = 0
    installs: int = 0

    @property
    def acknowledged_to(self) -> int:
        return max(self.acknowledged.values(), default=0)

    def watch(self, voter: Voter) -> None:
        """Compare what a voter applied in its last turn with what the others applied."""
        node = voter.node
        assert node is not None
        fresh = node.window.since(voter.seen, limit=100_000, limit_bytes=1 << 40)
        if fresh is None:
            self.installs += 1
            self._compare(voter.name, node.machine)
            fresh = node.window.since(node.machine.index)
            voter.seen = node.machine.index
        for applied in fresh or []:
            known = self.log.setdefault(applied.index, (applied.term, applied.entry, applied.chain))
            if known != (applied.term, applied.entry, applied.chain):
                raise Broken(
                    f"{voter.name} applied another entry at {applied.index}: term {applied.term} against {known[0]}, "
                    f"{len(applied.entry)} bytes against {len(known[1])}"
                )
            voter.seen = applied.index
            self.applied += 1
        status = node.status
        if status.role == "leader":
            leader = self.leaders.setdefault(status.term, voter.name)
            if leader != voter.name:
                raise Broken(f"{voter.name} and {leader} both lead term {status.term}")
        if node.inside.commit > node.journal.last_index or node.inside.applied > node.inside.commit:
            raise Broken(f"{voter.name}: applied {node.inside.applied}, commit {node.inside.commit}")

    def _compare(self, name: str, machine: Machine) -> None:
        if machine.index and machine.index in self.log and self.log[machine.index][2] != machine.chain:
            raise Broken(f"{name} stands at {machine.index} with another chain")

    def finish(self, voters: Iterable[Voter]) -> None:
        """After the faults: everyone has everything that was acknowledged, and nothing happened twice."""
        for voter in voters:
            node = voter.node
            assert node is not None
            machine = node.machine
            self._compare(voter.name, machine)
            if machine.index < self.acknowledged_to:
                raise Broken(f"{voter.name} is at {machine.index}, {self.acknowledged_to} was acknowledged")
            by_request: dict[str, int] = {}
            for work in machine.state.work:
                request = work.split(":")[0]
                by_request[request] = by_request.get(request, 0) + 1
            for request, times in by_request.items():
                if times > 1:
                    raise Broken(f"{voter.name}: request {request} took effect {times} times")
            for request, index in self.acknowledged.items():
                if request not in by_request:
                    raise Broken(f"{voter.name}: request {request}, acknowledged at {index}, is lost")
