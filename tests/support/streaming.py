"""An ASGI application without sockets whose answers arrive while they are made, also those poured past the queues."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx

from ringrift_cluster.feed.broadcast import OUTLET

#: bytes that nobody has read before a connection is full
HIGH_WATER = 64 * 1024


class Pipe(httpx.AsyncByteStream):
    """The body of one answer: what its writers wrote and its reader has not read."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._changed = asyncio.Event()
        self._unread = 0
        self._closed = False
        self._ended = False
        self._broken: BaseException | None = None

    @property
    def closed(self) -> bool:
        return self._closed or self._broken is not None

    @property
    def full(self) -> bool:
        return self._unread > HIGH_WATER

    def pour(self, body: bytes) -> None:
        if body and not self.closed and not self._ended:
            self._parts.append(body)
            self._unread += len(body)
            self._wake()

    def end(self, broken: BaseException | None = None) -> None:
        self._ended = True
        self._broken = broken
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def drained(self) -> None:
        while self.full and not self.closed:
            await self._changed.wait()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            if self._parts:
                part = self._parts.pop(0)
                self._unread -= len(part)
                self._wake()
                yield part
            elif self._ended:
                if self._broken is not None:
                    raise self._broken
                return
            else:
                await self._changed.wait()

    async def aclose(self) -> None:
        self._closed = True
        self._wake()


class Streaming(httpx.AsyncBaseTransport):
    """Answers with the application's own answer, from its head on."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.pipes: list[Pipe] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        pipe = Pipe()
        self.pipes.append(pipe)
        head: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        asked = False

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if asked:
                while not pipe.closed:
                    await pipe._changed.wait()
                return {"type": "http.disconnect"}
            asked = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            await pipe.drained()
            if message["type"] == "http.response.start":
                head.set_result(message)
                return
            pipe.pour(message.get("body", b""))

        async def answer() -> None:
            url = request.url
            scope = {
                "type": "http",
                "asgi": {"version": "3.0"},
                "http_version": "1.1",
                "method": request.method,
                "scheme": url.scheme,
                "path": url.path,
                "raw_path": url.raw_path,
                "query_string": url.query,
                "headers": [(k.lower(), v) for k, v in request.headers.raw],
                "server": (url.host, url.port),
                "client": ("127.0.0.1", 1),
                "root_path": "",
                "extensions": {OUTLET: pipe},
            }
            await self._app(scope, receive, send)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            failure = None if task.cancelled() else task.exception()
            if failure is not None and not head.done():
                head.set_exception(failure)
            else:
                # Its end is that of the application, which then has closed its files.
                pipe.end(failure)

        task = asyncio.create_task(answer())
        self._tasks.add(task)
        task.add_done_callback(ended)
        started = await head
        return httpx.Response(started["status"], headers=started["headers"], stream=pipe)
