"""One scenario, from bare namespaces to a verdict."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.nemesis import checks
from tests.nemesis.clients import Clients, final_reads
from tests.nemesis.cluster import LEASE_S, NemesisCluster
from tests.nemesis.faults import Fault, Stage
from tests.nemesis.locks import Locks
from tests.nemesis.network import Network
from tests.nemesis.report import Result, summed_up
from tests.nemesis.scenarios import Scenario
from tests.support.cluster import eventually

#: without a fault, before the first and after the last one
QUIET_S = 3.0
READY_S = 120.0


def run(
    scenario: Scenario, seconds: float, seed: int, rate: float, folder: Path, *, keep: bool = False, locked: bool = True
) -> Result:
    """Run a scenario; its history and logs stay in `folder` when it broke something, or when asked for."""
    if why := scenario.missing():
        return Result(scenario.name, seed, skipped=why)
    folder.mkdir(parents=True)
    names = NemesisCluster.names(scenario.voters, 4)
    with Network(names, seed) as network:
        cluster = NemesisCluster(
            folder,
            voters=scenario.voters,
            network=network,
            places=scenario.places,
            locks=Locks(folder) if locked else None,
        )
        try:
            cluster.start()
            cluster.seed()
            result = asyncio.run(_load(scenario, cluster, network, seconds, seed, rate))
        except AssertionError as error:
            # The cluster did not come up, or not back.
            result = Result(scenario.name, seed, violations=[str(error)])
        finally:
            cluster.stop()
    if keep or result.violations:
        result.kept = str(folder)
        (folder / "violations.txt").write_text("\n\n".join(result.violations) + "\n")
    else:
        shutil.rmtree(folder)
    return result


async def _load(
    scenario: Scenario, cluster: NemesisCluster, network: Network, seconds: float, seed: int, rate: float
) -> Result:
    rng = random.Random(f"{scenario.name} {seed}")
    some = next(iter(cluster.nodes.values()))
    way_in: dict[str, Any] = {"headers": some.headers, "verify": some.trust or False, "trust_env": False}
    clients = Clients({n.name: n.url for n in cluster.nodes.values()}, rng.randrange(1 << 30), rate, way_in)
    try:
        async with httpx.AsyncClient(**way_in) as http, asyncio.TaskGroup() as group:
            stage = Stage(cluster, network, rng, http)
            group.create_task(clients.run())
            began_at = time.monotonic()
            await asyncio.sleep(QUIET_S)
            until = time.monotonic() + seconds
            turns = itertools.cycle(rng.sample(scenario.faults, len(scenario.faults)))
            lanes = scenario.lanes if scenario.faults else 0
            await asyncio.gather(*(_lane(turns, stage, scenario.rest_s, until) for _ in range(lanes)))
            await asyncio.sleep(max(until - time.monotonic(), 0.0) + QUIET_S)
            ended_at = time.monotonic()
            clients.stop()
    finally:
        await clients.close()
    history = clients.history
    result = summed_up(scenario.name, seed, history, stage.marks, began_at, ended_at)
    result.violations += stage.broken + clients.door.strange
    try:
        tables = await asyncio.to_thread(_settled, cluster)
    except AssertionError as error:
        result.violations.append(f"after the faults: {error}")
    else:
        (cluster.folder / "state.json").write_text(json.dumps(tables))
        final_reads(history, tables, time.monotonic())
        result.violations += checks.all_of(history, tables, LEASE_S)
    history.write(cluster.folder / "history.jsonl")
    story = [f"{m.began_at:.3f}..{m.ended_at:.3f} {m.fault}: {m.detail}\n" for m in stage.marks]
    (cluster.folder / "faults.txt").write_text("".join(story))
    return result


async def _lane(turns: Iterator[Fault], stage: Stage, rest_s: float, until: float) -> None:
    """One fault after another, each in its turn, until the time is over."""
    for fault in turns:
        await fault(stage)
        await stage.pause(0.5 * rest_s, 1.5 * rest_s)
        if time.monotonic() >= until:
            return


def _settled(cluster: NemesisCluster) -> dict[str, dict[str, Any]]:
    """Wait until every node runs, is ready and shows one digest; returns the tables of the state."""
    for node in cluster.nodes.values():
        cluster.signal(node, signal.SIGCONT)
        eventually(lambda node=node: node.alive, f"{node.name} to run (it ended: see its log)", 5.0)
        eventually(lambda node=node: node.get("/status")["ready"], f"{node.name} to be ready", READY_S)
    cluster.same_digest(READY_S)
    dumped = cluster.leader().get("/state/dump")["tables"]
    return {name: dict(rows) for name, rows in dumped.items()}
