"""Waiting until something holds, on one event loop, without polling."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Changes:
    """Whoever changes something says so; whoever waits looks again."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def happened(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def until(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Wait until `holds`; False when the time is over. What it raises is raised here."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                while not holds():
                    await self._changed.wait()
        except TimeoutError:
            return holds()
        return True
