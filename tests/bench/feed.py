"""A thousand followers on the feed of three voters, while 200 commands a second are offered.

    python -m tests.bench feed

The followers are simulated in a process of their own: each holds a stream as a real one does, checks index, chain and
arrival, and applies nothing. What many of them are sent in the same bytes is decoded once. The offered load keeps its
schedule: a late answer counts from when its request was due.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import httpx
import msgspec
import psutil

from ringrift_cluster.feed import wire
from tests.bench.cluster import item, take_stalls, voters
from tests.bench.sitting import Sitting
from tests.bench.wire import post
from tests.support.cluster import TestCluster

FOLLOWERS = 1_000
PER_S = 200
#: connections that offer the commands
OFFERERS = 40
MARK = b"due-"
#: the longest arrival that is told apart from longer ones
LONGEST_MS = 60_000
#: how long after its end the offered load may go on
PATIENCE_S = 3.0


@dataclass(frozen=True, slots=True)
class Message:
    """What a follower looks at: the indexes, the position they lead to, and when their commands were due."""

    indexes: list[int]
    chain: bytes
    due_ms: list[int]


class Seen:
    """What all simulated followers know together."""

    def __init__(self) -> None:
        self._decoded: dict[bytes, Message] = {}
        self._chains: dict[int, bytes] = {}
        #: arrivals by how many milliseconds they came after their command was due; the last one counts what is longer
        self.late_ms = [0] * (LONGEST_MS + 1)
        self.messages = 0
        self.wrong: list[str] = []

    def forget(self) -> None:
        self.late_ms = [0] * (LONGEST_MS + 1)
        self.messages = 0

    def message(self, part: bytes) -> Message:
        found = self._decoded.get(part)
        if found is None:
            while len(self._decoded) > 64:
                del self._decoded[next(iter(self._decoded))]
            found = self._decoded[part] = self._decode(part)
        return found

    def _decode(self, part: bytes) -> Message:
        (batch,) = wire.Messages().take(part)
        due_ms: list[int] = []
        for frame in batch.frames:
            if self._chains.setdefault(frame.index, frame.chain) != frame.chain:
                self.wrong.append(f"two chains at entry {frame.index}")
            # The command's id carries the moment at which it was due, in microseconds.
            due_ms += [int(p.partition(b"-")[0]) // 1000 for p in frame.entry.split(MARK)[1:]]
        return Message([frame.index for frame in batch.frames], batch.standing.chain, due_ms)


class Follower(asyncio.Protocol):
    """Holds a stream of one voter."""

    def __init__(self, seen: Seen, cluster_id: str, after: int, chain: bytes) -> None:
        self._seen = seen
        self._cluster_id = cluster_id
        self._after = after
        self._chain = chain
        self._buffer = b""
        self._began = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        query = f"cluster={self._cluster_id}&after={self._after}&chain={self._chain.hex()}&seconds=3600"
        transport.write(f"GET {wire.ENTRIES}?{query} HTTP/1.1\r\nhost: bench\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        start = 0
        if not self._began:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                self._buffer = buffer
                return
            self._began = True
            start = end + 4
            if buffer[9:12] != b"200":
                self._seen.wrong.append(f"a stream was refused: {buffer[:300]!r}")
        while (line := buffer.find(b"\r\n", start)) >= 0:
            size = int(buffer[start:line], 16)
            end = line + 2 + size + 2
            if len(buffer) < end:
                break
            self._hear(self._seen.message(buffer[line + 2 : end - 2]))
            start = end
        self._buffer = buffer[start:]

    def _hear(self, message: Message) -> None:
        seen = self._seen
        seen.messages += 1
        if message.indexes:
            if message.indexes[0] <= self._after:
                seen.wrong.append(f"entry {message.indexes[0]} came after entry {self._after}")
            self._after, self._chain = message.indexes[-1], message.chain
            now_ms, late_ms = int(time.monotonic() * 1000), seen.late_ms
            for due_ms in message.due_ms:
                late_ms[min(max(now_ms - due_ms, 0), LONGEST_MS)] += 1
        elif message.chain != self._chain:
            seen.wrong.append(f"another chain was told at entry {self._after}")

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._seen.wrong.append(f"a stream broke off: {exc}")


def percentile(counts: Sequence[int], share: float) -> int:
    """The value that so many of all stay under; `counts` says how often each value was there."""
    left = share * sum(counts)
    for value, count in enumerate(counts):
        left -= count
        if left <= 0:
            return value
    return len(counts)


def follow(ports: Sequence[int], count: int, cluster_id: str, after: int, chain: bytes, pipe: Connection) -> None:
    """The followers' process: listens until told to end, then tells what it saw."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        seen = Seen()
        made = []
        for number in range(count):
            port = ports[number % len(ports)]
            made.append(
                await loop.create_connection(lambda: Follower(seen, cluster_id, after, chain), "127.0.0.1", port)
            )
        pipe.send("up")
        while await asyncio.to_thread(pipe.recv) == "forget":
            seen.forget()
            pipe.send("forgotten")
        late = seen.late_ms
        told = (percentile(late, 0.5), percentile(late, 0.99), sum(late), seen.messages, seen.wrong[:5])
        for transport, _ in made:
            transport.abort()
        pipe.send(told)

    asyncio.run(main())


async def offer(port: int, seconds: float, per_s: int) -> list[float]:
    """Add `per_s` items a second, evenly; seconds from when each was due to its answer."""
    times: list[float] = []
    every_s = OFFERERS / per_s
    began = time.monotonic() + 0.1

    async def offerer(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        due_s = began + number / per_s
        # What a crowded machine could not take in time is not taken down, and does not keep the sitting.
        while due_s < began + seconds and time.monotonic() < began + seconds + PATIENCE_S:
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            body = {**item(), "work_id": f"{MARK.decode()}{int(due_s * 1e6)}-{number}"}
            writer.write(post("/work/add", msgspec.json.encode(body)))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head[9:12] == b"200", head
            await reader.readexactly(int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]))
            times.append(time.monotonic() - due_s)
            due_s += every_s
        writer.close()

    await asyncio.gather(*(offerer(n) for n in range(OFFERERS)))
    return times


def p99_ms(times: Sequence[float]) -> float:
    return statistics.quantiles(times, n=100)[98] * 1000


class Meter:
    """Per cent of a core that processes use between two looks."""

    def __init__(self, processes: Mapping[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in processes.items()}
        self._before = self._look()

    def _look(self) -> dict[str, float]:
        self._at = time.monotonic()
        return {name: sum(p.cpu_times()[:2]) for name, p in self._processes.items()}

    def read(self) -> dict[str, float]:
        before, since = self._before, self._at
        self._before = now = self._look()
        return {name: 100 * (now[name] - before[name]) / (self._at - since) for name in now}


def voters_of(cluster: TestCluster) -> dict[str, int]:
    return {n.name: n.process.pid for n in cluster.living() if n.process}


def cpu_percent(cluster: TestCluster, seconds: float) -> dict[str, float]:
    """Per cent of a core that each voter uses during the next seconds."""
    meter = Meter(voters_of(cluster))
    time.sleep(seconds)
    return meter.read()


def shown(percents: Mapping[str, float]) -> str:
    return " ".join(f"{percent:.0f}" for percent in percents.values())


def run(sitting: Sitting, seconds: float = 10.0, followers: int = FOLLOWERS) -> None:
    with voters() as cluster:
        leader = cluster.leader()
        alone = asyncio.run(offer(leader.port, seconds, PER_S))
        sitting.note("feed.alone_add_p99_ms", p99_ms(alone))
        (chain,) = cluster.same_digest().items()
        cluster_id = httpx.get(f"{leader.url}/raft/state").json()["cluster_id"]
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        ports = [node.port for node in cluster.living()]
        arguments = (ports, followers, cluster_id, chain[0], bytes.fromhex(chain[1]), theirs)
        process = context.Process(target=follow, args=arguments, daemon=True)
        process.start()
        try:
            assert ours.recv() == "up"
            assert process.pid is not None
            idle = cpu_percent(cluster, seconds / 2)
            sitting.note("feed.idle_cpu_percent", max(idle.values()))
            ours.send("forget")
            ours.recv()
            meter = Meter(voters_of(cluster))
            theirs_meter = Meter({"followers": process.pid})
            began = time.monotonic()
            times = asyncio.run(offer(leader.port, seconds, PER_S))
            took = time.monotonic() - began
            busy, watching = meter.read(), theirs_meter.read()
            time.sleep(1.0)  # what is under way arrives
            ours.send("end")
            p50, p99, arrivals, messages, wrong = ours.recv()
        finally:
            process.terminate()
            process.join()
        assert not wrong, wrong[0]
        sitting.note("feed.per_s", len(times) / max(seconds, took - 0.1))
        sitting.note("feed.add_p99_ms", p99_ms(times))
        sitting.note("feed.arrival_p99_ms", p99)
        share = arrivals / (len(times) * followers)
        print(
            f"feed: {followers} followers, {len(times) / seconds:.0f} commands/s; {100 * share:.1f} % arrived, p50 "
            f"{p50} ms, p99 {p99} ms; add p99 {p99_ms(times):.1f} ms, alone {p99_ms(alone):.1f}; "
            f"{messages / seconds:.0f} messages/s; per cent of a core: idle voters {shown(idle)}, under load "
            f"{shown(busy)}, the followers {shown(watching)}"
        )
        assert share > 0.99, "commands did not arrive"
        take_stalls(sitting, cluster)
