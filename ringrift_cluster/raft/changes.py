"""Changing who votes, on the leader: one voter at a time, and only what is safe.

    add      invite the log -> it catches up as an observer -> append the list with it -> committed
    remove                                                     append the list without it -> committed

A list counts from the moment it is appended, so two lists under way at once could have majorities that do not
meet. The next change therefore waits until the last one is committed and a majority has applied it, and
until this leader has committed an entry of its own term (without that, two leaders in turn could each append a
list that differs from the other's in two voters). It also waits until a majority of the new list has answered this
leader, in its term: a voter that it has not heard yet may have lost its log.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ringrift_cluster.raft.conf import Timing
from ringrift_cluster.raft.configuration import Configuration
from ringrift_cluster.raft.guard import Guard
from ringrift_cluster.raft.journal import Journal
from ringrift_cluster.raft.membership import Membership
from ringrift_cluster.raft.privates import LEADER, Inside
from ringrift_cluster.replica import ChangeRefused, Halted, NoLeader, OutcomeUnknown, ReplicaError
from statemachine.values import Voter

Outcome = Configuration | ReplicaError
Done = Callable[[Outcome], None]

#: the log ids that a leader learned are written down this long after it took over
WRITE_DOWN_S = 0.5


@dataclass(slots=True)
class _Change:
    """The one change under way. `index` is 0 until its list is appended; past `deadline` it waits no longer."""

    text: str
    request: str
    waiting: list[Done]
    deadline: float
    #: the voter that is to be added, the one whose addresses change, or the one that goes
    joins: Voter | None = None
    moves: Voter | None = None
    goes: str = ""
    index: int = 0
    term: int = 0
    #: the round of catching up: its goal and when it began
    goal: int = 0
    since: float = 0.0

    def applied_to(self, voters: tuple[Voter, ...]) -> tuple[Voter, ...]:
        """The list with this change."""
        new = self.joins or self.moves
        others = [v for v in voters if v.node not in (self.goes, new.node if new else "")]
        return tuple(sorted((*others, new) if new else others, key=lambda v: v.node))

    def end(self, outcome: Outcome) -> None:
        for done in self.waiting:
            done(outcome)


@dataclass(frozen=True, slots=True)
class VoterState:
    """A voter, or one that catches up, as the leader sees it. `silent_ms` is since it last answered."""

    node: str
    state: str
    match: int
    applied: int
    silent_ms: int
    detail: str = ""


@dataclass(slots=True)
class VoterChanges:
    """`append` gives a list to the log; `reconfigure` is called when who is sent entries may have changed."""

    membership: Membership
    inside: Inside
    journal: Journal
    guard: Guard
    timing: Timing
    append: Callable[[tuple[Voter, ...], str], int]
    reconfigure: Callable[[], None]
    _change: _Change | None = field(default=None, init=False)
    _led_term: int = field(default=0, init=False)
    _led_since: float = field(default=0.0, init=False)
    #: a list that names every log
    _written_down: Configuration | None = field(default=None, init=False)

    # Orders

    def add(self, voter: Voter, request: str, now: float, timeout_s: float, done: Done) -> None:
        """Make `voter` one. Its `log_id` says which log; it must answer at its raft address within the time.

        Of one that votes already with that log, the addresses are brought up to date.
        """
        present = self.membership.configuration
        if self._repeats(f"add {voter.node}", request, done):
            return
        refusal = self._refusal(f"adding {voter.node}")
        known = present.of(voter.node)
        if refusal is None and known is not None and known.log_id != voter.log_id:
            refusal = ChangeRefused(
                f"{voter.node} is a voter with another log, which its disk lost; run "
                f"`ringrift-node voters remove {voter.node}` first"
            )
        double = next((v for v in present.voters if v.raft == voter.raft and v.node != voter.node), None)
        if refusal is None and double is not None:
            refusal = ChangeRefused(f"the raft address {voter.raft} is that of voter {double.node}")
        if refusal is not None:
            done(refusal)
        elif known == voter:
            done(present)
        elif known is not None:
            self._change = _Change(f"add {voter.node}", request, [done], now + self._patience_s, moves=voter)
            self.step(now)
        else:
            self._change = _Change(f"add {voter.node}", request, [done], now + timeout_s, joins=voter)
            self.membership.invited.add(voter.node)
            self.reconfigure()

    def remove(self, node: str, request: str, now: float, done: Done) -> None:
        """Let `node` vote no longer."""
        present = self.membership.configuration
        if self._repeats(f"remove {node}", request, done):
            return
        refusal = self._refusal(f"removing {node}")
        if refusal is None and present.of(node) is None:
            refusal = ChangeRefused(f"{node} is not a voter; {_listed(present.voters)} are")
        if refusal is None and len(present.voters) == 1:
            refusal = ChangeRefused(f"{node} is the last voter; a cluster without one has no leader")
        if refusal is None and node == self.membership.node_id:
            refusal = NoLeader(f"{node} leads and hands over before it is removed; ask the new leader")
        if refusal is not None:
            done(refusal)
        else:
            self._change = _Change(f"remove {node}", request, [done], now + self._patience_s, goes=node)
            self.step(now)

    def _repeats(self, text: str, request: str, done: Done) -> bool:
        """Whether this request is under way already, or was the last one that was carried out."""
        change = self._change
        if change is not None and change.text == text and (change.request == request or not request):
            change.waiting.append(done)
            return True
        present = self.membership.configuration
        if request and present.request == request and present.index <= self.inside.commit:
            done(present)
            return True
        return False

    def _refusal(self, what: str) -> ReplicaError | None:
        if self.inside.role != LEADER:
            leader = self.inside.leader_id
            return NoLeader(f"{what} is for the leader" + (f", which is {leader}" if leader else "; nobody leads"))
        if self._change is not None:
            return ChangeRefused(f"one change at a time: {self._change.text} is under way; {what} waits for it")
        return None

    @property
    def _patience_s(self) -> float:
        """How long a change waits for what is only a matter of time with a leader that has just been elected."""
        return 2 * self.timing.election_min_s

    def _not_yet(self, voters: tuple[Voter, ...], now: float) -> ChangeRefused | None:
        """Why this list must not be appended now."""
        if not self._own_term_committed():
            return ChangeRefused("this leader has not committed an entry of its own term yet; ask again")
        if not self.membership.configuration.index or not self.settled:
            return ChangeRefused("no majority has applied the last list of the voters yet; ask again")
        silent = sorted(v.node for v in voters if not self._answers(v.node, now))
        if 2 * (len(voters) - len(silent)) > len(voters):
            return None
        return ChangeRefused(
            f"of the voters that would remain ({_listed(voters)}) no majority answers: {', '.join(silent)} "
            f"{'is' if len(silent) == 1 else 'are'} silent; start them first"
        )

    def _answers(self, peer: str, now: float) -> bool:
        if peer == self.membership.node_id:
            return True
        # The library counts a voter as heard from the moment it leads, or knows the voter.
        heard = self.guard.heard_in.get(peer) == self.inside.term
        return heard and peer not in self.guard.excluded and not self._is_silent(peer, now)

    def _is_silent(self, peer: str, now: float) -> bool:
        return now - self.inside.answered_at.get(peer, 0.0) > 2 * self.timing.election_min_s

    def _own_term_committed(self) -> bool:
        return self.journal.term_at(self.inside.commit) == self.inside.term

    @property
    def settled(self) -> bool:
        """Whether the list in effect is committed, and applied by a majority of itself."""
        present = self.membership.configuration
        if present.index > self.inside.commit:
            return False
        applied = self.guard.applied_by
        done = sum(1 for v in present.names if self._applied(v, applied) >= present.index)
        return done >= present.quorum

    def _applied(self, voter: str, applied: dict[str, int]) -> int:
        return self.inside.applied if voter == self.membership.node_id else applied.get(voter, 0)

    def invitations(self) -> dict[str, str]:
        """Where the log that catches up is dialed."""
        joins = self._change.joins if self._change is not None and not self._change.index else None
        return {} if joins is None else {joins.node: joins.raft}

    # Turns

    @property
    def running(self) -> bool:
        """Whether a change waits for the next turn."""
        return self._change is not None

    def step(self, now: float) -> None:
        """Carry the change on; write down what was learned. Run in each turn."""
        if self.inside.role != LEADER:
            self._abandon()
            return
        if self._led_term != self.inside.term:
            self._abandon()
            self._led_term, self._led_since = self.inside.term, now
        change = self._change
        if change is None or not self.membership.configuration.index:
            self._write_down(now)
        if change is None:
            return
        if change.index:
            if self.settled and self.membership.configuration.index >= change.index:
                self._finish(self.membership.configuration)
        elif change.joins is not None:
            self._catch_up(change, change.joins, now)
        else:
            self._exchange(change, now)

    def _exchange(self, change: _Change, now: float) -> None:
        """Let a voter go or move once the others are known to manage."""
        voters = change.applied_to(self.membership.configuration.voters)
        refusal = self._not_yet(voters, now)
        if refusal is None:
            self._append(change, voters)
        elif now >= change.deadline:
            self._finish(refusal)

    def _catch_up(self, change: _Change, voter: Voter, now: float) -> None:
        """Rounds as in Raft: the newcomer is caught up when a round took less than an election timeout."""
        refusal: ChangeRefused | None = None
        match = self.inside.match_index.get(voter.node, 0)
        connected = self.membership.log_of(voter.node) == voter.log_id and match > 0
        if connected and match >= change.goal:
            if change.goal and now - change.since <= self.timing.election_min_s and self._answers(voter.node, now):
                voters = change.applied_to(self.membership.configuration.voters)
                refusal = self._not_yet(voters, now)
                if refusal is None:
                    self._append(change, voters)
                    return
            change.goal, change.since = self.journal.last_index, now
        if now >= change.deadline:
            silence = self.membership.refused.get(voter.node) or "it does not answer there"
            reached = f"it is at entry {match} of {self.journal.last_index}" if match else silence
            self._finish(
                refusal
                or ChangeRefused(
                    f"{voter.node} did not catch up in time over its raft address {voter.raft}: {reached}; "
                    "nothing was changed"
                )
            )

    def _append(self, change: _Change, voters: tuple[Voter, ...]) -> None:
        change.term = self.inside.term
        change.index = self.append(voters, change.request)
        if change.joins is not None:
            self.membership.invited.discard(change.joins.node)

    def _write_down(self, now: float) -> None:
        """Put the log ids that are known now into the list: from then on the log says which log a voter holds."""
        present = self.membership.configuration
        if present is self._written_down:
            return
        if present.index and all(v.log_id for v in present.voters):
            self._written_down = present
            return
        if now - self._led_since < WRITE_DOWN_S or not self._own_term_committed() or not self.settled:
            return
        voters = tuple(
            v if v.log_id else Voter(v.node, v.raft, v.url, self.membership.log_of(v.node)) for v in present.voters
        )
        if voters != present.voters or not present.index:
            self.append(voters, "")

    def _finish(self, outcome: Outcome) -> None:
        change, self._change = self._change, None
        if change is None:
            return
        if change.joins is not None:
            self.membership.invited.discard(change.joins.node)
            self.reconfigure()
        change.end(outcome)

    def _abandon(self) -> None:
        change = self._change
        if change is None:
            return
        if change.index:
            self._finish(OutcomeUnknown(f"leadership moved while {change.text} was under way; ask again"))
        else:
            self._finish(NoLeader(f"leadership moved before {change.text} began; ask again"))

    def halt(self, sentence: str) -> None:
        if self._change is not None:
            outcome = OutcomeUnknown(f"this voter stopped: {sentence}") if self._change.index else Halted(sentence)
            self._finish(outcome)

    # Views

    def view(self, now: float) -> list[VoterState]:
        """The voters and whoever catches up, with what the leader knows of their progress."""
        names = [*self.membership.voters, *sorted(self.membership.invited)]
        return [self._state_of(name, now) for name in names]

    def _state_of(self, name: str, now: float) -> VoterState:
        if name == self.membership.node_id:
            return VoterState(name, "voter", self.journal.last_index, self.inside.applied, 0)
        match, applied = self.inside.match_index.get(name, 0), self.guard.applied_by.get(name, 0)
        silent_ms = max(0, int((now - self.inside.answered_at.get(name, now)) * 1000))
        if name in self.membership.invited:
            return VoterState(name, "catching up", match, applied, silent_ms)
        if name in self.guard.excluded:
            return VoterState(name, "excluded", match, applied, silent_ms, self.guard.excluded[name])
        silent = self._is_silent(name, now)
        detail = self.membership.refused.get(name, "") if silent else ""
        return VoterState(name, "silent" if silent else "voter", match, applied, silent_ms, detail)


def _listed(voters: tuple[Voter, ...]) -> str:
    return ", ".join(sorted(v.node for v in voters))
