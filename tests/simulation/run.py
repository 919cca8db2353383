"""One run: a cluster, clients and faults for a time, then quiet, then the checks."""

from __future__ import annotations

import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from ringrift_cluster.raft.seams import outside
from tests.simulation.checks import Checks
from tests.simulation.cluster import Cluster
from tests.simulation.faults import Faults
from tests.simulation.world import Broken, World

QUIET_S = 6.0
_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    seed: int
    broken: str | None
    story: list[str]
    virtual_s: float
    cpu_s: float
    checks: Checks
    terms: int
    messages: int


def simulate(seed: int, *, virtual_s: float = 20.0, trace: bool = False) -> Outcome:
    """Run one seed. Every fourth has 5 voters, the others 3."""
    world = World(seed, trace)
    outside.clock, outside.rng = world.clock, random.Random(seed)
    size = 5 if seed % 4 == 0 else 3
    started = time.process_time()
    broken: str | None = None
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as directory:
        cluster = Cluster(world, size, Path(directory))
        try:
            cluster.start()
            faults = Faults(cluster)
            faults.start()
            world.run_until(1000.0 + virtual_s - QUIET_S)
            faults.stop()
            cluster.calm()
            end = world.now + QUIET_S
            world.run_until(end - 2.0)
            for client in cluster.clients:
                client.stopped = True
            world.run_until(end)
            patience = world.now + 10.0
            while world.now < patience and not (cluster.converged() and all(c.idle for c in cluster.clients)):
                world.run_until(world.now + 0.1)
            if not cluster.converged():
                states = [v.node.status if v.node else v.name for v in cluster.voters]
                raise Broken(f"not converged after the faults: {states}")
            cluster.checks.finish(cluster.voters)
        except Exception as error:
            if not isinstance(error, Broken):
                world.tell(f"{type(error).__name__}: {error}")
            broken = f"{type(error).__name__}: {error}"
            if trace:
                raise
    return Outcome(
        seed,
        broken,
        world.story,
        world.now - 1000.0,
        time.process_time() - started,
        cluster.checks,
        max(cluster.checks.leaders, default=0),
        cluster.network.messages,
    )
