"""The one way to the truth: propose commands to it, read views of it.

Two kinds of replica offer this protocol: a voter's (it runs Raft) and a follower's (it applies the
committed entries a voter feeds it). Whoever uses one cannot tell which, except by `status().role`.

    ReplicaError
     |- NoLeader          certainly not committed: nobody could take it
     |- Busy              certainly not committed: the queue is full, come back
     |- TooLarge          certainly not committed: over the size limit
     |- OutcomeUnknown    it may or may not take effect; repeat it under the same id
     |- Stale             the view asked for is not here (yet)
     |- ChangeRefused     the voters stay as they are; the text says why
     |- ReadOnly          this replica may not propose (older release, diverged)
     '- Halted            this replica stopped; the text says why
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from msgspec import Struct

from statemachine.errors import Result
from statemachine.state import State

T = TypeVar("T")


#: the authorization of the request that a task serves: a follower passes it on with what it proposes, so that its
#: own token lends nobody anything
on_behalf: ContextVar[str] = ContextVar("on_behalf", default="")


class ReplicaError(Exception):
    """Base of what a replica can answer instead of a result."""


class NoLeader(ReplicaError):  # noqa: N818 - these are answers
    """Certainly not committed: no leader could be reached."""


class Busy(ReplicaError):  # noqa: N818
    """Certainly not committed: too much is in flight; come back later."""


class TooLarge(ReplicaError):  # noqa: N818
    """Certainly not committed: the command is over the size limit."""


class OutcomeUnknown(ReplicaError):  # noqa: N818
    """It may have been committed or not; repeat it under the same id to learn which."""


class Stale(ReplicaError):  # noqa: N818
    """This replica cannot show the view that was asked for."""


class ChangeRefused(ReplicaError):  # noqa: N818
    """The voters were not changed: it would be unsafe, or another change is under way."""


class ReadOnly(ReplicaError):  # noqa: N818
    """This replica may read but not propose."""


class Halted(ReplicaError):  # noqa: N818
    """This replica has stopped."""


class Consistency(StrEnum):
    #: whatever this replica has applied
    LOCAL = "local"
    #: applied not longer ago than a bounded time, by contact with the leader
    FRESH = "fresh"
    #: after everything that was acknowledged before the read began (a barrier through the log)
    LINEARIZABLE = "linearizable"


class Proposed(Struct, frozen=True):
    """Where the commands were committed and what each came to."""

    index: int
    term: int
    results: tuple[Result, ...]


@dataclass(frozen=True, slots=True)
class Read(Generic[T]):
    """A query's value and the applied index it was computed at."""

    value: T
    index: int


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """What a replica publishes about itself; reading it costs nothing."""

    node_id: str
    cluster_id: str
    #: leader, voter (a voter that does not lead), candidate, or follower (does not vote)
    role: str
    leader_id: str | None
    term: int
    commit: int
    applied: int
    chain: str
    ready: bool
    voters: tuple[str, ...]
    #: voters that answered lately (as the leader knows it; elsewhere the ones connected)
    voters_heard: tuple[str, ...]
    #: since the last word from the leader (0 on the leader itself)
    contact_age_ms: int
    clock_ms: int
    halted: str | None = None
    read_only: str | None = None
    #: voters that were turned away, or excluded because their disk lost data, and why (as this voter knows it)
    refused: Mapping[str, str] = field(default_factory=dict)


class Replica(Protocol):
    """Callable from any asyncio loop of the process."""

    async def propose(self, commands: Sequence[bytes], *, timeout_s: float = 10.0) -> Proposed:
        """Commit encoded commands together, in order; one result each. Raises ReplicaError."""
        ...

    async def read(
        self,
        query: Callable[[State], T],
        *,
        consistency: Consistency = Consistency.LOCAL,
        at_least: int = 0,
        wait_s: float = 0.0,
    ) -> Read[T]:
        """Run a short pure query on the applied state. Raises Stale, NoLeader, Halted."""
        ...

    async def wait_for(self, index: int, timeout_s: float) -> int:
        """Wait until `index` is applied or the time is over; returns the applied index."""
        ...

    def status(self) -> ReplicaStatus: ...

    def live_state(self) -> State | None:
        """The state itself, for single look-ups by key from any thread: it changes under the caller's eyes."""
        ...

    async def transfer_leadership(self, target: str | None = None) -> str:
        """Hand leadership to a voter; returns who leads then. Raises NoLeader when none could take it."""
        ...

    async def stop(self) -> None: ...
