"""A real cluster over HTTP: single adds at several depths, and full cycles (add, claim, complete) in batches.

    python -m tests.bench cluster

Three voter processes as `ringrift-node serve` starts them; the load comes from this process, on the same cores. Every
acknowledged command is on disk on a majority.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec

from statemachine import settings as st
from statemachine.commands import ChangeSetting
from tests.bench.sitting import Sitting
from tests.bench.wire import Step, closed_loop, post
from tests.support.cluster import TestCluster

DEPTHS = (1, 64)
BATCH = 100
#: connections that cycle at the same time
CYCLERS = 8
_numbers = itertools.count()
_json = msgspec.json.encode


def item(work_type: str = "") -> dict[str, object]:
    """About 200 bytes; types vary so that no queue of one class fills up."""
    number = next(_numbers)
    params = {"model": "x" * 100, "seed": str(number)}
    return {"work_id": f"b{number}", "work_type": work_type or f"kind{number % 500}", "params": params}


def single_adds(_: int) -> Step:
    return lambda answer: post("/work/add", _json(item()))


def cycles(number: int) -> Step:
    """A worker that adds a hundred items, claims them and completes them, again and again."""
    steps = itertools.cycle(("add", "claim", "complete"))

    def step(answer: bytes | None) -> bytes:
        match next(steps):
            case "add":
                return post("/work/add", _json([item(f"cycle{number}") for _ in range(BATCH)]))
            case "claim":
                claim = {"node_id": f"worker{number}", "work_types": [f"cycle{number}"], "max_items": BATCH}
                return post("/work/claim", _json(claim))
        granted = msgspec.json.decode(answer or b"")["items"]
        assert len(granted) == BATCH, f"{len(granted)} items were claimed"
        done = [{"job": g["job"], "fence": g["fence"], "counts": {"games": 1}} for g in granted]
        return post("/work/complete", _json(done))

    return step


@contextlib.contextmanager
def voters() -> Iterator[TestCluster]:
    """Three voters, without a bound on what may wait and on how many peers there are."""
    with tempfile.TemporaryDirectory() as folder:
        cluster = TestCluster(Path(folder), voters=3, followers=0)
        try:
            cluster.start()
            cluster.leader().propose(
                ChangeSetting("limits", st.encode(st.Limits(pending_per_class=10**9, peers=10**6)))
            )
            yield cluster
        finally:
            cluster.stop()


def take_stalls(sitting: Sitting, cluster: TestCluster) -> None:
    """The longest stalls since each voter began, from its metrics."""
    names = {
        "ringrift_raft_stall_max_seconds": "stall.consensus_ms",
        "ringrift_http_loop_stall_max_seconds": "stall.http_ms",
    }
    for node in cluster.living():
        for line in httpx.get(f"{node.url}/metrics", timeout=30.0).text.splitlines():
            name, _, value = line.partition(" ")
            if name in names:
                sitting.worst(names[name], float(value) * 1000)


def run(sitting: Sitting, seconds: float = 4.0) -> None:
    with voters() as cluster:
        for depth in DEPTHS:
            ports = [cluster.leader().port]
            asyncio.run(closed_loop(ports, min(depth, 16), 0.5, single_adds))
            times = asyncio.run(closed_loop(ports, depth, seconds, single_adds))
            sitting.load("http", depth, seconds, times)
        ports = [cluster.leader().port]
        asyncio.run(closed_loop(ports, CYCLERS, 0.5, cycles))
        times = asyncio.run(closed_loop(ports, CYCLERS, seconds, cycles))
        rate = len(times) * BATCH / seconds
        sitting.note("http.batch.ops_per_s", rate)
        sitting.note("http.batch.cycles_per_s", rate / 3)
        print(f"http: batches of {BATCH} from {CYCLERS} workers: {rate:,.0f} operations/s, {rate / 3:,.0f} cycles/s")
        take_stalls(sitting, cluster)
