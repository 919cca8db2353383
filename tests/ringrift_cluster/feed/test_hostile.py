"""A follower's voters may be broken or bad: a named error, and bounded memory."""

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
from ringrift_cluster.client import streams
from ringrift_cluster.client.clients import Client
from ringrift_cluster.client.errors import ClientError
from ringrift_cluster.client.session import Session
from ringrift_cluster.client.steps import Answer, Next, Open
from ringrift_cluster.feed import intake, wire
from ringrift_cluster.feed.intake import Heard, Intake, PositionRefused, Unreachable
from ringrift_cluster.feed.voters import Voters

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


async def trickle(begin: bytes = b"x") -> AsyncIterator[bytes]:
    yield begin
    while True:
        yield b"x"
        await asyncio.sleep(0.01)  # what makes it a trickle


def asking(answer: Callable[[httpx.Request], httpx.Response]) -> Voters:
    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return Voters({"a": "http://a"}, http, token=None, rng=random.Random(1), clock=time.monotonic)


async def streamed(voters: Voters, seconds: float = 5.0) -> list[Heard]:
    return [heard async for heard in Intake(voters, time.monotonic).stream("c", 1, bytes(32), seconds)]


CALLS: dict[str, Callable[[Voters], Any]] = {
    "stream": streamed,
    "propose": lambda voters: voters.propose((b"x",), 0.3),
    "heartbeat": lambda voters: voters.heartbeat(BEAT, 0.3),
    "transfer": lambda voters: voters.transfer(None),
}


@pytest.mark.parametrize("status", [200, 400, 409, 500])
@pytest.mark.parametrize("body", NONSENSE.values(), ids=NONSENSE)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_nonsense_of_a_voter_is_an_error_with_a_sentence(call: Any, body: bytes, status: int) -> None:
    voters = asking(lambda request: httpx.Response(status, stream=httpx.ByteStream(body)))
    with pytest.raises((Unreachable, PositionRefused, rp.ReplicaError)):
        asyncio.run(call(voters))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_answer_without_end_is_left(call: Any) -> None:
    voters = asking(lambda request: httpx.Response(200, content=endless()))
    with pytest.raises((Unreachable, rp.ReplicaError), match="over"):
        asyncio.run(call(voters))


@pytest.mark.parametrize("status", [400, 409, 503])
def test_a_refusal_without_end_is_left(status: int) -> None:
    voters = asking(lambda request: httpx.Response(status, content=endless()))
    with pytest.raises((Unreachable, PositionRefused)):
        asyncio.run(streamed(voters))


@pytest.mark.parametrize("call", [CALLS["propose"], CALLS["heartbeat"]], ids=["propose", "beat"])
def test_an_answer_that_trickles_is_left(call: Any) -> None:
    voters = asking(lambda request: httpx.Response(200, content=trickle()))
    with pytest.raises((Unreachable, rp.ReplicaError), match="took over"):
        asyncio.run(call(voters))


@pytest.mark.parametrize("status", [200, 503])
def test_a_stream_that_trickles_is_left(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "TRANSFER_S", 0.2)
    voters = asking(lambda request: httpx.Response(status, content=trickle(begin=b"\0\3\0\0")))
    with pytest.raises(Unreachable, match="took over"):
        asyncio.run(streamed(voters))


def test_a_voter_that_ends_its_stream_early_is_left_and_one_that_keeps_its_time_is_not() -> None:
    voters = asking(lambda request: httpx.Response(200, stream=httpx.ByteStream(b"")))
    with pytest.raises(Unreachable, match="ended its stream early"):
        asyncio.run(streamed(voters))
    assert asyncio.run(streamed(voters, seconds=0.0)) == []


def test_a_stream_that_breaks_off_in_a_message_is_left() -> None:
    voters = asking(lambda request: httpx.Response(200, stream=httpx.ByteStream(b"\0\0\1\0abc")))
    with pytest.raises(Unreachable, match="broke off"):
        asyncio.run(streamed(voters, seconds=0.0))


def test_an_answer_is_not_unpacked() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers["accept-encoding"])
        return httpx.Response(
            200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(gzip.compress(bytes(1 << 26)))
        )

    with pytest.raises(Unreachable, match="cannot be read"):
        asyncio.run(streamed(asking(answer)))
    assert asked == ["identity"]


def test_a_snapshot_without_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_SNAPSHOT_BYTES", 1 << 20)
    voters = asking(lambda request: httpx.Response(200, content=endless()))
    with pytest.raises(Unreachable, match="no end"):
        asyncio.run(Intake(voters, time.monotonic).download(tmp_path / "draft"))
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
    flow = streams.events(Session("http://a"))
    assert isinstance(next(flow), Open)
    assert isinstance(flow.send(Answer(200, {}, b"")), Next)
    with pytest.raises(ClientError, match="no end"):
        for _ in range(100):
            flow.send(b"x" * 65_536)
