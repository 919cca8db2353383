"""PreVote: a voter asks whether it would win before it disturbs anyone.

The library starts an election whenever its deadline passes, which lets a voter that was paused or cut
off depose a healthy leader when it returns. Here a passed deadline starts a round of `PreVote`, and only
a majority of grants lets the library see the deadline. A voter refuses while it hears its leader. An
election ordered by the leader (`timeout_now`) asks nobody.
"""

from __future__ import annotations

from collections.abc import Callable

from ringrift_cluster.raft.conf import Timing
from ringrift_cluster.raft.counters import Counters
from ringrift_cluster.raft.journal import Journal
from ringrift_cluster.raft.membership import Membership
from ringrift_cluster.raft.messages import Message, PreVote, PreVoteReply
from ringrift_cluster.raft.privates import LEADER, Inside
from ringrift_cluster.raft.seams import outside

_NEVER = float("-inf")


class Elections:
    """The gate before the library's election deadline."""

    def __init__(
        self,
        membership: Membership,
        inside: Inside,
        journal: Journal,
        timing: Timing,
        counters: Counters,
        send: Callable[[str, Message], None],
    ) -> None:
        self._membership = membership
        self._inside = inside
        self._journal = journal
        self._timing = timing
        self._counters = counters
        self._send = send
        self._round = 0
        #: the term that the round is about
        self._asked_for = 0
        self._open = False
        self._grants: set[str] = set()
        #: a majority granted the next election
        self._passing = False
        #: the term in which the leader ordered one
        self._ordered_in: int | None = None
        self._heard_at = _NEVER
        #: the leader was silent for too long; the library goes on naming it until an election
        self._missed = False

    @property
    def leader_id(self) -> str | None:
        """Who leads, unless it was silent for a whole election timeout."""
        return None if self._missed and self._inside.role != LEADER else self._inside.leader_id

    @property
    def heard_at(self) -> float:
        """When the leader was last heard here."""
        return self._heard_at

    def heard_leader(self, now: float) -> None:
        """A leader of the present term spoke: an open round is moot."""
        self._heard_at = now
        self._missed = False
        self._open = False
        self._passing = False

    def lost_leader(self, now: float) -> None:
        """The leader's connection broke: forget that it was heard and try soon."""
        self._heard_at = _NEVER
        self._missed = True
        span = self._timing.hint_max_s - self._timing.hint_min_s
        soon = now + self._timing.hint_min_s + span * outside.rng.random()
        self._inside.deadline = min(self._inside.deadline, soon)

    def ordered(self) -> None:
        """The leader handed over: the next election needs no permission."""
        self._ordered_in = self._inside.term

    def postpone(self, now: float) -> None:
        span = self._timing.election_max_s - self._timing.election_min_s
        self._inside.deadline = now + self._timing.election_min_s + span * outside.rng.random()

    def gate(self, now: float, may_campaign: bool) -> bool:
        """Run before each tick: whether the library may begin an election in it."""
        if self._inside.role == LEADER or self._inside.deadline >= now:
            return False
        self._missed = True
        if not may_campaign:
            self._passing = False
            self.postpone(now)
            return False
        # The leader that ordered an election goes on sending heartbeats; they do not take it back.
        granted = self._passing and self._is_next(self._asked_for)
        if granted or self._ordered_in == self._inside.term or self._membership.quorum == 1:
            self._passing = False
            self._ordered_in = None
            self._open = False
            self._counters.elections += 1
            return True
        self.postpone(now)
        self._round += 1
        self._asked_for = self._inside.term + 1
        self._passing = False
        self._open = True
        self._grants = {self._membership.node_id}
        question = PreVote(
            round=self._round,
            term=self._asked_for,
            last_index=self._journal.last_index,
            last_term=self._journal.last_term,
        )
        for other in self._membership.others:
            self._send(other, question)
        return False

    def on_pre_vote(self, sender: str, question: PreVote, now: float) -> None:
        ours = (self._journal.last_term, self._journal.last_index)
        granted = (
            self._membership.may_vote
            and question.term > self._inside.term
            and (question.last_term, question.last_index) >= ours
            and not self._hears_leader(now)
        )
        self._send(sender, PreVoteReply(round=question.round, term=self._inside.term, granted=granted))

    def on_reply(self, sender: str, reply: PreVoteReply) -> None:
        """Count a grant; on a majority the deadline passes at the next tick.

        A grant is for one term: who has voted for another candidate in it since must not depose that one.
        """
        if not self._open or reply.round != self._round or not reply.granted or not self._is_next(self._asked_for):
            return
        self._grants.add(sender)
        # Counted by the list of now: it may have changed since the question went out.
        if len(self._grants.intersection(self._membership.voters)) >= self._membership.quorum:
            self._open = False
            self._passing = True
            self._inside.deadline = 0.0

    def _is_next(self, term: int) -> bool:
        return term == self._inside.term + 1

    def _hears_leader(self, now: float) -> bool:
        since = now - self._timing.election_min_s
        if self._inside.role != LEADER:
            return self.leader_id is not None and self._heard_at > since
        others = self._membership.others
        answered = sum(1 for peer, at in self._inside.answered_at.items() if at > since and peer in others)
        return answered + 1 >= self._membership.quorum
