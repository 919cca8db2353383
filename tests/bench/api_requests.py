"""What one request costs: `/work/add` through uvicorn on a replica in memory, at several depths.

    python -m tests.bench.api_requests [--seconds 4] [--connections 1 16 64] [--batch 100]

The server runs in a child process, so its CPU time is its own. The figure that matters is CPU per request:
requests per second depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import uvicorn

from executors.blobs import Blobs
from executors.logs import Logs
from ringrift_cluster.api.app import create_app
from ringrift_cluster.api.services import AgentStatus, Services
from statemachine import settings as st
from statemachine.commands import ChangeSetting
from statemachine.values import Beat
from tests.support.memory_replica import MemoryReplica


class NoHeartbeats:
    async def record(self, beat: Beat) -> int:
        return 0


def serve(port_of: socket.socket, folder: str) -> None:
    replica = MemoryReplica()
    replica.run(ChangeSetting("limits", st.encode(st.Limits(pending_per_class=10**9))))
    services = Services(
        replica=replica,
        heartbeats=NoHeartbeats(),
        blobs=Blobs(Path(folder)),
        logs=Logs(Path(folder)),
        agent=lambda: AgentStatus(True),
        shutdown=lambda order: None,
    )
    config = uvicorn.Config(
        create_app(services),
        http="httptools",
        loop="asyncio",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
    )
    asyncio.run(uvicorn.Server(config).serve(sockets=[port_of]))


async def one_connection(port: int, deadline: float, path: str, body_of: object, times: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    number = 0
    assert callable(body_of)
    while time.perf_counter() < deadline:
        body = body_of(number)
        number += 1
        lines = (f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", f"content-length: {len(body)}")
        head = "\r\n".join(lines) + "\r\n\r\n"
        sent = time.perf_counter()
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        times.append(time.perf_counter() - sent)
    writer.close()


def item(who: int, number: int) -> dict[str, object]:
    return {
        "work_type": "selfplay",
        "work_id": f"w-{who}-{time.monotonic_ns()}-{number}",
        "board_type": "hex8",
        "num_players": 2,
        "priority": 50,
        "params": {"games": 50, "engine": "gumbel-mcts"},
    }


async def measure(port: int, pid: int, connections: int, seconds: float, batch: int) -> None:
    process = psutil.Process(pid)
    times: list[float] = []
    before = process.cpu_times()
    began = time.perf_counter()

    def body(who: int, number: int) -> bytes:
        if batch == 1:
            return json.dumps(item(who, number)).encode()
        return json.dumps([item(who, number * batch + k) for k in range(batch)]).encode()

    await asyncio.gather(
        *(
            one_connection(port, began + seconds, "/work/add", lambda n, who=who: body(who, n), times)
            for who in range(connections)
        )
    )
    took = time.perf_counter() - began
    after = process.cpu_times()
    cpu = (after.user - before.user) + (after.system - before.system)
    times.sort()
    p99 = times[int(len(times) * 0.99)] * 1000
    print(
        f"connections={connections} batch={batch} requests={len(times)} requests_per_s={len(times) / took:.0f} "
        f"cpu_us_per_request={cpu / len(times) * 1e6:.0f} cpu_us_per_item={cpu / len(times) / batch * 1e6:.0f} "
        f"p50_ms={statistics.median(times) * 1000:.2f} p99_ms={p99:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--connections", type=int, nargs="*", default=[1, 16, 64])
    parser.add_argument("--batch", type=int, default=100)
    options = parser.parse_args()
    # TCP named outright: asyncio turns Nagle's algorithm off only on sockets that say so.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    port = listener.getsockname()[1]
    with TemporaryDirectory() as folder:
        server = multiprocessing.get_context("fork").Process(target=serve, args=(listener, folder), daemon=True)
        server.start()
        assert server.pid is not None
        try:
            for connections in options.connections:
                asyncio.run(measure(port, server.pid, connections, options.seconds, 1))
            asyncio.run(measure(port, server.pid, 4, options.seconds, options.batch))
        finally:
            server.terminate()
            server.join()


if __name__ == "__main__":
    main()
