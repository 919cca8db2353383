"""Files that are being fetched into one store: whoever shares the store writes an unfinished file one at a time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Arrivals:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        #: by digest: who sent what is in the unfinished file
        self.senders: dict[str, set[str]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._askers: Counter[str] = Counter()

    @asynccontextmanager
    async def alone(self, digest: str) -> AsyncIterator[None]:
        """Wait until nobody else fetches this file, and keep others waiting until the block ends."""
        lock = self._locks.setdefault(digest, asyncio.Lock())
        self._askers[digest] += 1
        try:
            async with lock:
                yield
        finally:
            self._askers[digest] -= 1
            if not self._askers[digest]:
                del self._locks[digest], self._askers[digest]
