"""The HTTP port against clients that are slow, greedy, silent or speak something else, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

import pytest
import uvicorn

from ringrift_cluster.api import connections as module
from ringrift_cluster.api.app import create_app
from ringrift_cluster.api.connections import ConnectionLimits, Connections, with_room_for_files
from ringrift_cluster.api.services import ApiLimits, Services
from statemachine.commands import AddWork
from tests.ringrift_cluster.api.test_wire import Server
from tests.support.memory_replica import MemoryReplica

pytestmark = pytest.mark.anyio

QUICK = ConnectionLimits(
    connections=20, head_s=0.3, idle_s=0.6, body_grace_s=0.3, body_bytes_per_s=1000, unread_s=0.5, pipelined=4
)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> tuple[int, str]:
        """Status and code of a problem document."""
        assert self.headers["content-type"] == "application/problem+json"
        return self.status, json.loads(self.body)["code"]


class Raw:
    """One TCP connection with nothing between."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def say(self, data: bytes | str) -> None:
        self.writer.write(data.encode() if isinstance(data, str) else data)

    async def answer(self, *, head: bool = False) -> Answer:
        text = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *rest = text.strip().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in rest)}
        length = 0 if head else int(headers.get("content-length", "0"))
        return Answer(int(first.split(" ")[1]), headers, await self.reader.readexactly(length))

    async def ended(self) -> bytes:
        """What still came before the other side closed."""
        data = b""
        with contextlib.suppress(ConnectionError):
            while chunk := await self.reader.read(1 << 16):
                data += chunk
        return data


@dataclass
class Port:
    number: int
    connections: Connections
    opened: list[Raw]

    async def open(self) -> Raw:
        raw = Raw(*await asyncio.open_connection("127.0.0.1", self.number, limit=1 << 20))
        self.opened.append(raw)
        return raw

    async def ask(self, request: bytes | str, *, head: bool = False) -> Answer:
        raw = await self.open()
        raw.say(request)
        return await raw.answer(head=head)


async def until(true: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)
    assert true(), what


@contextlib.asynccontextmanager
async def serving(services: Services, limits: ConnectionLimits) -> AsyncIterator[Port]:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # What nobody reads is to pile up here, not in the kernel.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    listener.bind(("127.0.0.1", 0))
    connections = Connections(limits)
    config = uvicorn.Config(
        create_app(services), http=connections.protocol(), ws="none", loop="asyncio", lifespan="off", log_config=None
    )
    server = Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    port = Port(listener.getsockname()[1], connections, [])
    try:
        await until(lambda: server.started, "the server")
        yield port
    finally:
        for raw in port.opened:
            raw.writer.transport.abort()
        server.should_exit = True
        await task
        listener.close()


@pytest.fixture
async def port(services: Services, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Port]:
    monkeypatch.setattr(module, "SWEEP_S", 0.05)
    monkeypatch.setattr(module, "LINGER_S", 0.2)
    async with serving(services, QUICK) as made:
        yield made


GET = "GET /ready HTTP/1.1\r\nhost: x\r\n"
ADD = "POST /work/add HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


class TestWhatIsNoRequest:
    @pytest.mark.parametrize(
        ("request_", "expected"),
        [
            ("\x00\x01\x02\r\n\r\n", (400, "invalid")),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, "invalid")),
            ("CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n", (400, "invalid")),
            (f"{ADD}content-length: 1\r\ncontent-length: 2\r\n\r\n{{}}", (400, "invalid")),
            (f"{ADD}content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n", (400, "invalid")),
            (f"{ADD}content-length: -1\r\n\r\n", (400, "invalid")),
            (f"{ADD}content-length: {'9' * 40}\r\n\r\n", (400, "invalid")),
            (f"{ADD}transfer-encoding: chunked\r\n\r\nzz\r\n", (400, "invalid")),
            (f"{ADD}upgrade: h2c\r\nconnection: upgrade\r\ncontent-length: 2\r\n\r\n{{}}", (400, "invalid")),
            (f"{GET}content-length: 5\r\n\r\nhello", (400, "invalid")),
            (f"{GET}x: {'a' * 70_000}\r\n\r\n", (431, "headers_too_large")),
            (GET + "".join(f"x{n}: y\r\n" for n in range(200)) + "\r\n", (431, "headers_too_large")),
            (f"GET /{'a' * 9000} HTTP/1.1\r\nhost: x\r\n\r\n", (414, "uri_too_long")),
            (f"GET /status?{'a' * 9000} HTTP/1.1\r\nhost: x\r\n\r\n", (414, "uri_too_long")),
            (f"{GET}x: a\x00b\r\n\r\n", (400, "invalid")),
            ("GET /status\x00 HTTP/1.1\r\n\r\n", (400, "invalid")),
            ("GET /ä HTTP/1.1\r\nhost: x\r\n\r\n", (400, "invalid")),
        ],
        ids=[
            *(
                "binary",
                "http/2",
                "connect",
                "two lengths",
                "length and chunks",
                "negative",
                "huge length",
                "bad chunk",
            ),
            *("upgrade with a body", "get with a body", "long header", "many headers", "long path", "long query"),
            *("nul in a header", "nul in a path", "not ascii"),
        ],
    )
    async def test_it_is_refused_with_a_problem_and_changes_nothing(
        self, request_: str, expected: tuple[int, str], port: Port, replica: MemoryReplica
    ) -> None:
        before = replica.machine.index
        raw = await port.open()
        raw.say(request_)
        answer = await raw.answer()
        assert answer.problem == expected
        assert await raw.ended() == b""
        assert replica.machine.index == before
        assert port.connections.refusals[expected[1]] == 1
        assert (await port.ask(f"{GET}\r\n")).status == 200

    async def test_a_header_without_end_is_not_collected(self, port: Port) -> None:
        raw = await port.open()
        raw.say(f"{GET}x: ")
        for _ in range(100):
            raw.say(b"a" * 65_536)
        assert (await raw.answer()).problem == (431, "headers_too_large")

    async def test_trailers_without_end_are_not_collected(self, port: Port) -> None:
        raw = await port.open()
        raw.say(f"{ADD}transfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n")
        raw.say("".join(f"x{n}: y\r\n" for n in range(200)))
        assert (await raw.answer()).problem == (431, "headers_too_large")


class TestWhatIsUnusual:
    async def test_http_1_0_is_answered_and_closed(self, port: Port) -> None:
        raw = await port.open()
        raw.say("GET /ready HTTP/1.0\r\n\r\n")
        assert (await raw.answer()).status == 200
        assert await raw.ended() == b""

    async def test_an_upgrade_that_is_offered_is_not_taken_up(self, port: Port) -> None:
        raw = await port.open()
        raw.say(f"{GET}connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAA\r\n\r\n")
        assert (await raw.answer()).status == 200
        assert await raw.ended() == b""

    async def test_a_websocket_is_answered_like_any_request(self, port: Port) -> None:
        answer = await port.ask(
            "GET /events HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-version: 13\r\n\r\n"
        )
        assert answer.status == 200

    async def test_requests_sent_ahead_are_answered_in_order_up_to_a_bound(self, port: Port) -> None:
        raw = await port.open()
        raw.say(f"{GET}\r\nGET /status HTTP/1.1\r\nhost: x\r\n\r\nGET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n")
        assert [(await raw.answer()).status for _ in range(3)] == [200, 200, 404]
        flood = await port.open()
        flood.say(f"{GET}\r\n" * 50)
        await flood.ended()
        assert port.connections.refusals["busy"] == 1

    async def test_head_of_everything_has_no_body(self, port: Port) -> None:
        for path in ("/status", "/nowhere", "/openapi.json"):
            raw = await port.open()
            raw.say(f"HEAD {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert (await raw.answer(head=True)).status in (200, 404)
            assert await raw.ended() == b""

    async def test_a_body_that_is_announced_is_asked_for_or_refused(self, port: Port) -> None:
        raw = await port.open()
        body = b'{"work_type": "export", "work_id": "late"}'
        raw.say(f"{ADD}expect: 100-continue\r\ncontent-length: {len(body)}\r\n\r\n")
        assert (await raw.answer()).status == 100
        raw.say(body)
        assert (await raw.answer()).status == 200
        raw = await port.open()
        raw.say(f"{ADD}expect: 100-continue\r\ncontent-length: 99999999\r\n\r\n")
        assert (await raw.answer()).problem == (413, "too_large")
        assert await raw.ended() == b""

    async def test_a_client_that_only_half_closes_is_answered(self, port: Port) -> None:
        raw = await port.open()
        raw.say(f"{GET}connection: close\r\n\r\n")
        raw.writer.write_eof()
        assert (await raw.answer()).status == 200


class TestSlowAndSilent:
    async def test_headers_that_trickle_are_ended_in_time(self, port: Port) -> None:
        raw = await port.open()
        raw.say("GET /ready HT")
        assert (await raw.answer()).problem == (408, "request_timeout")
        assert await raw.ended() == b""

    async def test_a_body_that_trickles_is_ended_and_changes_nothing(self, port: Port, replica: MemoryReplica) -> None:
        before = replica.machine.index
        raw = await port.open()
        raw.say(f'{ADD}content-length: 5000\r\n\r\n{{"work_type"')
        assert (await raw.answer()).problem == (408, "request_timeout")
        assert await raw.ended() == b""
        assert replica.machine.index == before

    async def test_silence_is_ended_before_and_after_a_request(self, port: Port) -> None:
        silent = await port.open()
        blank = await port.open()
        blank.say("\r\n")
        served = await port.open()
        served.say(f"{GET}\r\n")
        await served.answer()
        for raw in (silent, blank, served):
            assert await raw.ended() == b""
        await until(lambda: not port.connections.open, "all gone")

    async def test_a_crowd_does_not_keep_anybody_out(self, port: Port) -> None:
        busy = await port.open()
        busy.say("GET /events?since=-1&follow=true HTTP/1.1\r\nhost: x\r\n\r\n")
        await busy.answer()
        for _ in range(100):
            await port.open()
        assert (await port.ask(f"{GET}\r\n")).status == 200
        assert len(port.connections.open) <= QUICK.connections
        assert port.connections.refusals["too_many_connections"] >= 80
        assert not busy.reader.at_eof()

    async def test_an_answer_that_nobody_reads_is_not_kept(self, port: Port, replica: MemoryReplica) -> None:
        replica.run(*(AddWork(work=f"d-{n}", work_type="export", params={"x": "y" * 4000}) for n in range(900)))
        raw = await port.open()
        raw.writer.transport.pause_reading()
        raw.say("GET /state/dump HTTP/1.1\r\nhost: x\r\n\r\n")
        await until(lambda: port.connections.refusals["unread"] > 0, "an end")


class TestTogether:
    async def test_unread_answers_of_all_together_are_bounded(
        self, services: Services, replica: MemoryReplica, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        replica.run(*(AddWork(work=f"d-{n}", work_type="export", params={"x": "y" * 4000}) for n in range(500)))
        monkeypatch.setattr(module, "SWEEP_S", 0.05)
        async with serving(services, replace(QUICK, unread_s=60.0, unread_bytes=3_000_000)) as port:
            for _ in range(18):
                raw = await port.open()
                raw.writer.transport.pause_reading()
                raw.say("GET /work?limit=1000 HTTP/1.1\r\nhost: x\r\n\r\n")
            await until(lambda: port.connections.refusals["too_much_unread"] > 0, "an end")
            answer = await port.ask(f"{GET}\r\n")
            assert answer.status == 200

    async def test_bodies_that_are_gathered_share_a_bound(self, services: Services, replica: MemoryReplica) -> None:
        services.limits = ApiLimits(bodies_bytes=300_000)
        async with serving(services, QUICK) as port:
            before = replica.machine.index
            slow = [await port.open() for _ in range(3)]
            for raw in slow:
                raw.say(f"{ADD}content-length: 200001\r\n\r\n".encode() + b" " * 200_000)
            answers = [asyncio.ensure_future(raw.answer()) for raw in slow]
            done, _ = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
            assert (await done.pop()).problem == (429, "busy")
            for raw in slow:
                raw.writer.transport.abort()
            await asyncio.gather(*answers, return_exceptions=True)
            await until(lambda: services.gathered_bytes == 0, "the bodies to be let go")
            assert replica.machine.index == before


@pytest.mark.parametrize(
    ("files", "connections"),
    [(resource.RLIM_INFINITY, 8192), (1 << 20, 8192), (20_000, 8192), (4096, 3584), (600, 300)],
)
def test_connections_stay_within_their_cap_and_within_the_open_files(
    files: int, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, files))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: None)
    assert with_room_for_files(ConnectionLimits()).connections == connections
