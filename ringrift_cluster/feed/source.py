"""What the router needs from a replica; a voter's and a follower's offer it alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from ringrift_cluster.replica import ReplicaStatus


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

    async def snapshot_file(self) -> SnapshotPath:
        """A file that stays for as long as a download takes. Raises ReplicaError."""
        ...

    def subscribe(self, wake: Callable[[], None]) -> int:
        """Call `wake`, from any thread, after entries were applied; returns a ticket."""
        ...

    def unsubscribe(self, ticket: int) -> None: ...
