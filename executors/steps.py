"""What an attempt waits for, one step at a time, and how the wait is called off."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


class Steps:
    """Belongs to the loop of its attempt."""

    def __init__(self) -> None:
        self._taken: asyncio.Future[Any] | None = None

    async def take(self, step: Awaitable[T]) -> T:
        """Take a step; raises CancelledError when it is called off meanwhile."""
        taken: asyncio.Future[T] = asyncio.ensure_future(step)
        self._taken = taken
        try:
            return await taken
        finally:
            self._taken = None

    def call_off(self) -> None:
        """Cancel the step that is being taken, if there is one."""
        if self._taken is not None:
            self._taken.cancel()
