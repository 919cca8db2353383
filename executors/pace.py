"""A bound on the bytes a second that the transfers of one node take together, in one direction."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


class Pace:
    """Lets `bytes_per_s` through on average; 0 is no bound. Belongs to one event loop."""

    def __init__(
        self,
        bytes_per_s: float = 0.0,
        clock_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.bytes_per_s = bytes_per_s
        self._clock_s = clock_s
        self._sleep = sleep
        #: when what was let through so far is paid for
        self._paid_s = 0.0

    async def take(self, size_bytes: int) -> None:
        """Return when so many bytes more may have gone through."""
        if self.bytes_per_s <= 0:
            return
        now = self._clock_s()
        self._paid_s = max(self._paid_s, now) + size_bytes / self.bytes_per_s
        if self._paid_s > now:
            await self._sleep(self._paid_s - now)
