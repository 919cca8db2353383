"""An answer that goes on: what is poured in at one machine comes out at another, in order, until it breaks."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

import httpx

from tests.simulation.network import Network
from tests.simulation.world import World

#: bytes on their way and unread before the connection takes no more
HIGH_WATER = 8_000
#: what a cut holds back sets out again after this time
AGAIN_S = 0.2


class Pipe:
    """One connection's answer, between two machines and their loops."""

    def __init__(self, world: World, network: Network, writer: str, reader: str) -> None:
        self._world = world
        self._network = network
        self._ends = (writer, reader)
        #: oldest first; an arrival takes the oldest, and None is the end
        self._under_way: deque[bytes | None] = deque()
        self._last_at = 0.0
        self._arrived: deque[bytes | None] = deque()
        self._unread = 0
        self._waiting: list[asyncio.Future[None]] = []
        self._broken = False
        #: nobody reads any more
        self.left = False

    # The writer's end

    @property
    def full(self) -> bool:
        return self._unread > HIGH_WATER

    @property
    def closed(self) -> bool:
        return self.left or self._broken

    def pour(self, body: bytes) -> None:
        if body and not self.closed:
            if self._world.chance(0.001):
                self.break_off()
            else:
                self._unread += len(body)
                self._set_out(body)

    def end(self) -> None:
        if not self.closed:
            self._set_out(None)

    async def drained(self) -> None:
        while self.full and not self.closed:
            await self._changed()

    def break_off(self) -> None:
        """The connection is gone, and what was under way with it."""
        self._broken = True
        self._wake()

    def _set_out(self, body: bytes | None) -> None:
        self._under_way.append(body)
        self._last_at = max(self._world.now + self._network.delay(), self._last_at)
        self._world.at(self._last_at, self._arrive)

    def _arrive(self) -> None:
        if self.closed:
            return
        if not self._network.reachable(*self._ends):
            self._world.after(AGAIN_S, self._arrive)
            return
        self._arrived.append(self._under_way.popleft())
        self._wake()

    # The reader's end

    async def parts(self, patience_s: float | None) -> AsyncGenerator[bytes, None]:
        """Raises httpx.ReadError when it breaks, httpx.ReadTimeout when nothing comes for so long."""
        while True:
            while self._arrived:
                part = self._arrived.popleft()
                if part is None:
                    return
                self._unread -= len(part)
                self._wake()
                yield part
            if self._broken:
                raise httpx.ReadError("the connection broke")
            try:
                async with asyncio.timeout(patience_s):
                    await self._changed()
            except TimeoutError:
                raise httpx.ReadTimeout(f"nothing came for {patience_s} s") from None

    def leave(self) -> None:
        self.left = True
        self._wake()

    # Both

    async def _changed(self) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        await waiting

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.done():
                one.set_result(None)
