"""Voters that are added and removed while everything else goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from ringrift_cluster.raft.changes import Outcome
from ringrift_cluster.raft.configuration import Configuration
from ringrift_cluster.raft.node import RaftNode
from ringrift_cluster.replica import OutcomeUnknown
from statemachine.values import Voter as Named
from tests.simulation.voter import Voter

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster

Then = Callable[[], None]
ROUNDS = 5
FOREVER = 1_000
#: a new voter has found the others after this time
CONNECTED_S = 1.0


def _nothing() -> None: ...


class Membership:
    """One machine more than the cluster begins with: by turns one joins with an empty disk and one is removed."""

    def __init__(self, cluster: Cluster, size: int, make: Callable[[str, bool], Voter]) -> None:
        self._cluster = cluster
        self._size = size
        self._make = make
        self._idle = f"v{size + 1}"
        self.orders = 0
        self.changed = 0
        self._changed_at = 0.0
        #: the voter that lost its disk, until it is one again
        self.replacing = ""
        self.wipes = 0
        self.replaced = 0

    def names(self) -> tuple[str, ...]:
        """The voters as far as they are committed."""
        row = self._cluster.checks.ledger.machine.state.voters
        return tuple(v.node for v in row.voters) if row.index else tuple(f"v{i + 1}" for i in range(self._size))

    @property
    def at_rest(self) -> bool:
        """Whether every machine that runs is a voter, has been one long enough to be connected, and stays one."""
        if self._cluster.world.now - self._changed_at < CONNECTED_S:
            return False
        return not self.replacing and sorted(v.name for v in self._cluster.voters) == sorted(self.names())

    def change(self, rng: Random) -> None:
        """Add the machine that stands by, or remove a voter."""
        self.orders += 1
        names = self.names()
        if len(names) > self._size:
            leaving = rng.choice(names)
            self._cluster.world.tell(f"remove voter {leaving}")
            self._remove(leaving, f"change-{self.orders}", ROUNDS)
        elif self._idle:
            name, self._idle = self._idle, ""
            self._join(name, ROUNDS)
        else:
            joining = next((v for v in self._cluster.voters if v.name not in names), None)
            if joining is not None:
                self._add(joining, f"change-{self.orders}", ROUNDS)

    # A voter that lost its disk

    def may_wipe(self, voter: Voter) -> bool:
        """One at a time, of a whole cluster that has a name on every disk: more is more than a majority can bear."""
        names = self.names()
        known = [v for v in self._cluster.voters if v.name in names and v.disk.facts.get("cluster_id")]
        row = self._cluster.checks.ledger.machine.state.voters
        # A list under way may have fewer voters, and then bear less.
        under_way = any((v.disk.list_at or 0) > row.index for v in known)
        whole = len(known) == len(names) >= self._size
        return not self.replacing and row.index > 0 and voter.name in names and whole and not under_way

    def wiped(self, voter: Voter, after_s: float) -> None:
        """People notice after a while: it is removed, and comes back as a new voter."""
        self.replacing = voter.name
        self.wipes += 1
        self._cluster.world.after(after_s, lambda: self._replace(voter))

    def _replace(self, voter: Voter) -> None:
        self.orders += 1
        self._cluster.world.tell(f"remove voter {voter.name}, which lost its disk")
        self._remove(voter.name, f"change-{self.orders}", FOREVER, lambda: self._come_back(voter))

    def _come_back(self, voter: Voter) -> None:
        if voter.alive:
            self._cluster.crash(voter)
        if voter in self._cluster.voters:
            self._cluster.voters.remove(voter)

        def back() -> None:
            self.replacing = ""
            self.replaced += 1

        self._join(voter.name, FOREVER, back)

    def _join(self, name: str, rounds: int, then: Then = _nothing) -> None:
        """A machine starts with an empty disk and is made a voter."""
        self.orders += 1
        voter = self._make(name, True)
        self._cluster.voters.append(voter)
        voter.start()
        self._cluster.world.tell(f"add voter {name}")
        self._add(voter, f"change-{self.orders}", rounds, then)

    # Orders to the leader

    def _add(self, voter: Voter, request: str, rounds: int, then: Then = _nothing) -> None:
        leader = self._cluster.leader()
        if rounds == 0:
            return
        if leader is not None and voter.node is not None:
            joins = Named(voter.name, f"{voter.name}:1", "", voter.node.membership.log_id)
            done = self._answer(lambda: self._add(voter, request, rounds - 1, then), then)
            self._call(leader, lambda node: node.add_voter(joins, request, 3.0, done), done)
        else:
            self._cluster.world.after(0.5, lambda: self._add(voter, request, rounds - 1, then))

    def _remove(self, name: str, request: str, rounds: int, then: Then = _nothing) -> None:
        leader = self._cluster.leader()
        if rounds == 0:
            return
        if name not in self.names():
            then()
            return
        if leader is not None and leader.name == name:
            self._cluster.hand_over(None)
        if leader is not None and leader.name != name:
            done = self._answer(lambda: self._remove(name, request, rounds - 1, then), then)
            self._call(leader, lambda node: node.remove_voter(name, request, done), done)
        else:
            self._cluster.world.after(0.5, lambda: self._remove(name, request, rounds - 1, then))

    def order_removal(self, leader: Voter, name: str) -> None:
        """Once, to this leader; nobody waits for the answer."""
        self.orders += 1
        request = f"change-{self.orders}"
        self._cluster.world.tell(f"{leader.name} is told to remove voter {name}")
        leader.call(lambda node: node.remove_voter(name, request, lambda outcome: None))

    def _call(self, leader: Voter, order: Callable[[RaftNode], None], done: Callable[[Outcome], None]) -> None:
        """An order that dies with its leader is answered, too: by whoever waits for it."""
        life = leader.life
        leader.call(order)

        def lost() -> None:
            if leader.life != life:
                done(OutcomeUnknown("the leader died"))
            else:
                self._cluster.world.after(0.5, lost)

        self._cluster.world.after(0.5, lost)

    def _answer(self, again: Callable[[], None], then: Then) -> Callable[[Outcome], None]:
        answered = False

        def done(outcome: Outcome) -> None:
            nonlocal answered
            if answered:
                return
            answered = True
            if isinstance(outcome, Configuration):
                self.changed += 1
                self._changed_at = self._cluster.world.now
                self._cluster.world.tell(f"the voters are {', '.join(sorted(outcome.names))} from {outcome.index} on")
                then()
            else:
                self._cluster.world.after(0.4, again)

        return done

    def left(self, voter: Voter) -> None:
        """A voter learned that it is none any more: its machine stands by, with its disk wiped when it joins."""
        if voter.name == self.replacing:
            return
        self._cluster.voters.remove(voter)
        self._idle = voter.name
