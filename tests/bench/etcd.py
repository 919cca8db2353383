"""The anchor of the log: three etcd servers on loopback, with their fsync, under the same loads.

    python -m tests.bench etcd

The client is ours: gRPC puts written straight onto HTTP/2, in one Python process, a callback each. It costs a
fraction of a client library, so on a machine whose cores all share it etcd looks better here than through one.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.bench.sitting import Sitting
from tests.support.cluster import eventually, free_ports

DEPTHS = (1, 64, 512)
#: connections that share what is in flight
CONNECTIONS = 8
VALUE = b"x" * 160
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def literal(prefix: bytes, value: bytes) -> bytes:
    """A header that enters no table (RFC 7541, 6.2.2)."""
    return prefix + bytes((len(value),)) + value


def request_head(authority: str) -> bytes:
    # 0x83 and 0x86: POST and http of the static table; 4, 1 and 31 are the names :path, :authority, content-type.
    return (
        b"\x83\x86"
        + literal(b"\x04", b"/etcdserverpb.KV/Put")
        + literal(b"\x01", authority.encode())
        + literal(b"\x0f\x10", b"application/grpc")
        + literal(b"\x00\x02te", b"trailers")
    )


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes((value & 0x7F | 0x80,))
        value >>= 7
    return out + bytes((value,))


def put_message(key: bytes, value: bytes) -> bytes:
    """A PutRequest (key = 1, value = 2) as one gRPC message."""
    body = b"\x0a" + varint(len(key)) + key + b"\x12" + varint(len(value)) + value
    return b"\x00" + len(body).to_bytes(4, "big") + body


class GrpcPuts(asyncio.Protocol):
    """One HTTP/2 connection that keeps `depth` puts in flight until `deadline`."""

    def __init__(self, authority: str, depth: int, deadline: float, times: list[float]) -> None:
        self._head = request_head(authority)
        self._depth = depth
        self._deadline = deadline
        self._times = times
        self._buffer = bytearray()
        self._streams = itertools.count(1, 2)
        self._under_way: dict[int, tuple[float, bool]] = {}
        self._credit = 65_535
        self._waiting = 0
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        # No header table to keep in step, and room for every answer there will be.
        settings = b"\x00\x01\x00\x00\x00\x00"
        hello = _PREFACE + frame(_SETTINGS, 0, 0, settings) + frame(_WINDOW, 0, 0, (2**31 - 65_536).to_bytes(4, "big"))
        self._waiting = self._depth
        transport.write(hello + self._puts())

    def _puts(self) -> bytes:
        """As many new puts as are wanted and fit into the window."""
        out = b""
        now = time.perf_counter()
        while self._waiting and now < self._deadline:
            stream = next(self._streams)
            message = put_message(b"bench-%d-%d" % (id(self), stream), VALUE)
            if len(message) > self._credit:
                break
            self._credit -= len(message)
            self._waiting -= 1
            self._under_way[stream] = now, False
            out += frame(_HEADERS, 0x4, stream, self._head) + frame(_DATA, 0x1, stream, message)
        return out

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        buffer, start, out = self._buffer, 0, b""
        while len(buffer) - start >= 9:
            end = start + 9 + int.from_bytes(buffer[start : start + 3], "big")
            if end > len(buffer):
                break
            kind, flags = buffer[start + 3], buffer[start + 4]
            stream = int.from_bytes(buffer[start + 5 : start + 9], "big")
            out += self._take(kind, flags, stream, bytes(buffer[start + 9 : end]))
            start = end
        del buffer[:start]
        out += self._puts()
        if out:
            self._transport.write(out)
        if not self._under_way and time.perf_counter() >= self._deadline:
            self._end("")

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        if kind == _SETTINGS and not flags & 1:
            return frame(_SETTINGS, 1, 0, b"")
        if kind == _PING and not flags & 1:
            return frame(_PING, 1, 0, payload)
        if kind == _WINDOW and stream == 0:
            self._credit += int.from_bytes(payload, "big")
        elif kind in (_RESET, _GOAWAY):
            self._end(f"etcd ended stream {stream} or the connection")
        elif kind == _DATA:
            self._under_way[stream] = self._under_way[stream][0], True
        if kind in (_DATA, _HEADERS) and flags & 1:
            sent_at, answered = self._under_way.pop(stream)
            if not answered:
                # Trailers alone: an error. Its text is Huffman-coded and nobody here can read it.
                self._end("etcd refused a put")
            self._times.append(time.perf_counter() - sent_at)
            self._waiting += 1
        return b""

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"etcd closed the connection: {exc}")

    def _end(self, said: str) -> None:
        if not self.ended.done():
            self.ended.set_result(said)
            self._transport.close()


async def puts(port: int, in_flight: int, seconds: float) -> list[float]:
    """Latencies in seconds of a closed loop of puts."""
    loop = asyncio.get_running_loop()
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    count = min(in_flight, CONNECTIONS)
    made = [
        await loop.create_connection(
            lambda: GrpcPuts(f"127.0.0.1:{port}", in_flight // count, deadline, times), "127.0.0.1", port
        )
        for _ in range(count)
    ]
    bad = [said for said in await asyncio.wait_for(asyncio.gather(*(p.ended for _, p in made)), seconds + 30) if said]
    assert not bad, bad[0]
    return times


class EtcdCluster:
    """Three servers with the defaults of the package."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        ports = free_ports(6)
        self.ports = dict(zip("abc", ports[:3], strict=True))
        self._peers = dict(zip("abc", ports[3:], strict=True))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        client, peer = f"http://127.0.0.1:{self.ports[name]}", f"http://127.0.0.1:{self._peers[name]}"
        members = ",".join(f"{n}=http://127.0.0.1:{p}" for n, p in self._peers.items())
        with (self._folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [
                    *("etcd", "--name", name, "--data-dir", str(self._folder / name)),
                    *("--listen-client-urls", client, "--advertise-client-urls", client),
                    *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                    *("--initial-cluster", members, "--initial-cluster-token", "bench"),
                ],
                stdout=log,
                stderr=log,
            )

    def leader(self) -> str:
        """Who leads, once every server knows."""

        def look() -> str | None:
            seen = {}
            for name, port in self.ports.items():
                answer = httpx.post(f"http://127.0.0.1:{port}/v3/maintenance/status", json={}, timeout=3.0).json()
                seen[name] = answer["header"]["member_id"], answer.get("leader")
            leaders = {leader for _, leader in seen.values()}
            return next((n for n, (own, _) in seen.items() if leaders == {own}), None)

        return eventually(look, "etcd to have a leader", 60.0)

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


def put_request() -> bytes:
    """A put for the JSON gateway, which serves where a whole connection is made for one write."""
    from tests.bench.wire import post

    return post("/v3/kv/put", b'{"key":"YmVuY2g=","value":"YmVuY2g="}')


def run(sitting: Sitting, seconds: float = 4.0) -> None:
    """Puts at every depth."""
    with_servers(sitting, lambda servers: _puts(sitting, servers, seconds))


def with_servers(sitting: Sitting, use: Callable[[EtcdCluster], None]) -> None:
    """Start three servers for `use`; say so when there is no etcd."""
    if shutil.which("etcd") is None:
        sitting.lacks("etcd is not installed (Debian: etcd-server)")
        return
    with tempfile.TemporaryDirectory() as folder:
        servers = EtcdCluster(Path(folder))
        try:
            for name in "abc":
                servers.start(name)
            servers.leader()
            use(servers)
        finally:
            for process in servers.processes.values():
                process.send_signal(signal.SIGCONT)
            servers.stop()


def _puts(sitting: Sitting, servers: EtcdCluster, seconds: float) -> None:
    port = servers.ports[servers.leader()]
    asyncio.run(puts(port, 16, 0.5))
    for depth in DEPTHS:
        sitting.load("etcd", depth, seconds, asyncio.run(puts(port, depth, seconds)))
