"""One request to this node's own HTTP face, without a socket: what a channel brings is answered like any other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Self

from ringrift_cluster.relay.frames import BEAT_S, PIECE_BYTES, Ask, Head

log = logging.getLogger("ringrift.relay")

#: An ASGI application.
Asgi = Callable[[Any, Any, Any], Awaitable[None]]

#: of a request's ASGI scope: whose it is, by a voter's word. No request from a socket can have it.
VOUCHED = "ringrift.vouched"
#: messages of the application that wait to be taken
_AHEAD = 2


class Broken(Exception):  # noqa: N818 - names a state of the world
    """The answer ended before its end."""


class Inside:
    """Use it as a context; leaving it tells the application that its client went away, and ends it."""

    def __init__(self, app: Asgi, ask: Ask) -> None:
        self._app = app
        self._ask = ask
        self._said: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(_AHEAD)
        self._asked = False
        self._left = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="relayed")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """The client went away."""
        task = self._task
        assert task is not None
        self._left.set()
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("event=relayed_request_failed path=%s", self._ask.path, exc_info=error)

    async def head(self) -> Head:
        """Raises Broken."""
        start = await self._said.get()
        if start is None or start["type"] != "http.response.start":
            raise Broken(f"{self._ask.path} was not answered")
        headers = {name.lower(): value for name, value in start["headers"]}
        return Head(start["status"], headers.get(b"content-type", b"").decode("latin-1"))

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body in pieces of bounded size; an empty one each time there was nothing for a while.

        Raises Broken when the application ends without ending its answer.
        """
        while True:
            try:
                async with asyncio.timeout(BEAT_S):
                    message = await self._said.get()
            except TimeoutError:
                yield b""
                continue
            if message is None:
                raise Broken(f"the answer of {self._ask.path} broke off")
            body = message.get("body", b"")
            if not body:
                yield b""
            for start in range(0, len(body), PIECE_BYTES):
                yield bytes(body[start : start + PIECE_BYTES])
            if not message.get("more_body", False):
                return

    async def _run(self) -> None:
        ask = self._ask
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": ask.method,
            "scheme": "http",
            "path": ask.path,
            "raw_path": ask.path.encode(),
            "query_string": ask.query.encode(),
            "root_path": "",
            "headers": [(b"content-type", b"application/json")],
            "client": ("relay", 0),
            "server": None,
            VOUCHED: ask.caller,
        }
        try:
            await self._app(scope, self._receive, self._said.put)
        finally:
            if not self._left.is_set():
                await self._said.put(None)

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._ask.body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}
