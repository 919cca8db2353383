"""A follower's voters may be broken or bad, and a voter's followers greedy: a named error, and bounded memory."""

from __future__ import annotations

import asyncio
import gzip
import random
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from ringrift_cluster import replica as rp
from ringrift_cluster.api.examples import BEAT
from ringrift_cluster.client import flows
from ringrift_cluster.client.clients import Client
from ringrift_cluster.client.errors import ClientError
from ringrift_cluster.client.session import Session
from ringrift_cluster.client.steps import Answer, Next, Open
from ringrift_cluster.feed import voters as module
from ringrift_cluster.feed import wire
from ringrift_cluster.feed.voters import Unreachable, Voters
from tests.ringrift_cluster.feed.test_router import Desk

DEEP = b"\x91" * 60_000 + b"\xc0"
DEEP_JSON = b"[" * 60_000 + b"]" * 60_000
NONSENSE: dict[str, bytes] = {
    "empty": b"",
    "no utf-8 in msgpack": b"\x92\xa4\xff\xfe\xfd\xfc\x90",
    "no utf-8 in json": b'{"index": "\xff", "leader_id": "\xff", "code": "\xff"}',
    "deep msgpack": DEEP,
    "deep json": DEEP_JSON,
    "another type": b'{"index": "one", "leader_id": 7, "code": []}',
    "a list": b"[1, 2]",
    "html": b"<html>hello</html>",
}


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b"x" * 65_536


async def trickle() -> AsyncIterator[bytes]:
    while True:
        yield b"x"
        await asyncio.sleep(0.01)  # what makes it a trickle


def asking(answer: Callable[[httpx.Request], httpx.Response]) -> Voters:
    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return Voters({"a": "http://a"}, http, token=None, rng=random.Random(1), clock=time.monotonic)


CALLS: dict[str, Callable[[Voters], Any]] = {
    "poll": lambda voters: voters.poll("c", 1, bytes(32), 0.1, 1 << 20),
    "propose": lambda voters: voters.propose((b"x",), 0.3),
    "heartbeat": lambda voters: voters.heartbeat(BEAT, 0.3),
    "transfer": lambda voters: voters.transfer(None),
}


@pytest.mark.parametrize("status", [200, 400, 409, 500])
@pytest.mark.parametrize("body", NONSENSE.values(), ids=NONSENSE)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_nonsense_of_a_voter_is_an_error_with_a_sentence(call: Any, body: bytes, status: int) -> None:
    voters = asking(lambda request: httpx.Response(status, stream=httpx.ByteStream(body)))
    with pytest.raises((Unreachable, module.PositionRefused, rp.ReplicaError)):
        asyncio.run(call(voters))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_answer_without_end_is_left(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_ANSWER_BYTES", 1 << 20)
    voters = asking(lambda request: httpx.Response(200, content=endless()))
    with pytest.raises((Unreachable, rp.ReplicaError), match="over"):
        asyncio.run(call(voters))


@pytest.mark.parametrize("call", [CALLS["poll"], CALLS["propose"], CALLS["heartbeat"]], ids=["poll", "propose", "beat"])
def test_an_answer_that_trickles_is_left(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRANSFER_S", 0.2)
    voters = asking(lambda request: httpx.Response(200, content=trickle()))
    with pytest.raises((Unreachable, rp.ReplicaError), match="took over"):
        asyncio.run(call(voters))


def test_an_answer_is_not_unpacked() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers["accept-encoding"])
        return httpx.Response(
            200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(gzip.compress(bytes(1 << 26)))
        )

    with pytest.raises(Unreachable, match="cannot be read"):
        asyncio.run(CALLS["poll"](asking(answer)))
    assert asked == ["identity"]


def test_a_snapshot_without_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_SNAPSHOT_BYTES", 1 << 20)
    voters = asking(lambda request: httpx.Response(200, content=endless()))
    with pytest.raises(Unreachable, match="no end"):
        asyncio.run(voters.download(tmp_path / "draft"))
    assert (tmp_path / "draft").stat().st_size <= 1 << 20


@pytest.mark.parametrize("body", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_of_a_node_is_a_client_error(body: bytes) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=body + b"\n"))
    with Client("http://a", transport=transport, retry_s=0.1, contact_s=0.1) as client:
        for call in (client.status, client.leader, client.dump):
            with pytest.raises(ClientError):
                call()
        if body:
            with pytest.raises(ClientError):
                list(client.events())


def test_a_line_of_events_without_end_is_not_collected() -> None:
    flow = flows.events(Session("http://a"))
    assert isinstance(next(flow), Open)
    assert isinstance(flow.send(Answer(200, {}, b"")), Next)
    with pytest.raises(ClientError, match="no end"):
        for _ in range(100):
            flow.send(b"x" * 65_536)


# --- the feeding side -------------------------------------------------------------------------------


def test_a_large_batch_leaves_in_pieces_and_is_the_same(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path, keep=20_000)
        desk.commit(*(f"w{n:05d}" for n in range(5_000)))
        # More than the window's default of entries in one answer is what makes it large.
        monkey = desk.voter.window.since
        desk.voter.feed_since = lambda index, limit=1000: monkey(index, 20_000)  # type: ignore[method-assign]
        sizes: list[int] = []

        async def receive() -> dict[str, Any]:
            await asyncio.Event().wait()  # the other end stays
            raise AssertionError

        body = bytearray()

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.body":
                sizes.append(len(message.get("body", b"")))
                body.extend(message.get("body", b""))

        query = b"after=0&chain=" + b"00" * 32 + b"&max_bytes=8000000"
        scope = {"type": "http", "method": "GET", "path": "/feed/entries", "headers": [], "query_string": query}
        await desk.router(scope, receive, send)
        batch = wire.decode_batch(bytes(body))
        assert len(batch.frames) > 4000
        assert max(sizes) <= 256 * 1024
        assert len(sizes) > 3

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_encoded_runs_are_kept_within_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringrift_cluster.feed.router._KEPT_BYTES", 50_000)

    async def scenario() -> None:
        desk = Desk(tmp_path)
        desk.commit(*(f"w{n:04d}" for n in range(600)))
        for after in range(1, 200, 10):
            await desk.batch(after, desk.chain_at(after), max_bytes=8_000_000)
        kept = desk.router._encoded
        assert sum(len(run) for run in kept.values()) == desk.router._encoded_bytes <= 50_000 or len(kept) == 1

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_followers_beyond_the_bound_are_sent_elsewhere(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path, max_waiting=50)
        desk.commit("w")
        chain = desk.chain_at(1)
        waiting = [asyncio.ensure_future(desk.ask(1, chain, wait=10)) for _ in range(50)]
        async with asyncio.timeout(10):
            while desk.router.waiting < 50:
                await asyncio.sleep(0.005)
        late = await desk.ask(1, chain, wait=10)
        assert (late.status_code, late.json()["code"]) == (429, "busy")
        desk.commit("x")
        assert {(await one).status_code for one in waiting} == {200}

    asyncio.run(asyncio.wait_for(scenario(), 30))
