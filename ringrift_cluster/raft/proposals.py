"""From a caller's commands to a log entry and back: queue, group commit, forwarding, outcomes.

Every proposal ends in exactly one call of `done`: with where it was committed and its results, or with
an answer that says whether it may still take effect. All that waits in one turn becomes one entry.

    queued -> proposed (leader)  -> Proposed | OutcomeUnknown | queued again (certainly not committed)
           -> forwarded (others) -> Proposed | OutcomeUnknown | Busy | queued again (not the leader)
           -> NoLeader | Busy | TooLarge
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import Struct

from ringrift_cluster.raft.conf import Limits, Timing
from ringrift_cluster.raft.counters import Counters
from ringrift_cluster.raft.messages import Forward, Forwarded, ForwardResult, Message
from ringrift_cluster.replica import (
    Busy,
    Halted,
    NoLeader,
    OutcomeUnknown,
    Proposed,
    ReplicaError,
    TooLarge,
)
from statemachine.commands import (
    FEATURE_LEVELS,
    MAX_COMMAND_BYTES,
    ConfigureVoters,
    Once,
    Signed,
    decode_command,
    effect_of,
    kind_of,
    level_of,
)
from statemachine.entries import MAX_ENTRY_BYTES, encode_entry
from statemachine.errors import Result

Outcome = Proposed | ReplicaError
#: room in an entry for its own fields and lengths
_ENTRY_ROOM = 1024
_PER_COMMAND = 8
#: the longest a forwarded proposal is kept
_PATIENCE_S = 300.0
#: commands of one forward message
_FORWARD_BYTES = 2 << 20


class Proposal(Struct, eq=False):
    """Commands of one caller, kept together in one entry. `deadline` is on the node's clock."""

    commands: Sequence[bytes]
    deadline: float
    done: Callable[[Outcome], None]
    queued_at: float
    size_bytes: int
    ended: bool = False

    def end(self, outcome: Outcome) -> None:
        if not self.ended:
            self.ended = True
            self.done(outcome)


@dataclass(slots=True)
class _InFlight:
    term: int
    size_bytes: int = 0
    commands: int = 0
    parts: list[Proposal] = field(default_factory=list)


class Proposals:
    """What callers of this voter (and of voters that forward to it) wait for."""

    def __init__(
        self,
        limits: Limits,
        timing: Timing,
        counters: Counters,
        send: Callable[[str, Message], None],
        append: Callable[[bytes], int],
        level: Callable[[], int] = lambda: 1,
    ) -> None:
        """`append` gives an entry to the library and returns its index; `level` is the cluster's feature level."""
        self._limits = limits
        self._timing = timing
        self._counters = counters
        self._send = send
        self._append = append
        self._level = level
        self._queue: deque[Proposal] = deque()
        self._queue_bytes = 0
        self._in_flight: dict[int, _InFlight] = {}
        self._in_flight_bytes = 0
        self._in_flight_commands = 0
        self._forwarded: dict[int, tuple[str, Proposal]] = {}
        self._numbers = 0
        self._answers: dict[str, list[ForwardResult]] = {}
        self._clock_term = 0
        self._clock_started_at = 0.0
        self._stamped_at = 0.0
        #: a sentence while this voter takes no commands
        self.closed: str | None = None
        #: proposals wait while leadership is handed over
        self.held = False

    # In

    def submit(self, commands: Sequence[bytes], now: float, timeout_s: float, done: Callable[[Outcome], None]) -> None:
        """Queue commands, or answer at once why not. An empty sequence is a barrier."""
        size = _ENTRY_ROOM + sum(map(len, commands)) + _PER_COMMAND * len(commands)
        proposal = Proposal(commands, now + timeout_s, done, now, size)
        refusal = self._refusal(proposal)
        if refusal is not None:
            self._counters.refusals[type(refusal).__name__.lower()] += 1
            proposal.end(refusal)
            return
        self._queue.append(proposal)
        self._queue_bytes += size

    def _refusal(self, proposal: Proposal) -> ReplicaError | None:
        if proposal.size_bytes > MAX_COMMAND_BYTES:
            largest = max(map(len, proposal.commands), default=0)
            if largest > MAX_COMMAND_BYTES:
                return TooLarge(
                    f"the command has {largest} bytes, the limit is {MAX_COMMAND_BYTES}; "
                    "put large content in an artifact"
                )
        if proposal.size_bytes > MAX_ENTRY_BYTES or len(proposal.commands) > self._limits.commands_per_entry:
            return TooLarge(
                f"{len(proposal.commands)} commands with {proposal.size_bytes} bytes are more than one entry "
                f"holds ({self._limits.commands_per_entry} commands, {MAX_ENTRY_BYTES} bytes); send fewer at once"
            )
        if self.closed is not None:
            return Busy(self.closed)
        full = len(self._queue) >= self._limits.queue
        if full or self._queue_bytes + proposal.size_bytes > self._limits.queue_bytes:
            return Busy(f"{len(self._queue)} proposals are waiting; come back in a moment")
        return None

    # Turn

    def propose(self, term: int, now: float, *, idle: bool) -> None:
        """As the leader: make entries of what waits. `idle` says that nothing is uncommitted."""
        if self.held:
            return
        while self._queue and self._room():
            self._propose_entry(term, now)
        if idle and not self._in_flight and now - self._stamped_at >= self._timing.clock_s:
            self._append_entry(term, now, [], _InFlight(term))

    def _room(self) -> bool:
        limits = self._limits
        return (
            len(self._in_flight) < limits.in_flight
            and self._in_flight_bytes < limits.in_flight_bytes
            and self._in_flight_commands < limits.in_flight_commands
        )

    def _propose_entry(self, term: int, now: float) -> None:
        group = _InFlight(term)
        commands: list[bytes] = []
        size = _ENTRY_ROOM
        while self._queue:
            proposal = self._queue[0]
            size += proposal.size_bytes - _ENTRY_ROOM
            count = len(commands) + len(proposal.commands)
            if group.parts and (size > MAX_ENTRY_BYTES or count > self._limits.commands_per_entry):
                break
            self._leave_queue()
            if proposal.deadline <= now:
                proposal.end(NoLeader("the proposal waited longer than its caller did"))
                continue
            bad = undecodable(proposal.commands, self._level())
            if bad is not None:
                proposal.end(ReplicaError(bad))
                continue
            commands.extend(proposal.commands)
            group.parts.append(proposal)
        if group.parts:
            self._append_entry(term, now, commands, group)

    def _append_entry(self, term: int, now: float, commands: list[bytes], group: _InFlight) -> None:
        entry = self.stamped(term, now, commands)
        group.size_bytes, group.commands = len(entry), len(commands)
        index = self._append(entry)
        if index in self._in_flight:
            # This voter led before, and its entry from then left its log. Another log may hold it still.
            for proposal in self._land(index).parts:
                proposal.end(
                    OutcomeUnknown("leadership moved while the entry was under way; repeat it under the same id")
                )
        self._in_flight[index] = group
        self._in_flight_bytes += group.size_bytes
        self._in_flight_commands += group.commands

    def stamped(self, term: int, now: float, commands: Sequence[bytes]) -> bytes:
        """An entry of these commands with this leader's clock on it."""
        if self._clock_term != term:
            self._clock_term, self._clock_started_at = term, now
        self._stamped_at = now
        return encode_entry(term, int((now - self._clock_started_at) * 1000), commands)

    def _leave_queue(self) -> Proposal:
        proposal = self._queue.popleft()
        self._queue_bytes -= proposal.size_bytes
        return proposal

    def forward(self, leader: str, now: float) -> None:
        """As another voter: send what waits to the leader."""
        while self._queue:
            items: list[tuple[int, list[bytes], int]] = []
            size = 0
            while self._queue and size < _FORWARD_BYTES:
                proposal = self._leave_queue()
                left_ms = int((proposal.deadline - now) * 1000)
                if left_ms <= 0:
                    proposal.end(NoLeader("the proposal waited longer than its caller did"))
                    continue
                self._numbers += 1
                self._forwarded[self._numbers] = (leader, proposal)
                items.append((self._numbers, list(proposal.commands), left_ms))
                size += proposal.size_bytes
            if items:
                self._send(leader, Forward(items))

    def expire(self, now: float) -> None:
        """End what waited too long. Linear in what waits; call it some times a second."""
        waiting, self._queue = self._queue, deque()
        patience = float("inf") if self.held else self._timing.leader_wait_s
        for proposal in waiting:
            if proposal.deadline <= now or now - proposal.queued_at > patience:
                self._queue_bytes -= proposal.size_bytes
                proposal.end(NoLeader("no leader could be reached; nothing was proposed"))
            else:
                self._queue.append(proposal)
        unknown = OutcomeUnknown("no answer in time; the commands may or may not take effect")
        for group in self._in_flight.values():
            for proposal in group.parts:
                if proposal.deadline <= now:
                    proposal.end(unknown)
        for number, (_, proposal) in list(self._forwarded.items()):
            if proposal.deadline <= now:
                del self._forwarded[number]
                proposal.end(unknown)

    # Out

    def applied(self, index: int, term: int, results: Sequence[Result]) -> None:
        """An entry was applied here: answer whoever waits for it."""
        if index not in self._in_flight:
            return
        group = self._land(index)
        if group.term != term:
            self._again(group)
            return
        start = 0
        for proposal in group.parts:
            end = start + len(proposal.commands)
            proposal.end(Proposed(index, term, tuple(results[start:end])))
            start = end

    def passed(self, applied: int) -> None:
        """Everything up to `applied` is: what was proposed there and did not come up was replaced."""
        for index in [i for i in self._in_flight if i <= applied]:
            self._again(self._land(index))

    def skipped(self, applied: int) -> None:
        """A snapshot went past these entries: whether they are in it cannot be told."""
        for index in [i for i in self._in_flight if i <= applied]:
            for proposal in self._land(index).parts:
                proposal.end(OutcomeUnknown("a snapshot passed the entry; repeat it under the same id"))

    def _land(self, index: int) -> _InFlight:
        group = self._in_flight.pop(index)
        self._in_flight_bytes -= group.size_bytes
        self._in_flight_commands -= group.commands
        return group

    def _again(self, group: _InFlight) -> None:
        # Another leader's entry is committed in its place, so this one never will be: it is safe to repeat.
        for proposal in reversed(group.parts):
            if not proposal.ended:
                self._queue.appendleft(proposal)
                self._queue_bytes += proposal.size_bytes

    def peer_lost(self, peer: str) -> None:
        """The connection to a voter broke: what was forwarded there has an unknown outcome."""
        self._answers.pop(peer, None)
        for number, (leader, proposal) in list(self._forwarded.items()):
            if leader == peer:
                del self._forwarded[number]
                proposal.end(OutcomeUnknown(f"the connection to {peer} broke before it answered"))

    def halt(self, sentence: str) -> None:
        """This voter stops: nothing waits any longer."""
        for proposal in self._queue:
            proposal.end(Halted(sentence))
        unknown = OutcomeUnknown(f"this voter stopped before the answer: {sentence}")
        for group in self._in_flight.values():
            for proposal in group.parts:
                proposal.end(unknown)
        for _, proposal in self._forwarded.values():
            proposal.end(unknown)
        self._queue.clear()
        self._in_flight.clear()
        self._forwarded.clear()

    # Forwarded by others

    def take_forward(self, peer: str, forward: Forward, now: float, *, leading: bool) -> None:
        """Queue another voter's proposals as the leader; otherwise say that nothing was proposed."""
        for number, commands, left_ms in forward.items:
            if leading:
                self.submit(commands, now, min(left_ms / 1000, _PATIENCE_S), self._answerer(peer, number))
            else:
                self._answer(peer, ForwardResult(number, 0, 0, [], "not_leader"))

    def _answerer(self, peer: str, number: int) -> Callable[[Outcome], None]:
        def answer(outcome: Outcome) -> None:
            if isinstance(outcome, Proposed):
                result = ForwardResult(number, outcome.index, outcome.term, list(outcome.results))
            else:
                refusal = _REFUSALS.get(type(outcome), "invalid")
                result = ForwardResult(number, 0, 0, [], refusal, str(outcome))
            self._answer(peer, result)

        return answer

    def _answer(self, peer: str, result: ForwardResult) -> None:
        self._answers.setdefault(peer, []).append(result)

    @property
    def owes_answers(self) -> bool:
        """Whether `send_answers` has something to tell."""
        return bool(self._answers)

    def send_answers(self) -> None:
        """Tell forwarding voters what came of their proposals."""
        answers, self._answers = self._answers, {}
        for peer, results in answers.items():
            self._send(peer, Forwarded(results))

    def take_forwarded(self, peer: str, forwarded: Forwarded) -> None:
        for result in forwarded.items:
            leader, proposal = self._forwarded.get(result.number, ("", None))
            if proposal is None or leader != peer:
                continue
            del self._forwarded[result.number]
            if not result.refusal:
                proposal.end(Proposed(result.index, result.term, tuple(result.results)))
            elif result.refusal in ("not_leader", "no_leader"):
                self._queue.append(proposal)
                self._queue_bytes += proposal.size_bytes
            else:
                proposal.end(_ERRORS.get(result.refusal, ReplicaError)(result.detail))

    @property
    def waiting(self) -> bool:
        """Whether proposals wait for a leader or for room."""
        return bool(self._queue)


_REFUSALS: dict[type[ReplicaError], str] = {
    NoLeader: "no_leader",
    Busy: "busy",
    TooLarge: "too_large",
    OutcomeUnknown: "unknown",
    Halted: "no_leader",
}
_ERRORS: dict[str, type[ReplicaError]] = {
    "busy": Busy,
    "too_large": TooLarge,
    "unknown": OutcomeUnknown,
}


#: commands that carry another one, and the one that consensus alone appends
_LOOKED_INTO = frozenset({Once, Signed, ConfigureVoters})


def undecodable(commands: Sequence[bytes], level: int) -> str | None:
    """Why the log must not take these commands, or None.

    An entry that cannot be decoded stops every voter, so the leader looks before it appends.
    """
    for command in commands:
        try:
            decoded = decode_command(command)
        except msgspec.MsgspecError as error:
            return f"the command cannot be decoded: {error}"
        kind = type(decoded)
        if kind not in _LOOKED_INTO and kind not in FEATURE_LEVELS:
            continue
        needed = level_of(decoded)
        if needed > level:
            # A member of an older release could not read the entry.
            name = kind_of(decoded)
            return f"the command {name} needs feature level {needed} and the cluster is at {level}; raise it first"
        if isinstance(effect_of(decoded), ConfigureVoters):
            return "who votes is changed with `ringrift-node voters`, never by a command among others"
    return None
