"""HTTP between simulated machines: what httpx offers, over virtual time, to a machine's ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
import msgspec

from ringrift_cluster.feed import wire
from ringrift_cluster.feed.broadcast import OUTLET
from tests.simulation.network import Network
from tests.simulation.pipe import Pipe
from tests.simulation.world import World


@dataclass(slots=True)
class Answer:
    """A response; `cut_short` says that the connection broke in its body."""

    status_code: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""
    cut_short: bool = False
    #: where the body comes from while it is made
    pipe: Pipe | None = None
    patience_s: float | None = None

    @property
    def is_success(self) -> bool:
        return 200 <= self.status_code < 300

    def json(self) -> Any:
        return msgspec.json.decode(self.content)

    async def aread(self) -> bytes:
        return self.content

    async def aiter_raw(self, chunk_size: int | None = None) -> AsyncIterator[bytes]:
        if self.pipe is not None:
            async with aclosing(self.pipe.parts(self.patience_s)) as parts:
                async for part in parts:
                    yield part
            return
        if self.cut_short:
            yield self.content[: len(self.content) // 2]
            raise httpx.ReadError("the connection broke")
        yield self.content


#: a machine's server: (scope, body, reply); the reply is None when it dies first
Serve = Callable[[dict[str, Any], bytes, Callable[[Answer | None], None]], None]


class Http:
    """Stands in for `httpx.AsyncClient` at one machine. `servers` maps host names to who listens there now."""

    def __init__(self, world: World, network: Network, owner: str, servers: Mapping[str, Callable[[], Serve | None]]):
        self._world = world
        self._network = network
        self._owner = owner
        self._servers = servers

    async def get(self, url: str, **options: Any) -> Answer:
        return await self._exchange("GET", url, **options)

    @asynccontextmanager
    async def stream(self, method: str, url: str, **options: Any) -> AsyncIterator[Answer]:
        answer = await self._exchange(method, url, **options)
        try:
            yield answer
        finally:
            if answer.pipe is not None:
                answer.pipe.leave()

    async def _exchange(
        self,
        method: str,
        url: str,
        *,
        content: bytes = b"",
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: httpx.Timeout | float = 5.0,
    ) -> Answer:
        body = content if json is None else msgspec.json.encode(json)
        patience = timeout if isinstance(timeout, httpx.Timeout) else httpx.Timeout(timeout)
        target = urlsplit(url)
        host = target.hostname or ""
        await asyncio.sleep(self._network.delay())
        if not self._network.reachable(self._owner, host):
            await asyncio.sleep(patience.connect or 0.0)
            raise httpx.ConnectTimeout(f"{host} does not answer")
        serve = self._servers[host]()
        if serve is None:
            raise httpx.ConnectError(f"nobody listens at {host}")
        scope = {
            "type": "http",
            "method": method,
            "path": target.path,
            "query_string": urlencode(params or {}).encode(),
            "headers": [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()],
            "extensions": {OUTLET: Pipe(self._world, self._network, host, self._owner)},
        }
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def reply(answer: Answer | None) -> None:
            self._world.after(self._network.delay(), lambda: arrive(answer))

        def arrive(answer: Answer | None) -> None:
            if answered.done():
                return
            if not self._network.reachable(self._owner, host):
                # What a cut holds back arrives after it.
                self._world.after(0.2, lambda: arrive(answer))
            elif answer is None:
                answered.set_exception(httpx.ReadError("the connection broke"))
            else:
                answer.cut_short = answer.pipe is None and self._world.chance(0.01)
                answer.patience_s = patience.read
                answered.set_result(answer)

        serve(scope, body, reply)
        try:
            async with asyncio.timeout(patience.read):
                return await answered
        except TimeoutError:
            raise httpx.ReadTimeout(f"{host} did not answer in time") from None


async def run_asgi(app: Any, scope: dict[str, Any], body: bytes, begin: Callable[[Answer], None]) -> Answer | None:
    """One request through an ASGI application; an answer that goes on is given to `begin`, and None is returned."""
    answer = Answer()
    chunks: list[bytes] = []
    pipe: Pipe = scope["extensions"][OUTLET]
    asked = False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if asked:
            # The client stays until it has its answer.
            await asyncio.get_running_loop().create_future()
        asked = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(event: dict[str, Any]) -> None:
        if event["type"] == "http.response.start":
            answer.status_code = event["status"]
            answer.headers = {k.decode(): v.decode() for k, v in event["headers"]}
            return
        if answer.pipe is None and scope["path"] == wire.ENTRIES and event.get("more_body"):
            answer.pipe = pipe
            begin(answer)
        if answer.pipe is None:
            chunks.append(event.get("body", b""))
            return
        await pipe.drained()
        pipe.pour(event.get("body", b""))
        if not event.get("more_body"):
            pipe.end()

    await app(scope, receive, send)
    answer.content = b"".join(chunks)
    return None if answer.pipe is not None else answer
