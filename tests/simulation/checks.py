"""What must hold in every run, whatever the faults."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ringrift_cluster.raft.privates import LEADER
from statemachine.machine import Machine
from tests.simulation.follower import Follower
from tests.simulation.ledger import Ledger
from tests.simulation.operator import SETTINGS
from tests.simulation.voter import Voter
from tests.simulation.world import Broken, World

#: a leader that a quorum always answered so lately is not deposed
HEALTHY_S = 0.3
#: for so long, while nothing befell the cluster but silent voters
QUIET_S = 1.5


@dataclass(slots=True)
class Checks:
    """The one log that all replicas must agree on, and what clients were told."""

    world: World
    ledger: Ledger
    voters: Sequence[Voter]
    #: index -> (term, entry, chain after it), as the first replica applied it
    log: dict[int, tuple[int, bytes, bytes]] = field(default_factory=dict)
    leaders: dict[int, str] = field(default_factory=dict)
    #: request id -> index it was acknowledged at
    acknowledged: dict[str, int] = field(default_factory=dict)
    #: items of attempts that were told that they certainly do not take effect
    refused: list[str] = field(default_factory=list)
    #: when something last happened that may cost a leader its place
    disturbed_at: float = 0.0
    unknown: int = 0
    reads: int = 0
    applied: int = 0
    installs: int = 0
    followed: int = 0

    @property
    def acknowledged_to(self) -> int:
        return max(self.acknowledged.values(), default=0)

    def committed(self, index: int, term: int) -> bool:
        known = self.log.get(index)
        return known is not None and known[0] == term

    # Voters

    def watch(self, voter: Voter) -> None:
        """Compare what a voter applied in its last turn with what the others applied."""
        node = voter.node
        assert node is not None
        machine, inside = node.machine, node.inside
        if machine.index != voter.seen:
            self._compare_window(voter)
        if inside.applied < voter.furthest:
            raise Broken(f"{voter.name} went back from {voter.furthest} to {inside.applied}")
        voter.furthest = inside.applied
        if inside.commit > node.journal.last_index or inside.applied > inside.commit:
            raise Broken(f"{voter.name}: applied {inside.applied}, commit {inside.commit}")
        self._watch_role(voter)

    def _compare_window(self, voter: Voter) -> None:
        node = voter.node
        assert node is not None
        fresh = node.window.since(voter.seen, limit=100_000, limit_bytes=1 << 40)
        if fresh is None:
            self.installs += 1
            self._compare(voter.name, node.machine)
            self.world.tell(f"{voter.name} took a snapshot, now at {node.machine.index}")
            fresh = node.window.since(node.machine.index) or []
            voter.seen = node.machine.index
        for applied in fresh:
            known = self.log.get(applied.index)
            if known is None:
                chain = self.ledger.apply(applied.index, applied.term, applied.entry)
                known = self.log[applied.index] = (applied.term, applied.entry, chain)
            if known != (applied.term, applied.entry, applied.chain):
                raise Broken(
                    f"{voter.name} applied another entry at {applied.index}: term {applied.term} against {known[0]}, "
                    f"{len(applied.entry)} bytes against {len(known[1])}"
                )
            voter.seen = applied.index
            self.applied += 1

    def _watch_role(self, voter: Voter) -> None:
        node = voter.node
        assert node is not None
        status = node.status
        if status.role == "leader":
            if voter.role != "leader":
                # Another candidate of its term may still be under way.
                voter.unhealthy_at = self.world.now
                self.world.tell(f"{voter.name} leads term {status.term} at {status.applied}, commit {status.commit}")
            leader = self.leaders.setdefault(status.term, voter.name)
            if leader != voter.name:
                raise Broken(f"{voter.name} and {leader} both lead term {status.term}")
            voter.led_at = self.world.now
            if node.inside.commit > voter.commit_seen:
                self._on_majority(voter, node.inside.commit)
            # The status is that of the last turn: by now it may have stepped down.
            if node.inside.role == LEADER and node.outlook.contact_age_s(voter.clock()) >= HEALTHY_S:
                voter.unhealthy_at = self.world.now
        elif voter.role == "leader":
            self.world.tell(f"{voter.name} no longer leads, term {status.term}, at {status.applied}")
            since = max(self.disturbed_at, voter.unhealthy_at)
            quiet = self.world.now - since > QUIET_S and node.proposals.closed is None
            if quiet and self.world.now - voter.led_at < HEALTHY_S:
                raise Broken(f"{voter.name} was deposed in term {status.term} while a quorum answered it")
        voter.role = status.role
        voter.commit_seen = node.inside.commit
        voter.list_seen = node.membership.configuration

    def _on_majority(self, leader: Voter, index: int) -> None:
        """What a leader counts as committed is on the disks of a majority at that moment, and stays there."""
        node = leader.node
        assert node is not None
        term = node.journal.term_at(index)
        if term is None:
            return
        # It may have appended another list right after it counted: the one that it counted by is the last but one then.
        lists = [node.membership.configuration, leader.list_seen or node.membership.configuration]
        holding = [v.name for v in self.voters if v.holds(index, term)]
        if all(len(set(holding).intersection(known.names)) < known.quorum for known in lists):
            raise Broken(
                f"{leader.name} counts entry {index} of term {term} as committed in term {node.inside.term}, "
                f"but only the disks of {holding} hold it"
            )

    def _compare(self, name: str, machine: Machine) -> None:
        if machine.index and machine.index in self.log and self.log[machine.index][2] != machine.chain:
            raise Broken(f"{name} stands at {machine.index} with another chain")

    # Followers

    def watch_follower(self, follower: Follower) -> None:
        """A follower's digest is the voters' at the same index, and it goes back only with another snapshot."""
        replica = follower.replica
        if replica is None:
            return
        machine = replica._mirror.machine
        if machine is None or machine.index == follower.seen:
            return
        if machine.index < follower.seen and replica.snapshots_taken == follower.snapshots:
            self.world.fail(f"{follower.name} went back from {follower.seen} to {machine.index}")
        known = self.log.get(machine.index)
        if known is None:
            self.world.fail(f"{follower.name} is at {machine.index}, which nobody applied")
        elif known[2] != machine.chain:
            self.world.fail(f"{follower.name} stands at {machine.index} with another chain")
        self.followed += 1
        follower.seen, follower.snapshots = machine.index, replica.snapshots_taken

    # The end

    def finish(self, voters: Iterable[Voter]) -> None:
        """After the faults: everyone has everything that was acknowledged, and nothing happened twice."""
        for voter in voters:
            node = voter.node
            assert node is not None
            machine = node.machine
            self._compare(voter.name, machine)
            if machine.index < self.acknowledged_to:
                raise Broken(f"{voter.name} is at {machine.index}, {self.acknowledged_to} was acknowledged")
        missing = SETTINGS.keys() - self.ledger.machine.state.settings.keys()
        if missing:
            raise Broken(f"the cluster runs without the settings {sorted(missing)}")
        work = self.ledger.machine.state.work
        by_request: dict[str, int] = {}
        for name in work:
            request, _, attempt = name.partition(":")
            if attempt:
                by_request[request] = by_request.get(request, 0) + 1
        for request, times in by_request.items():
            if times > 1:
                raise Broken(f"request {request} took effect {times} times")
        for request, index in self.acknowledged.items():
            if request not in by_request:
                raise Broken(f"request {request}, acknowledged at {index}, is lost")
        for item in self.refused:
            if item in work:
                raise Broken(f"{item} took effect after its client was told that it certainly would not")
        wrong = self.ledger.finish()
        if wrong:
            raise Broken(wrong)
