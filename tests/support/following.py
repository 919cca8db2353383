"""A real follower on voters without Raft, and ways to wait for it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ringrift_cluster.feed.conf import FollowerConfig
from ringrift_cluster.feed.follower import FeedReplica
from statemachine.commands import AddWork, encode_command
from tests.support.feeding import Cluster

DEADLINE_S = 5.0


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 20.0))


def item(name: str) -> bytes:
    return encode_command(AddWork(work=name, work_type="selfplay"))


def config(cluster: Cluster, directory: Path, **changes: Any) -> FollowerConfig:
    base = FollowerConfig(
        node_id="f1",
        voters=cluster.urls,
        data_dir=directory,
        stream_s=2.0,
        backoff_s=0.005,
        backoff_cap_s=0.02,
        barrier_s=1.0,
    )
    return replace(base, **changes)


@asynccontextmanager
async def following(cluster: Cluster, directory: Path, **changes: Any) -> AsyncIterator[FeedReplica]:
    async with cluster.http() as http:
        replica = await FeedReplica.start(config(cluster, directory, **changes), http, rng=random.Random(1))
        try:
            yield replica
        finally:
            await replica.stop()


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not holds():
            await asyncio.sleep(0.002)


async def caught_up(replica: FeedReplica, cluster: Cluster) -> None:
    target = cluster.leader.machine.index
    assert await replica.wait_for(target, DEADLINE_S) >= target
    await eventually(lambda: replica.status().ready)
    assert replica.status().chain == cluster.leader.machine.chain.hex()
