"""The last applied entries, kept for followers that stream the log from this voter."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

_CUT = 4096


@dataclass(frozen=True, slots=True)
class Applied:
    """One applied regular entry and the digest chain after it."""

    index: int
    term: int
    entry: bytes
    chain: bytes


def _index(applied: Applied) -> int:
    return applied.index


class Window:
    """A bounded run of applied entries. The consensus thread appends; any thread reads.

    Indexes of no-ops are missing from it, so a reader's position is the last regular index it has.
    """

    def __init__(self, max_entries: int, max_bytes: int, start: int = 0) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: list[Applied] = []
        #: entries before this position have left the window; they are cut off in runs
        self._head = 0
        self._bytes = 0
        #: entries after this index are all here
        self._start = start
        self._subscribers: dict[int, Callable[[], None]] = {}
        self._tickets = 0

    def append(self, applied: Applied) -> None:
        with self._lock:
            self._entries.append(applied)
            self._bytes += len(applied.entry)
            while len(self._entries) - self._head > self._max_entries or self._bytes > self._max_bytes:
                gone = self._entries[self._head]
                self._head += 1
                self._bytes -= len(gone.entry)
                self._start = gone.index
            if self._head > _CUT:
                del self._entries[: self._head]
                self._head = 0

    def restart(self, index: int) -> None:
        """Forget everything: a snapshot took its place."""
        with self._lock:
            self._entries.clear()
            self._head = 0
            self._bytes = 0
            self._start = index

    def since(self, index: int, limit: int = 1000, limit_bytes: int = 4 << 20) -> list[Applied] | None:
        """Entries after `index`, oldest first, at most `limit`; None when some of them are gone."""
        with self._lock:
            if index < self._start:
                return None
            first = bisect_right(self._entries, index, lo=self._head, key=_index)
            found: list[Applied] = []
            size = 0
            for applied in self._entries[first : first + limit]:
                size += len(applied.entry)
                if found and size > limit_bytes:
                    break
                found.append(applied)
            return found

    def subscribe(self, wake: Callable[[], None]) -> int:
        """Call `wake` (on the consensus thread; it must not block) after entries were applied."""
        with self._lock:
            self._tickets += 1
            self._subscribers[self._tickets] = wake
            return self._tickets

    def unsubscribe(self, ticket: int) -> None:
        with self._lock:
            self._subscribers.pop(ticket, None)

    def wake(self) -> None:
        with self._lock:
            subscribers = list(self._subscribers.values())
        for subscriber in subscribers:
            subscriber()
