"""Whoever hears its leader catches up with it, within a bounded time and while the leader stays busy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ringrift_cluster.raft.privates import LEADER
from tests.simulation.disk import FAST_S
from tests.simulation.network import Connection, Network
from tests.simulation.voter import LIMITS, Voter
from tests.simulation.world import World

#: one part of a file, there and back
PART_S = 0.004
LOOK_S = 0.1
#: what a leader has committed is known to a voter that hears it after this time, a snapshot's way included
CATCH_UP_S = 2.5


@dataclass(frozen=True, slots=True)
class _Span:
    """A time in which nothing came between a leader and a voter."""

    since: float
    goal: int
    term: int
    connection: Connection
    lives: tuple[int, int]
    #: snapshots that the voter had installed
    installed: int


class Progress:
    """Looks at every pair of a leader and another voter."""

    def __init__(
        self, world: World, network: Network, voters: Sequence[Voter], leader: Callable[[], Voter | None]
    ) -> None:
        self._world = world
        self._network = network
        self._voters = voters
        self._leader = leader
        self._spans: dict[tuple[str, str], _Span] = {}
        #: spans at whose end the voter had caught up
        self.caught_up = 0

    def start(self) -> None:
        self._look()
        self._world.after(LOOK_S, self.start)

    def _look(self) -> None:
        leader = self._leader()
        spans, self._spans = self._spans, {}
        if leader is None or leader.node is None or leader.node.inside.role != LEADER or not _well(leader):
            return
        now = self._world.now
        for voter in self._voters:
            fresh = self._span(leader, voter)
            if fresh is None:
                continue
            pair = (leader.name, voter.name)
            span = spans.get(pair, fresh)
            same = (span.term, span.lives) == (fresh.term, fresh.lives) and span.connection is fresh.connection
            if same and now - span.since >= _patience_s(leader, voter, span):
                assert voter.node is not None
                if voter.node.inside.applied < span.goal:
                    self._world.fail(
                        f"{voter.name} has heard {leader.name} for {now - span.since:.1f} s and is at "
                        f"{voter.node.inside.applied}; {span.goal} was committed there when that began"
                    )
                self.caught_up += 1
                same = False
            self._spans[pair] = span if same else fresh

    def _span(self, leader: Voter, voter: Voter) -> _Span | None:
        """One that begins now; None when something is between the two."""
        network = self._network
        connection = network.connection(leader.name, voter.name)
        if voter is leader or voter.node is None or leader.node is None or connection is None or not _well(voter):
            return None
        if network.slowness > 1.0 or not network.reachable(leader.name, voter.name):
            return None
        if voter.name not in leader.node.membership.voters or not voter.node.membership.admitted:
            return None
        inside = leader.node.inside
        installed = voter.node.counters.snapshots_installed
        return _Span(self._world.now, inside.commit, inside.term, connection, (leader.life, voter.life), installed)


def _well(voter: Voter) -> bool:
    return not voter.paused and voter.disk.fsync_s == FAST_S and not voter.disk.full


def _patience_s(leader: Voter, voter: Voter, span: _Span) -> float:
    """By when a voter has caught up; one that fetches files meanwhile has two of them to fetch."""
    assert leader.node is not None
    assert voter.node is not None
    latest = leader.node._snapshots.latest
    fetches = voter.node._parts._fetch._transfer is not None or voter.node.counters.snapshots_installed > span.installed
    if latest is None or not fetches:
        return CATCH_UP_S
    return CATCH_UP_S + 2 * latest.size_bytes / LIMITS.part_bytes * PART_S
