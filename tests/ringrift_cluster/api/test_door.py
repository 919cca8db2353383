"""The HTTP port under TLS, against clients that never shake hands."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from ringrift_cluster.api import door
from ringrift_cluster.api.connections import Connections
from ringrift_cluster.api.server import http_server
from ringrift_cluster.api.services import Services
from ringrift_cluster.tls import Tls
from tests.support.pki import Authority

pytestmark = pytest.mark.anyio


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Tls(Authority(tmp_path / "pki").issue("a"))


@asynccontextmanager
async def serving(
    services: Services, tls: Tls, *, clear_too: bool = False, given: socket.socket | None = None
) -> AsyncIterator[tuple[int, Connections]]:
    connections = Connections()
    server = http_server(services, connections, tls.http_server, clear_too=clear_too)
    listener = given or socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1], connections
    finally:
        server.should_exit = True
        await asyncio.wait_for(running, 10)


async def silent(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


async def status_of(port: int, tls: Tls) -> int:
    async with httpx.AsyncClient(verify=tls.http_client) as client:
        return (await client.get(f"https://127.0.0.1:{port}/health")).status_code


async def test_who_does_not_shake_hands_is_sent_away_and_counted(
    services: Services, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "HANDSHAKE_S", 0.2)
    async with serving(services, tls) as (port, connections):
        mute = await silent(port)
        plain = await silent(port)
        plain[1].write(b"GET /health HTTP/1.1\r\n\r\n")
        for reader, writer in (mute, plain):
            async with asyncio.timeout(10):
                await reader.read()
            writer.close()
        assert connections.refusals == {"tls": 2}
        assert await status_of(port, tls) == 200
        assert not connections.refusals["unread"]


async def test_nobody_keeps_others_out_by_shaking_no_hands(
    services: Services, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "HANDSHAKES", 8)
    async with serving(services, tls) as (port, connections):
        crowd = [await silent(port) for _ in range(50)]
        assert await status_of(port, tls) == 200
        assert connections.refusals["too_many_handshakes"] >= 42
        assert len(connections.open) <= 1
        for _, writer in crowd:
            writer.transport.abort()


async def test_the_node_stops_whoever_stands_at_the_door(services: Services, tls: Tls) -> None:
    async with serving(services, tls) as (port, _):
        mute = await silent(port)
        assert await status_of(port, tls) == 200
    async with asyncio.timeout(10):
        assert await mute[0].read() == b""
    mute[1].close()


async def test_while_a_cluster_moves_to_tls_both_are_served(
    services: Services, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "HANDSHAKE_S", 0.2)
    async with serving(services, tls, clear_too=True) as (port, connections):
        assert await status_of(port, tls) == 200
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{port}/health")).status_code == 200
        mute = await silent(port)
        async with asyncio.timeout(10):
            assert await mute[0].read() == b""
        mute[1].close()
        assert connections.refusals == {"tls": 1}


async def test_a_node_that_changes_its_seat_serves_on_under_the_same_socket(services: Services, tls: Tls) -> None:
    with socket.create_server(("127.0.0.1", 0)) as kept:
        for _ in range(3):
            async with serving(services, tls, given=kept.dup()) as (port, connections):
                assert await status_of(port, tls) == 200
                assert not connections.refusals
