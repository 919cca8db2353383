"""A real cluster over HTTP: `/work/add` on the leader at several depths, and failover after kill -9.

    python -m tests.bench.cluster [--seconds 3] [--kills 10]

Three voter processes as `ringrift-node serve` starts them; the load comes from this process, on the same cores. Every
acknowledged item is on disk on a majority.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import httpx

from statemachine import settings as st
from statemachine.commands import ChangeSetting
from tests.bench.api_requests import one_connection
from tests.support.cluster import TestCluster, eventually

_numbers = itertools.count()


def item() -> dict[str, object]:
    number = next(_numbers)
    return {"work_id": f"b{number}", "work_type": f"kind{number % 500}", "params": {"games": "50", "seed": str(number)}}


async def depth(port: int, in_flight: int, batch: int, seconds: float) -> list[float]:
    times: list[float] = []

    def body(_: int) -> bytes:
        return json.dumps(item() if batch == 1 else [item() for _ in range(batch)]).encode()

    deadline = time.perf_counter() + seconds
    await asyncio.gather(*(one_connection(port, deadline, "/work/add", body, times) for _ in range(in_flight)))
    return sorted(times)


def throughput(cluster: TestCluster, seconds: float) -> None:
    print(f"{'in flight':>9} {'batch':>6} {'items/s':>9} {'p50 ms':>8} {'p99 ms':>8}")
    for in_flight, batch in ((1, 1), (64, 1), (512, 1), (1, 100), (16, 100)):
        port = cluster.leader().port
        asyncio.run(depth(port, min(in_flight, 16), batch, 0.3))
        times = asyncio.run(depth(port, in_flight, batch, seconds))
        p50, p99 = statistics.median(times) * 1000, times[int(len(times) * 0.99)] * 1000
        print(f"{in_flight:>9} {batch:>6} {len(times) * batch / seconds:>9.0f} {p50:>8.2f} {p99:>8.2f}")


def failover(cluster: TestCluster, kills: int) -> None:
    """Seconds from kill -9 of the leader to the first acknowledged item at a survivor."""
    times = []
    for _ in range(kills):
        leader = cluster.leader()
        survivors = [n for n in cluster.living() if n is not leader]
        leader.kill()
        killed = time.perf_counter()
        for node in itertools.cycle(survivors):
            try:
                if httpx.post(f"{node.url}/work/add", json=item(), timeout=2.0).is_success:
                    break
            except httpx.HTTPError:
                continue
        times.append(time.perf_counter() - killed)
        leader.start()
        eventually(lambda node=leader: node.get("/status")["ready"], "the killed voter to come back", 60.0)
    shown = " ".join(f"{t:.2f}" for t in times)
    print(f"failover, seconds to the first acknowledged item: median {statistics.median(times):.2f}, all {shown}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, load {load:.1f} before")
    with tempfile.TemporaryDirectory() as folder:
        cluster = TestCluster(Path(folder), voters=3, followers=0)
        try:
            cluster.start()
            limits = st.Limits(pending_per_class=10**9)
            cluster.leader().propose(ChangeSetting("limits", st.encode(limits)))
            throughput(cluster, options.seconds)
            failover(cluster, options.kills)
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()
