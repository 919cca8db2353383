"""A thousand followers on the feed of three voters, while 200 commands a second are offered.

    python -m tests.bench feed

The followers are simulated in a process of their own: each polls like a real one and checks index, chain and arrival,
and applies nothing. The offered load keeps its schedule: a late answer counts from when its request was due.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

import httpx
import msgspec
import psutil

from ringrift_cluster.feed import wire
from tests.bench.cluster import item, take_stalls, voters
from tests.bench.sitting import Sitting
from tests.bench.wire import parsed, post
from tests.support.cluster import TestCluster

FOLLOWERS = 1_000
PER_S = 200
#: connections that offer the commands
OFFERERS = 40
MARK = b"due-"
#: how long after its end the offered load may go on
PATIENCE_S = 3.0


class Seen:
    """What all simulated followers know together: when each entry's commands were sent, and its chain."""

    def __init__(self) -> None:
        self.sent_s: dict[int, list[float]] = {}
        self.chains: dict[int, bytes] = {}
        self.arrivals: list[float] = []
        self.polls = 0
        self.wrong: list[str] = []

    def frame(self, frame: wire.Frame, now: float) -> None:
        sent = self.sent_s.get(frame.index)
        if sent is None:
            # The command's id carries the moment at which it was due, in microseconds.
            parts = frame.entry.split(MARK)[1:]
            sent = self.sent_s[frame.index] = [int(p.partition(b"-")[0]) / 1e6 for p in parts]
            self.chains[frame.index] = frame.chain
        if self.chains[frame.index] != frame.chain:
            self.wrong.append(f"two chains at entry {frame.index}")
        self.arrivals.extend(now - at for at in sent)


class Follower(asyncio.Protocol):
    """Polls one voter for what comes after its position."""

    def __init__(self, seen: Seen, cluster_id: str, after: int, chain: bytes) -> None:
        self._seen = seen
        self._cluster_id = cluster_id
        self._after = after
        self._chain = chain
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._poll()

    def _poll(self) -> None:
        query = f"cluster={self._cluster_id}&after={self._after}&chain={self._chain.hex()}&wait=5&max_bytes=4194304"
        self._transport.write(f"GET {wire.ENTRIES}?{query} HTTP/1.1\r\nhost: bench\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        answer = parsed(self._buffer)
        if answer is None:
            return
        status, body, self._buffer = answer
        if status != 200:
            self._seen.wrong.append(f"a poll was answered {status}: {body[:200]!r}")
            return
        now = time.monotonic()
        self._seen.polls += 1
        for frame in wire.decode_batch(body).frames:
            if frame.index <= self._after:
                self._seen.wrong.append(f"entry {frame.index} came after entry {self._after}")
            self._seen.frame(frame, now)
            self._after, self._chain = frame.index, frame.chain
        self._poll()


def follow(ports: Sequence[int], count: int, cluster_id: str, after: int, chain: bytes, pipe: Connection) -> None:
    """The followers' process: polls until told to end, then tells what it saw."""

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
            seen.arrivals.clear()
            seen.polls = 0
            pipe.send("forgotten")
        for transport, _ in made:
            transport.abort()
        cuts = statistics.quantiles(seen.arrivals, n=100) if len(seen.arrivals) > 1 else [0.0] * 99
        pipe.send((cuts[49], cuts[98], len(seen.arrivals), seen.polls, seen.wrong[:5]))

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


def cpu_percent(cluster: TestCluster, seconds: float) -> dict[str, float]:
    """Per cent of a core that each voter uses during the next seconds."""
    processes = {n.name: psutil.Process(n.process.pid) for n in cluster.living() if n.process}
    before = {name: sum(p.cpu_times()[:2]) for name, p in processes.items()}
    time.sleep(seconds)
    return {name: 100 * (sum(p.cpu_times()[:2]) - before[name]) / seconds for name, p in processes.items()}


def run(sitting: Sitting, seconds: float = 10.0, followers: int = FOLLOWERS) -> None:
    with voters() as cluster:
        leader = cluster.leader()
        alone = asyncio.run(offer(leader.port, seconds / 2, PER_S))
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
            idle = cpu_percent(cluster, seconds / 2)
            sitting.note("feed.idle_cpu_percent", max(idle.values()))
            ours.send("forget")
            ours.recv()
            began = time.monotonic()
            times = asyncio.run(offer(leader.port, seconds, PER_S))
            took = time.monotonic() - began
            time.sleep(1.0)  # what is under way arrives
            ours.send("end")
            p50, p99, arrivals, polls, wrong = ours.recv()
        finally:
            process.terminate()
            process.join()
        assert not wrong, wrong[0]
        sitting.note("feed.per_s", len(times) / max(seconds, took - 0.1))
        sitting.note("feed.add_p99_ms", p99_ms(times))
        sitting.note("feed.arrival_p99_ms", p99 * 1000)
        share = arrivals / (len(times) * followers)
        print(
            f"feed: {followers} followers, {len(times) / seconds:.0f} commands/s; {100 * share:.1f} % arrived, p50 "
            f"{p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms; add p99 {p99_ms(times):.1f} ms, alone {p99_ms(alone):.1f}; "
            f"{polls / seconds:.0f} polls/s; idle voters {' '.join(f'{v:.0f}' for v in idle.values())} % of a core"
        )
        assert share > 0.99, "commands did not arrive"
        take_stalls(sitting, cluster)
