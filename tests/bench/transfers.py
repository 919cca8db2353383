"""Files between nodes on loopback: python -m tests.bench transfers [--mib N] [--nodes N] [--rounds N]

rate     one verified fetch of a large file from another process that serves it as a node does, against
         `curl | sha256sum` from the same process, by turns in one sitting; and the CPU time of the fetching side
fleet    many nodes fetch one file at once: the whole copies that its source sent, and the most that anybody sent
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from executors.blobs import Blobs
from executors.logs import Logs
from executors.transfers import Transfers
from ringrift_cluster import interpreter
from ringrift_cluster.api.connections import ConnectionLimits, Connections
from ringrift_cluster.api.server import http_server
from ringrift_cluster.api.services import AgentStatus, Services
from statemachine.commands import ChangeSetting
from statemachine.queries import ResolvedInput
from tests.ringrift_cluster.api.conftest import DirectHeartbeats
from tests.support.memory_replica import MemoryReplica
from tests.support.stores import looked_after, site

MIB = 1 << 20


def serve(root: Path, listener: socket.socket) -> None:
    """One node's HTTP face over a store, as a node's process has it."""
    replica = MemoryReplica("a")
    services = Services(
        replica=replica,
        heartbeats=DirectHeartbeats(replica),
        blobs=Blobs(root),
        logs=Logs(root),
        agent=lambda: AgentStatus(healthy=True),
        shutdown=lambda order: None,
    )
    # Every round of either kind is sent: who got a file here before does not pass it on.
    replica.run(ChangeSetting("artifacts", '{"copies_per_holder": 10000}'))
    interpreter.tune()
    server = http_server(services, Connections(ConnectionLimits()), None)
    asyncio.run(server.serve(sockets=[listener]))


@contextlib.contextmanager
def holder(root: Path) -> Iterator[str]:
    """A process that serves the store at `root`; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-m", "tests.bench.transfers", "--serve", str(root), str(listener.fileno())]
        process = subprocess.Popen(command, pass_fds=[listener.fileno()])
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        subprocess.run(["curl", "-s", "--retry", "30", "--retry-connrefused", f"{url}/health"], check=True, stdout=-3)
        yield url
    finally:
        process.terminate()
        process.wait()


def made(blobs: Blobs, size: int) -> str:
    writer = blobs.writer()
    for _ in range(size // MIB):
        writer.write(os.urandom(MIB))
    return writer.commit()


def by_curl(url: str, digest: str) -> float:
    began = time.perf_counter()
    line = f"curl -s {url}/artifacts/{digest} | sha256sum"
    said = subprocess.run(["sh", "-c", line], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert said.split()[0] == digest
    return time.perf_counter() - began


async def by_fetch(url: str, digest: str, size: int, root: Path) -> float:
    with ThreadPoolExecutor(4) as pool:
        async with httpx.AsyncClient(timeout=30) as http:
            transfers = Transfers(Blobs(root, pool), http, "b")
            item = ResolvedInput("", digest, size, (("a", url),))

            async def again() -> ResolvedInput:
                return item

            began = time.perf_counter()
            await transfers.fetch(item, again)
            return time.perf_counter() - began


def cpu_s() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime


def rate(root: Path, size: int, rounds: int) -> None:
    digest = made(Blobs(root / "a"), size)
    curl, fetch, spent = [], [], []
    with holder(root / "a") as url:
        for _ in range(rounds):
            curl.append(by_curl(url, digest))
            before = cpu_s()
            fetch.append(asyncio.run(by_fetch(url, digest, size, root / "b")))
            spent.append(cpu_s() - before)
            shutil.rmtree(root / "b")
    for name, took in (("curl | sha256sum", curl), ("verified fetch", fetch)):
        ordered = sorted(took)
        median = statistics.median(ordered)
        print(f"{name:<18} {size / MIB / median:7.0f} MiB/s median, {size / MIB / ordered[0]:.0f} best of {rounds}")
    print(f"{'ratio':<18} {statistics.median(curl) / statistics.median(fetch) * 100:7.0f} % of the medians")
    print(f"{'fetching side':<18} {statistics.median(spent) * 1e9 / size:7.2f} ns of CPU a byte, hashing included")


async def fleet(root: Path, size: int, count: int) -> None:
    async with site(root) as made:
        source = made.node("source")
        nodes = [made.node(f"n{i}") for i in range(count)]
        digest = source.make(os.urandom(size), "model")
        made.rules('{"copies": {"default": 0, "model": 0}}')
        began = time.perf_counter()
        async with looked_after(*nodes):
            await asyncio.gather(*(node.fetch(digest) for node in nodes))
        took = time.perf_counter() - began
        sent = {node.name: node.services.gate.sent_bytes / size for node in (source, *nodes)}
    print(
        f"{count} nodes, {size / MIB:.0f} MiB each in {took:.1f} s: the source sent {sent['source']:.2f} copies, "
        f"nobody more than {max(sent.values()):.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=300)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--serve", nargs=2, metavar=("STORE", "FD"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        serve(Path(chosen.serve[0]), socket.socket(fileno=int(chosen.serve[1])))
        return
    with tempfile.TemporaryDirectory() as folder:
        rate(Path(folder), chosen.mib * MIB, chosen.rounds)
        asyncio.run(fleet(Path(folder) / "fleet", max(chosen.mib // 30, 1) * MIB, chosen.nodes))


if __name__ == "__main__":
    main()
