"""Leadership transfer that works under load: hold proposals, let the target catch up, then hand over.

A voter that is not connected to a majority lets the order pass: its election would only leave the cluster without a
leader. One that was just named is not for a moment. The order is repeated, and where no target was named it goes to
the next voter that has caught up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ringrift_cluster.raft.conf import Timing
from ringrift_cluster.raft.journal import Journal
from ringrift_cluster.raft.membership import Membership
from ringrift_cluster.raft.messages import HandOver, Message, TimeoutNow
from ringrift_cluster.raft.privates import LEADER, Inside
from ringrift_cluster.raft.proposals import Proposals

Done = Callable[[str | None], None]

#: an order that shows no effect is repeated after so many
ORDER_AGAIN_HEARTBEATS = 2


@dataclass(slots=True)
class _Wish:
    target: str | None
    deadline: float
    done: Done
    leader_before: str | None


class Handover:
    """One transfer at a time on the leader; on others, wishes that wait for a new leader."""

    def __init__(
        self,
        membership: Membership,
        timing: Timing,
        inside: Inside,
        journal: Journal,
        proposals: Proposals,
        send: Callable[[str, Message], None],
    ) -> None:
        self._membership = membership
        self._timing = timing
        self._inside = inside
        self._journal = journal
        self._proposals = proposals
        self._send = send
        self._wishes: list[_Wish] = []
        #: the running transfer: target (None: anyone), until when proposals are held, who was ordered to take over
        self._target: str | None = None
        self._hold_until = 0.0
        self._ordered: list[str] = []
        self._order_at = 0.0

    def start(self, target: str | None, now: float, timeout_s: float, done: Done) -> None:
        leader = self._inside.leader_id
        if leader is None or leader == target or (target is not None and target not in self._membership.voters):
            done(leader if leader is not None and leader == target else None)
            return
        if leader != self._membership.node_id:
            self._send(leader, HandOver(target or ""))
        elif not self._proposals.held:
            self._proposals.held = True
            self._target = target
            self._ordered.clear()
            self._order_at = now
            self._hold_until = now + self._timing.election_min_s
        self._wishes.append(_Wish(target, now + timeout_s, done, leader))

    def step(self, now: float) -> None:
        """Run after each tick."""
        if self._proposals.held:
            self._advance(now)
        leader = self._inside.leader_id
        for wish in list(self._wishes):
            moved = leader is not None and leader != wish.leader_before
            if moved or now >= wish.deadline:
                self._wishes.remove(wish)
                wish.done(leader if moved else None)

    def _advance(self, now: float) -> None:
        if self._inside.role != LEADER or now >= self._hold_until:
            self._proposals.held = False
            return
        if now < self._order_at:
            return
        heir = self._caught_up()
        if heir is None:
            return
        self._send(heir, TimeoutNow(self._inside.term))
        if not self._ordered:
            # The election takes a round trip and an fsync or two; then go on if still leader.
            self._hold_until = now + self._timing.election_max_s
        self._ordered.append(heir)
        self._order_at = now + ORDER_AGAIN_HEARTBEATS * self._timing.heartbeat_s

    def _caught_up(self) -> str | None:
        """A voter that has every entry, one that was not ordered yet first."""
        last, match = self._journal.last_index, self._inside.match_index
        wanted = self._membership.others if self._target is None else (self._target,)
        heirs = [name for name in wanted if match.get(name) == last and self._lately(name)]
        return min(heirs, key=lambda name: (self._ordered.count(name), name), default=None)

    def _lately(self, name: str) -> bool:
        answered = self._inside.answered_at
        newest = max(answered.values(), default=0.0)
        return answered.get(name, 0.0) >= newest - 2 * self._timing.heartbeat_s

    def halt(self) -> None:
        for wish in self._wishes:
            wish.done(None)
        self._wishes.clear()
