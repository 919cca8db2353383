"""The stream of events: pages, waits, follows, resumes, and honest gaps."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from ringrift_cluster.api.services import ApiLimits, Services
from ringrift_cluster.replica import Halted, Read
from statemachine import settings as st
from statemachine.commands import AddWork, ChangeSetting
from tests.support.memory_replica import MemoryReplica

pytestmark = pytest.mark.anyio


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.text.splitlines() if line]


def add(replica: MemoryReplica, *names: str) -> None:
    replica.run(*(AddWork(work=name, work_type="export") for name in names))


async def test_without_a_wait_the_ring_is_answered_as_it_is(client: httpx.AsyncClient, replica: MemoryReplica) -> None:
    answer = await client.get("/events")
    assert answer.headers["content-type"] == "application/x-ndjson"
    seen = lines(answer)
    assert [event["seq"] for event in seen] == list(range(1, replica.machine.state.cluster.event_seq + 1))
    assert {"PeerJoined", "ModelPromoted", "WorkQueued"} <= {event["kind"] for event in seen}


async def test_a_reader_resumes_after_the_last_seq_or_the_last_index(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    last = lines(await client.get("/events"))[-1]
    add(replica, "e-1", "e-2")
    by_seq = lines(await client.get("/events", params={"since": last["seq"]}))
    by_index = lines(await client.get("/events", params={"index": last["index"]}))
    assert [event["key"] for event in by_seq] == ["e-1", "e-2"]
    assert by_seq == by_index


async def test_kinds_key_and_limit_choose_events(client: httpx.AsyncClient) -> None:
    queued = lines(await client.get("/events?kinds=WorkQueued,WorkClaimed&key=sp-0"))
    assert [event["kind"] for event in queued] == ["WorkQueued", "WorkClaimed"]
    assert len(lines(await client.get("/events?limit=3"))) == 3


async def test_a_wait_ends_with_the_first_event(client: httpx.AsyncClient, replica: MemoryReplica) -> None:
    waiting = asyncio.create_task(client.get("/events?since=-1&wait=30"))
    for _ in range(20):
        await asyncio.sleep(0)
    add(replica, "e-1")
    (event,) = lines(await waiting)
    assert (event["kind"], event["key"]) == ("WorkQueued", "e-1")


async def test_a_wait_without_events_ends_empty(client: httpx.AsyncClient) -> None:
    answer = await client.get("/events?since=-1&wait=0.1")
    assert answer.status_code == 200
    assert lines(answer) == []


async def test_a_follower_sees_everything_in_order_and_ends_at_its_limit(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    names = [f"e-{n}" for n in range(1200)]
    following = asyncio.create_task(client.get("/events?since=-1&follow=true&kinds=WorkQueued&limit=1200"))
    for _ in range(20):
        await asyncio.sleep(0)
    replica.run(ChangeSetting("limits", st.encode(st.Limits(pending_per_class=5_000))))
    for at in range(0, 1200, 300):
        add(replica, *names[at : at + 300])
        await asyncio.sleep(0)
    assert [event["key"] for event in lines(await following)] == names


async def test_server_sent_events_have_ids_to_resume_from(client: httpx.AsyncClient, replica: MemoryReplica) -> None:
    add(replica, "e-1", "e-2")
    last = replica.machine.state.cluster.event_seq
    headers = {"accept": "text/event-stream", "last-event-id": str(last - 1)}
    answer = await client.get("/events?limit=1", headers=headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    first, kind, data, *_ = answer.text.splitlines()
    assert (first, kind) == (f"id: {last}", "event: WorkQueued")
    assert json.loads(data.removeprefix("data: "))["key"] == "e-2"
    bad = await client.get("/events", headers={**headers, "last-event-id": "yesterday"})
    assert (bad.status_code, bad.json()["code"]) == (400, "invalid")


async def test_a_reader_that_fell_behind_the_ring_is_told_what_it_missed(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    seen = replica.machine.state.cluster.event_seq
    replica.run(ChangeSetting("limits", st.encode(st.Limits(events=5))))
    add(replica, *(f"e-{n}" for n in range(20)))
    gap, *kept = lines(await client.get("/events", params={"since": seen}))
    assert gap["kind"] == "EventsLost"
    assert int(gap["detail"]["from"]) == seen + 1
    assert int(gap["detail"]["to"]) == kept[0]["seq"] - 1
    assert [event["key"] for event in kept] == [f"e-{n}" for n in range(15, 20)]


async def test_streams_are_bounded(client: httpx.AsyncClient, services: Services) -> None:
    services.limits = ApiLimits(streams=1)
    open_one = asyncio.create_task(client.get("/events?since=-1&wait=30"))
    while services.streams == 0:
        await asyncio.sleep(0)
    refused = await client.get("/events")
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_streams")
    services.closing = lambda: True
    assert (await open_one).status_code == 200
    assert services.streams == 0


async def test_streams_end_when_the_node_leaves(client: httpx.AsyncClient, services: Services) -> None:
    following = asyncio.create_task(client.get("/events?since=-1&follow=true"))
    while services.streams == 0:
        await asyncio.sleep(0)
    services.closing = lambda: True
    async with asyncio.timeout(5):
        assert (await following).status_code == 200


async def test_a_replica_that_stopped_is_a_problem_and_no_empty_stream(
    client: httpx.AsyncClient, services: Services
) -> None:
    class Stopped(MemoryReplica):
        async def read(self, *args: object, **more: object) -> Read[object]:  # type: ignore[override]
            raise Halted("the digest differs at 17")

    services.replica = Stopped()
    answer = await client.get("/events?follow=true")
    assert (answer.status_code, answer.json()["code"]) == (503, "halted")
