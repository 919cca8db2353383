"""Load generators that cost little: raw protocols that always keep a request under way, on one event loop.

They share the two cores with what they measure, so a client library's comfort would be measured too.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence

#: given the body of the answer before (None at first), the next request's bytes
Step = Callable[[bytes | None], bytes]


def post(path: str, body: bytes, kind: str = "application/json") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class HttpConnection(asyncio.Protocol):
    """One keep-alive connection in a closed loop until `deadline`; latencies go to `times`."""

    def __init__(self, step: Step, deadline: float, times: list[float], ended: Callable[[str], None]) -> None:
        self._step = step
        self._deadline = deadline
        self._times = times
        self._ended = ended
        self._buffer = b""
        self._sent_at = 0.0
        self._over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send(None)

    def _send(self, answer: bytes | None) -> None:
        self._sent_at = time.perf_counter()
        if self._sent_at >= self._deadline:
            self._over = True
            self._transport.close()
            return
        self._transport.write(self._step(answer))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while answer := parsed(self._buffer):
            status, body, rest = answer
            self._buffer = rest
            self._times.append(time.perf_counter() - self._sent_at)
            if status != 200:
                self._over = True
                self._ended(f"the server answered {status}: {body[:300].decode(errors='replace')}")
                self._transport.close()
                return
            self._send(body)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended("" if self._over else f"a connection broke: {exc}")


def parsed(buffer: bytes) -> tuple[int, bytes, bytes] | None:
    """Status, body and what follows of one HTTP answer with a content-length, once it is there."""
    head, found, rest = buffer.partition(b"\r\n\r\n")
    if not found:
        return None
    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
    if len(rest) < length:
        return None
    return int(head[9:12]), rest[:length], rest[length:]


async def closed_loop(
    ports: Sequence[int], connections: int, seconds: float, step: Callable[[int], Step]
) -> list[float]:
    """Latencies in seconds of `connections` clients that each send their next request at once.

    `step(n)` makes the n-th client. Raises AssertionError with the first answer that was no success.
    """
    loop = asyncio.get_running_loop()
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    ends: list[asyncio.Future[str]] = []

    def client(number: int) -> HttpConnection:
        end: asyncio.Future[str] = loop.create_future()
        ends.append(end)
        return HttpConnection(step(number), deadline, times, lambda said: None if end.done() else end.set_result(said))

    for number in range(connections):
        await loop.create_connection(lambda n=number: client(n), "127.0.0.1", ports[number % len(ports)])
    bad = [said for said in await asyncio.wait_for(asyncio.gather(*ends), seconds + 60) if said]
    assert not bad, bad[0]
    return times


async def _attempt(port: int, request: bytes) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(request)
        return (await reader.readline()).split()[1:2] == [b"200"]
    except OSError:
        return False
    finally:
        writer.close()


async def first_success(ports: Sequence[int], request: Callable[[], bytes], every_s: float = 0.02) -> float:
    """Seconds until a write succeeds somewhere: an attempt starts every `every_s`, whatever the earlier ones do."""
    began = time.perf_counter()
    under_way: set[asyncio.Task[bool]] = set()
    try:
        for port in itertools.cycle(ports):
            assert time.perf_counter() - began < 60, "nothing could be written for a minute"
            under_way.add(asyncio.create_task(_attempt(port, request())))
            done, under_way = await asyncio.wait(under_way, timeout=every_s, return_when=asyncio.FIRST_COMPLETED)
            if any(task.result() for task in done):
                break
            if done:
                await asyncio.sleep(every_s)
        return time.perf_counter() - began
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
