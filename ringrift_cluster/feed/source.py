"""What the router needs from a replica; a voter's and a follower's offer it alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from ringrift_cluster.replica import Consistency, Read, ReplicaStatus
from statemachine.state import State

T = TypeVar("T")


class FeedEntry(Protocol):
    """One applied entry and the digest chain after it."""

    @property
    def index(self) -> int: ...
    @property
    def term(self) -> int: ...
    @property
    def entry(self) -> bytes: ...
    @property
    def chain(self) -> bytes: ...


class SnapshotPath(Protocol):
    """A complete snapshot file."""

    @property
    def path(self) -> Path: ...


class LogFeed(Protocol):
    """A replica whose applied entries can be read again for a while."""

    def status(self) -> ReplicaStatus: ...

    def feed_since(self, index: int, limit: int = 1000) -> Sequence[FeedEntry] | None:
        """Applied entries after `index`, oldest first, at least one if there are any; None when some are gone."""
        ...

    async def snapshot_file(self, max_behind: int = 5_000) -> SnapshotPath:
        """A file at most so many entries old, that stays for as long as a download takes. Raises ReplicaError."""
        ...

    async def read(self, query: Callable[[State], T], *, consistency: Consistency = Consistency.LOCAL) -> Read[T]:
        """Run a query on a view of that consistency. Raises ReplicaError."""
        ...

    def subscribe(self, wake: Callable[[], None]) -> int:
        """Call `wake`, from any thread, after entries were applied; returns a ticket."""
        ...

    def unsubscribe(self, ticket: int) -> None: ...
