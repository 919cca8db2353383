"""A voter without Raft, its feed, and followers that only read what they are sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from ringrift_cluster.feed import wire
from ringrift_cluster.feed.broadcast import ADMITTED
from ringrift_cluster.feed.router import FeedRouter
from ringrift_cluster.feed.wire import Batch
from tests.support.feeding import Voter
from tests.support.following import item
from tests.support.streaming import Pipe, Streaming

ZERO = "00" * 32


class Words:
    """The messages of one stream, read one at a time and only when asked for."""

    def __init__(self, chunks: AsyncIterator[bytes], pipe: Pipe) -> None:
        self._chunks = chunks
        self._messages = wire.Messages()
        self._ready: list[Batch] = []
        self.pipe = pipe

    async def next(self) -> Batch:
        while not self._ready:
            async with asyncio.timeout(10.0):
                self._ready = self._messages.take(await anext(self._chunks))
        return self._ready.pop(0)

    async def until(self, holds: Callable[[Batch], bool]) -> Batch:
        """The next message of that kind."""
        while not holds(batch := await self.next()):
            pass
        return batch

    async def entries(self, count: int) -> list[int]:
        """The indexes of the next entries."""
        found: list[int] = []
        while len(found) < count:
            found += [frame.index for frame in (await self.next()).frames]
        return found

    async def rest(self) -> list[Batch]:
        """Everything until the voter ends it."""
        found = []
        while True:
            try:
                found.append(await self.next())
            except StopAsyncIteration:
                return found


class Desk:
    """A voter, its router, and those who ask."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.voter = Voter("a", directory, keep=options.pop("keep", 1000))
        self.router = FeedRouter(self.voter, **options)
        #: whether the token of those who ask is good
        self.good = True
        self._app = Streaming(self._admitting)
        self.http = httpx.AsyncClient(transport=self._app, base_url="http://a")

    async def _admitting(self, scope: Any, receive: Any, send: Any) -> None:
        scope["extensions"][ADMITTED] = lambda: self.good
        await self.router(scope, receive, send)

    def commit(self, *names: str) -> None:
        for name in names:
            self.voter.commit([item(name)])

    def chain_at(self, index: int) -> str:
        (found,) = [a for a in self.voter.window.since(index - 1) or [] if a.index == index]
        return found.chain.hex()

    async def ask(self, after: int = 0, chain: str = ZERO, **more: Any) -> httpx.Response:
        return await self.http.get("/feed/entries", params={"after": after, "chain": chain, **more})

    async def message(self, after: int = 0, chain: str = ZERO) -> Batch:
        """The one message of a stream of no length."""
        response = await self.ask(after, chain)
        assert response.status_code == 200, response.text
        (batch,) = wire.Messages().take(response.content)
        return batch

    @asynccontextmanager
    async def listening(
        self, after: int = 0, chain: str = ZERO, seconds: float = 60.0, cluster: str = ""
    ) -> AsyncIterator[Words]:
        params: dict[str, str | float] = {"after": after, "chain": chain, "seconds": seconds, "cluster": cluster}
        async with self.http.stream("GET", "/feed/entries", params=params) as response:
            assert response.status_code == 200, await response.aread()
            pipe = self._app.pipes[-1]
            async with aclosing(response.aiter_raw()) as chunks:
                yield Words(chunks, pipe)
