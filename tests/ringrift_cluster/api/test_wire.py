"""The face behind a real server on a real socket: what an in-process transport cannot show."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import uvicorn

from ringrift_cluster.api.app import create_app
from ringrift_cluster.api.services import Services
from statemachine.commands import AddWork
from tests.support.memory_replica import MemoryReplica

pytestmark = pytest.mark.anyio


class Server(uvicorn.Server):
    """uvicorn that leaves the signals of the test process alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@pytest.fixture
async def served(services: Services) -> AsyncIterator[httpx.AsyncClient]:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    config = uvicorn.Config(
        create_app(services), http="httptools", loop="asyncio", ws="none", lifespan="off", log_config=None
    )
    server = Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with asyncio.timeout(10):
            while not server.started:
                await asyncio.sleep(0.005)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            yield client
    finally:
        server.should_exit = True
        await serving
        listener.close()


async def test_events_arrive_while_the_stream_is_open(served: httpx.AsyncClient, replica: MemoryReplica) -> None:
    async with served.stream("GET", "/events?since=-1&follow=true") as stream:
        seen = stream.aiter_lines()
        for number in range(3):
            replica.run(AddWork(work=f"live-{number}", work_type="export"))
            assert json.loads(await anext(seen))["key"] == f"live-{number}"


async def test_a_reader_that_goes_away_frees_its_place(served: httpx.AsyncClient, services: Services) -> None:
    async with served.stream("GET", "/events?since=-1&follow=true"):
        assert services.streams == 1
    async with asyncio.timeout(10):
        while services.streams:
            await asyncio.sleep(0.01)


async def test_a_refused_body_does_not_spoil_the_next_request(served: httpx.AsyncClient) -> None:
    refused = await served.post("/work/add", content=b" " * (9 * 1024 * 1024))
    assert (refused.status_code, refused.json()["code"]) == (413, "too_large")
    assert (await served.post("/work/cancel", json={"work_id": "sp-9"})).status_code == 200


async def test_small_answers_do_not_wait_for_delayed_acknowledgements(served: httpx.AsyncClient) -> None:
    loop = asyncio.get_running_loop()
    await served.get("/election/leader")
    times = []
    for _ in range(20):
        began = loop.time()
        await served.get("/election/leader")
        times.append(loop.time() - began)
    assert sorted(times)[10] < 0.035


async def test_head_over_a_socket_has_no_body(served: httpx.AsyncClient) -> None:
    head = await served.head("/status")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) > 100
    assert (await served.get("/status")).status_code == 200
