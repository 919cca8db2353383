"""Reads say which view they want, and every answer says which one it got."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from ringrift_cluster.api.services import ApiLimits, Services
from statemachine.commands import AddWork
from tests.support.memory_replica import MemoryReplica

pytestmark = pytest.mark.anyio


async def test_every_answer_carries_the_applied_index_and_the_leader(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    for path in ("/", "/peers", "/metrics", "/events", "/nowhere", "/raft/append", "/openapi.json", "/work/none"):
        answer = await client.get(path)
        assert int(answer.headers["ringrift-index"]) == replica.machine.index, path
        assert answer.headers["ringrift-leader"] == "a", path


async def test_a_write_answers_with_the_index_it_was_committed_at(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    answer = await client.post("/work/cancel", json={"work_id": "sp-9"})
    assert answer.json()["index"] == replica.machine.index == int(answer.headers["ringrift-index"])


async def test_a_blocking_read_waits_for_its_index(client: httpx.AsyncClient, replica: MemoryReplica) -> None:
    wanted = replica.machine.index + 1
    waiting = asyncio.create_task(client.get("/work/late", params={"index": wanted, "wait": 30}))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    replica.run(AddWork(work="late", work_type="export"))
    answer = await waiting
    assert answer.status_code == 200
    assert int(answer.headers["ringrift-index"]) == wanted


async def test_a_blocking_read_gives_up_after_its_wait(client: httpx.AsyncClient, replica: MemoryReplica) -> None:
    far = replica.machine.index + 10
    answer = await client.get("/work", params={"index": far, "wait": 0.05})
    assert (answer.status_code, answer.json()["code"]) == (503, "stale")
    assert str(far) in answer.json()["detail"]
    assert int(answer.headers["retry-after"]) >= 1


async def test_an_index_without_a_wait_is_answered_at_once(client: httpx.AsyncClient, replica: MemoryReplica) -> None:
    assert (await client.get("/work", params={"index": replica.machine.index})).status_code == 200
    assert (await client.get("/work", params={"index": replica.machine.index + 1})).status_code == 503


async def test_a_linearizable_read_takes_a_barrier_through_the_log(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    before = replica.machine.index
    answer = await client.get("/peers?consistency=linearizable")
    assert int(answer.headers["ringrift-index"]) == before + 1


async def test_without_a_leader_local_reads_go_on_and_linearizable_ones_do_not(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    replica.pretend(leader_id=None, role="candidate")
    local = await client.get("/peers")
    assert local.status_code == 200
    assert "ringrift-leader" not in local.headers
    barrier = await client.get("/peers?consistency=linearizable")
    assert (barrier.status_code, barrier.json()["code"]) == (503, "no_leader")


async def test_a_fresh_read_is_refused_by_a_replica_that_lost_contact(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    assert (await client.get("/peers?consistency=fresh")).status_code == 200
    replica.pretend(contact_age_ms=9_000)
    assert (await client.get("/peers?consistency=fresh")).json()["code"] == "stale"
    assert (await client.get("/peers?consistency=local")).status_code == 200


async def test_blocking_reads_are_bounded(
    client: httpx.AsyncClient, services: Services, replica: MemoryReplica
) -> None:
    services.limits = ApiLimits(waits=1)
    wanted = {"index": replica.machine.index + 1, "wait": 30}
    waiting = asyncio.create_task(client.get("/peers", params=wanted))
    while services.waits == 0:
        await asyncio.sleep(0)
    refused = await client.get("/peers", params=wanted)
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_waits")
    assert (await client.get("/peers")).status_code == 200
    replica.tick(1)
    assert (await waiting).status_code == 200
    assert services.waits == 0
