"""What a voter can tell of itself and of the others: who leads, who was heard, and how long ago."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ringrift_cluster.raft.guard import Guard
from ringrift_cluster.raft.journal import Journal
from ringrift_cluster.raft.membership import Membership
from ringrift_cluster.raft.privates import CANDIDATE, LEADER, Inside
from ringrift_cluster.raft.roster import Roster
from ringrift_cluster.replica import ReplicaStatus
from statemachine.machine import Machine

#: how old the ages in the published status may be
_PUBLISH_S = 0.05
#: turns that are further apart than this count into the age of the leader's word
_LATE_MS = 250


class Outlook:
    """Facts of the present turn, and `status` as of the end of the last one."""

    def __init__(
        self,
        membership: Membership,
        inside: Inside,
        journal: Journal,
        guard: Guard,
        roster: Roster,
        election_min_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._membership = membership
        self._inside = inside
        self._journal = journal
        self._guard = guard
        self._roster = roster
        self._election_min_s = election_min_s
        self._clock = clock
        self._published_at = 0.0
        self._renewed_at = 0.0

    @property
    def leader_id(self) -> str | None:
        """Who leads as far as is known here, and was heard lately enough to believe it."""
        return self._guard.elections.leader_id

    @property
    def ready(self) -> bool:
        """Whether an entry of the present term is committed and applied here."""
        inside = self._inside
        return self.leader_id is not None and self._journal.term_at(inside.applied) == inside.term

    def contact_age_s(self, now: float) -> float:
        """Since the last word of the leader; for the leader, since a quorum last answered."""
        if self._inside.role != LEADER:
            heard = self._guard.elections.heard_at
            return now - heard if heard > 0 else 1e6
        others = self._membership.others
        if not others:
            return 0.0
        answered_at = self._inside.answered_at
        answered = sorted((answered_at.get(peer, 0.0) for peer in others), reverse=True)
        return max(0.0, now - answered[self._membership.quorum - 2])

    def heard(self, now: float) -> tuple[str, ...]:
        """Voters that answered lately: as the leader knows, elsewhere the ones connected."""
        membership, inside = self._membership, self._inside
        if inside.role != LEADER:
            return tuple(sorted({membership.node_id, *self._roster.peers_up}.intersection(membership.voters)))
        since = now - self._election_min_s
        lately = [peer for peer, at in inside.answered_at.items() if at > since]
        return tuple(sorted({membership.node_id, *lately}.intersection(membership.voters)))

    def aged(self) -> ReplicaStatus:
        """The status for other threads: while this one's turn hangs, on its disk say, nobody's word grows younger."""
        renewed_at, status = self._renewed_at, self.status
        late_ms = int((self._clock() - renewed_at) * 1000)
        if late_ms < _LATE_MS or status.halted is not None:
            return status
        return replace(status, contact_age_ms=min(status.contact_age_ms + late_ms, 10**9))

    def publish(self, machine: Machine, now: float) -> None:
        """Renew the status when something in it moved; ages and who was heard may be 50 ms old."""
        old, inside = self.status, self._inside
        moved = (old.applied, old.commit, old.term) != (inside.applied, inside.commit, inside.term)
        if moved or old.leader_id != self.leader_id or now - self._published_at >= _PUBLISH_S:
            self.renew(machine, None)
            self._published_at = now

    def renew(self, machine: Machine, halted: str | None) -> None:
        """Publish all of it as it is now; `halted` is the sentence when this voter has stopped."""
        now = self._clock()
        inside, membership = self._inside, self._membership
        role = {LEADER: "leader", CANDIDATE: "candidate"}.get(inside.role, "voter")
        if halted is not None:
            role = "voter"
        elif membership.joining:
            role = "learner"
        self._renewed_at = now
        #: as of the end of the last turn
        self.status = ReplicaStatus(
            node_id=membership.node_id,
            cluster_id=membership.cluster_id,
            role=role,
            leader_id=self.leader_id if halted is None else None,
            term=inside.term,
            commit=inside.commit,
            applied=inside.applied,
            chain=machine.chain.hex(),
            ready=self.ready and halted is None,
            voters=membership.voters,
            voters_heard=self.heard(now),
            contact_age_ms=min(int(self.contact_age_s(now) * 1000), 10**9),
            clock_ms=machine.state.now_ms,
            halted=halted,
            refused={**membership.refused, **self._guard.excluded},
        )
