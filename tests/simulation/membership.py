"""Voters that are added and removed while everything else goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from ringrift_cluster.raft.changes import Outcome
from ringrift_cluster.raft.configuration import Configuration
from statemachine.values import Voter as Named
from tests.simulation.voter import Voter

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster

ROUNDS = 5


class Membership:
    """One machine more than the cluster begins with: by turns one joins with an empty disk and one is removed."""

    def __init__(self, cluster: Cluster, size: int, make: Callable[[str, bool], Voter]) -> None:
        self._cluster = cluster
        self._size = size
        self._make = make
        self._idle = f"v{size + 1}"
        self._orders = 0
        self.changed = 0

    def names(self) -> tuple[str, ...]:
        """The voters as far as they are committed."""
        row = self._cluster.checks.ledger.machine.state.voters
        return tuple(v.node for v in row.voters) if row.index else tuple(f"v{i + 1}" for i in range(self._size))

    def change(self, rng: Random) -> None:
        """Add the machine that stands by, or remove a voter."""
        self._orders += 1
        names = self.names()
        if len(names) > self._size:
            leaving = rng.choice(names)
            self._cluster.world.tell(f"remove voter {leaving}")
            self._remove(leaving, f"change-{self._orders}", ROUNDS)
        elif self._idle:
            name, self._idle = self._idle, ""
            voter = self._make(name, True)
            self._cluster.voters.append(voter)
            voter.start()
            self._cluster.world.tell(f"add voter {name}")
            self._add(voter, f"change-{self._orders}", ROUNDS)
        else:
            joining = next((v for v in self._cluster.voters if v.name not in names), None)
            if joining is not None:
                self._add(joining, f"change-{self._orders}", ROUNDS)

    def _add(self, voter: Voter, request: str, rounds: int) -> None:
        leader = self._cluster.leader()
        if rounds == 0 or voter.node is None:
            return
        if leader is not None:
            joins = Named(voter.name, f"{voter.name}:1", "", voter.node.membership.log_id)
            done = self._answer(lambda: self._add(voter, request, rounds - 1))
            leader.call(lambda node: node.add_voter(joins, request, 3.0, done))
        else:
            self._cluster.world.after(0.5, lambda: self._add(voter, request, rounds - 1))

    def _remove(self, name: str, request: str, rounds: int) -> None:
        leader = self._cluster.leader()
        if rounds == 0:
            return
        if leader is not None and leader.name == name:
            self._cluster.hand_over(None)
        if leader is not None and leader.name != name:
            done = self._answer(lambda: self._remove(name, request, rounds - 1))
            leader.call(lambda node: node.remove_voter(name, request, done))
        else:
            self._cluster.world.after(0.5, lambda: self._remove(name, request, rounds - 1))

    def _answer(self, again: Callable[[], None]) -> Callable[[Outcome], None]:
        def done(outcome: Outcome) -> None:
            if isinstance(outcome, Configuration):
                self.changed += 1
                self._cluster.world.tell(f"the voters are {', '.join(sorted(outcome.names))} from {outcome.index} on")
            else:
                self._cluster.world.after(0.4, again)

        return done

    def left(self, voter: Voter) -> None:
        """A voter learned that it is none any more: its machine stands by, with its disk wiped when it joins."""
        self._cluster.voters.remove(voter)
        self._idle = voter.name
