"""Streams over real sockets, through the node's own HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from ringrift_cluster.api.connections import ConnectionLimits, Connections
from ringrift_cluster.api.server import http_server
from ringrift_cluster.api.services import Services
from ringrift_cluster.feed import wire
from statemachine.commands import CreateToken, RevokeToken, encode_command
from statemachine.values import Scope
from tests.support.feeding import Voter, services_of
from tests.support.following import eventually, item, run

ZERO = "00" * 32


@contextlib.asynccontextmanager
async def served(services: Services, limits: ConnectionLimits = ConnectionLimits()) -> AsyncIterator[int]:
    listener = socket.socket()
    # What nobody reads is to pile up here, not in the kernel.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    listener.bind(("127.0.0.1", 0))
    server = http_server(services, Connections(limits), None)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    await eventually(lambda: server.started)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        services.feed.close()  # type: ignore[union-attr]
        await task
        listener.close()


def query(after: int = 0, chain: str = ZERO, seconds: float = 60.0) -> dict[str, str | float]:
    return {"after": after, "chain": chain, "seconds": seconds}


def test_a_stream_is_one_answer_in_chunks_and_its_connection_is_good_for_the_next_request(tmp_path: Path) -> None:
    async def scenario() -> None:
        voter = Voter("a", tmp_path)
        voter.commit([item("w1")])
        async with served(services_of(voter, {})) as port, httpx.AsyncClient() as http:
            url = f"http://127.0.0.1:{port}{wire.ENTRIES}"
            for life in range(2):
                found: list[int] = []
                messages = wire.Messages()
                async with http.stream("GET", url, params=query(seconds=0.5)) as response:
                    assert response.headers["transfer-encoding"] == "chunked"
                    async for chunk in response.aiter_raw():
                        found += [frame.index for batch in messages.take(chunk) for frame in batch.frames]
                        if found == list(range(1, life + 2)):
                            voter.commit([item(f"x{life}")])
                assert not messages.unfinished
                assert found == list(range(1, life + 3))
            (pool,) = http._transport._pool.connections  # type: ignore[attr-defined]
            assert pool.is_idle()

    run(scenario())


def test_a_reader_that_reads_nothing_is_cut_and_holds_little_until_then(tmp_path: Path) -> None:
    async def scenario() -> None:
        voter = Voter("a", tmp_path, keep=100_000)
        services = services_of(voter, {})
        async with served(services, ConnectionLimits(unread_s=1.0)) as port, httpx.AsyncClient() as http:
            deaf = socket.socket()
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", port))
            deaf.sendall(f"GET {wire.ENTRIES}?after=0&chain={ZERO}&seconds=60 HTTP/1.1\r\nhost: a\r\n\r\n".encode())
            router = services.feed
            await eventually(lambda: router.streams == 1)  # type: ignore[union-attr]
            async with http.stream("GET", f"http://127.0.0.1:{port}{wire.ENTRIES}", params=query()) as response:
                messages, count = wire.Messages(), 0
                for n in range(4_000):
                    voter.commit([item(f"w{n}")])
                async for chunk in response.aiter_raw():
                    count += sum(len(batch.frames) for batch in messages.take(chunk))
                    if count == 4_000:
                        break
                # The others got everything while it was held up, and then it was cut.
                async with asyncio.timeout(10):
                    while router.streams > 1:  # type: ignore[union-attr]
                        await asyncio.sleep(0.01)
            deaf.close()

    run(scenario())


def test_a_stream_ends_with_the_token_that_opened_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        voter = Voter("a", tmp_path)
        own = CreateToken("node:f", Scope.NODE, hashlib.sha256(b"own").hexdigest(), "f")
        voter.commit([encode_command(own)])
        async with served(services_of(voter, {}, token="right")) as port:
            headers = {"authorization": "Bearer own"}
            async with (
                httpx.AsyncClient(headers=headers) as http,
                http.stream("GET", f"http://127.0.0.1:{port}{wire.ENTRIES}", params=query()) as response,
            ):
                assert response.status_code == 200
                chunks = response.aiter_raw()
                await anext(chunks)
                voter.commit([encode_command(RevokeToken("node:f", "sold"))])
                async with asyncio.timeout(5):
                    async for _ in chunks:
                        pass

    run(scenario())
