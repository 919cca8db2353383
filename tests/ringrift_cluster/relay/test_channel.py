"""Which voter a follower has its channel to."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import httpx
import pytest

from ringrift_cluster.relay import channel as ch
from ringrift_cluster.relay.channel import Channel
from ringrift_cluster.relay.frames import BEAT
from tests.support.memory_replica import MemoryReplica

pytestmark = pytest.mark.anyio

URLS = {"a": "http://a", "b": "http://b"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def fed_by(replica: MemoryReplica, *voters: str) -> None:
    replica.says = dataclasses.replace(replica.says, voters_heard=voters)


class Held(httpx.AsyncByteStream):
    """A channel that a voter holds: a beat, then nothing until it is closed."""

    async def __aiter__(self) -> Any:
        yield BEAT
        await asyncio.Event().wait()


async def nobody(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("nothing is asked")


@pytest.mark.parametrize("feeding", ["gone", "10.0.0.1:8770"])
async def test_a_channel_stays_where_it_is_while_what_feeds_the_node_is_no_voter_by_that_name(feeding: str) -> None:
    replica = MemoryReplica("f1")
    fed_by(replica, feeding)
    channel = Channel(replica, lambda: URLS, httpx.AsyncClient(), nobody)
    assert channel._choose()[0] in URLS
    assert channel._better("a", URLS) == ""
    fed_by(replica, "b", "a")
    assert channel._better("a", URLS) == "b"


async def test_a_channel_that_moves_makes_a_pause_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ch, "PAUSE_S", 30.0)
    replica = MemoryReplica("f1")
    fed_by(replica, "a")
    asked: list[str] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        assert len(asked) < 5, "it spins"
        # By the time of its first beat the other one is better, always.
        fed_by(replica, "b" if request.url.host == "a" else "a")
        return httpx.Response(200, stream=Held())

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        channel = Channel(replica, lambda: URLS, http, nobody)
        task = asyncio.create_task(channel.run())
        async with asyncio.timeout(10):
            while not channel.opened:
                await asyncio.sleep(0)
        for _ in range(200):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    assert asked == ["a"]
