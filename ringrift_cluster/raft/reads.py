"""Reads and waits: each is answered on the consensus thread once its condition holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ringrift_cluster.raft.conf import Timing
from ringrift_cluster.raft.proposals import Outcome, Proposals
from ringrift_cluster.replica import (
    Busy,
    Consistency,
    Halted,
    NoLeader,
    Proposed,
    ReplicaError,
    Stale,
)
from statemachine.machine import Machine

#: given the machine to read from, or why there is none
Reader = Callable[[Machine | ReplicaError], None]


@dataclass(slots=True, eq=False)
class _Waiting:
    consistency: Consistency
    at_least: int
    deadline: float
    reader: Reader


class Reads:
    """Everything that waits to see the machine.

    A linearizable read waits for a barrier: an entry without commands, proposed after the read arrived
    and applied here before it runs. All reads of one turn share one.
    """

    def __init__(self, proposals: Proposals, timing: Timing, clock: Callable[[], float]) -> None:
        self._proposals = proposals
        self._timing = timing
        self._clock = clock
        self._waiting: list[_Waiting] = []
        self._for_barrier: list[_Waiting] = []
        self._halted: str | None = None

    def submit(self, consistency: Consistency, at_least: int, wait_s: float, reader: Reader) -> None:
        """Queue a read; `reader` is called once, at the end of a turn."""
        if self._halted is not None:
            reader(Halted(self._halted))
            return
        now = self._clock()
        if consistency is Consistency.LINEARIZABLE:
            wait_s = max(wait_s, self._timing.barrier_s)
            self._for_barrier.append(_Waiting(consistency, at_least, now + wait_s, reader))
        else:
            self._waiting.append(_Waiting(consistency, at_least, now + wait_s, reader))

    def start_barriers(self, now: float) -> None:
        """Propose one barrier for all reads that came since the last turn."""
        if not self._for_barrier:
            return
        readers, self._for_barrier = self._for_barrier, []
        patience = max(r.deadline for r in readers) - now

        def done(outcome: Outcome) -> None:
            if isinstance(outcome, Proposed):
                for waiting in readers:
                    waiting.at_least = max(waiting.at_least, outcome.index)
                self._waiting.extend(readers)
                return
            plain = isinstance(outcome, NoLeader | Busy | Halted)
            error = outcome if plain else Stale("no leader confirmed the view in time; read again")
            for waiting in readers:
                waiting.reader(error)

        self._proposals.submit((), now, patience, done)

    @property
    def waiting(self) -> bool:
        """Whether `answer` has something to look at."""
        return bool(self._waiting)

    def answer(self, machine: Machine, applied: int, contact_age_s: float, now: float) -> None:
        """Run what can run, refuse what waited too long."""
        ready, self._waiting = self._waiting, []
        for waiting in ready:
            fresh = waiting.consistency is not Consistency.FRESH or contact_age_s <= self._timing.fresh_s
            if applied >= waiting.at_least and fresh:
                waiting.reader(machine)
            elif now >= waiting.deadline:
                waiting.reader(self._stale(waiting, applied, contact_age_s))
            else:
                self._waiting.append(waiting)

    def _stale(self, waiting: _Waiting, applied: int, contact_age_s: float) -> Stale:
        if applied < waiting.at_least:
            return Stale(f"entry {waiting.at_least} is not applied here yet; this voter is at {applied}")
        return Stale(
            f"this voter last heard a leader {contact_age_s:.1f} s ago; a fresh view wants {self._timing.fresh_s:g} s"
        )

    def halt(self, sentence: str) -> None:
        self._halted = sentence
        waiting = [*self._waiting, *self._for_barrier]
        self._waiting, self._for_barrier = [], []
        for one in waiting:
            one.reader(Halted(sentence))
