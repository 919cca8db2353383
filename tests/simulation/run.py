"""One run: a cluster, clients and faults for a time, then quiet, then the checks."""

from __future__ import annotations

import gc
import logging
import random
import tempfile
import time
from asyncio import events
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio.to_thread

from ringrift_cluster.controllers import runner
from ringrift_cluster.raft import conf
from ringrift_cluster.raft.seams import outside
from statemachine import image
from tests.simulation.cluster import Cluster
from tests.simulation.faults import Faults
from tests.simulation.plan import Strike, draw
from tests.simulation.switches import without
from tests.simulation.world import BEGAN_AT, Broken, World

#: one run, and how much of it is quiet at the end
VIRTUAL_S = 20.0
QUIET_S = 6.0
_MEMORY = Path("/dev/shm")
#: the cycles of so many runs stay in memory together
CLEAN_EVERY = 9


@dataclass(frozen=True, slots=True)
class Options:
    """How long a run is, and which of its faults strike."""

    virtual_s: float = VIRTUAL_S
    #: kinds of faults; none means all
    kinds: tuple[str, ...] = ()
    #: numbers of the strikes that happen; None means all
    only: tuple[int, ...] | None = None
    #: corrections that are switched off
    disabled: tuple[str, ...] = ()
    #: voters; 0 lets the seed choose
    size: int = 0
    #: the longest that a turn is held up after it has looked at the clock; the library looks again
    held_up_s: float = 0.0

    def plan(self, seed: int) -> list[Strike]:
        drawn = draw(seed, self.virtual_s - QUIET_S, self.kinds)
        return [s for s in drawn if self.only is None or s.number in self.only]

    def as_arguments(self) -> str:
        """What the command line takes to run the same."""
        said = f" --seconds {self.virtual_s:g}" if self.virtual_s != VIRTUAL_S else ""
        said += f" --faults {','.join(self.kinds)}" if self.kinds else ""
        said += f" --voters {self.size}" if self.size else ""
        said += f" --held-up {self.held_up_s:g}" if self.held_up_s else ""
        said += f" --disable {','.join(self.disabled)}" if self.disabled else ""
        if self.only is not None:
            said += f" --only {','.join(map(str, self.only)) or 'none'}"
        return said


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    seed: int
    broken: str | None
    story: list[str]
    virtual_s: float
    cpu_s: float
    #: what happened how often, by name
    counts: dict[str, int]
    #: virtual second of the failure, or of the end
    failed_at: float


def simulate(seed: int, options: Options = Options(), *, trace: bool = False) -> Outcome:
    """Run one seed. Every fourth has 5 voters, the others 3."""
    logging.disable(logging.CRITICAL)
    world = World(seed, trace, held_up_s=options.held_up_s)
    outside.rng = random.Random(seed)
    random.seed(seed)
    size = options.size or (5 if seed % 4 == 0 else 3)
    started = time.process_time()
    # A run makes few cycles and ends soon; the collector would only walk the rows again and again.
    gc.disable()
    broken: str | None = None
    with (
        tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as directory,
        _scaled_down(),
        without(options.disabled),
    ):
        cluster = Cluster(world, size, Path(directory))
        try:
            _play(cluster, options, options.plan(seed))
        except Exception as error:
            broken = f"{type(error).__name__}: {error}"
            world.tell(broken)
            if trace:
                raise
        finally:
            cluster.end()
            events._set_running_loop(None)
    outcome = Outcome(
        seed, broken, world.story, world.now - BEGAN_AT, time.process_time() - started, _counts(cluster), world.now
    )
    gc.enable()
    if seed % CLEAN_EVERY == 0:
        gc.collect()
    return outcome


def _counts(cluster: Cluster) -> dict[str, int]:
    checks = cluster.checks
    ledger = checks.ledger
    return {
        "acknowledged": len(checks.acknowledged),
        "unknown": checks.unknown,
        "refused": len(checks.refused),
        "linearizable reads": checks.reads,
        "applies": checks.applied,
        "installs": checks.installs,
        "terms": max(checks.leaders, default=0),
        "changes of voters": cluster.membership.changed,
        "disks lost": cluster.membership.wipes,
        "voters replaced": cluster.membership.replaced,
        "messages": cluster.network.messages,
        "digests of followers": checks.followed,
        "times caught up": cluster.progress.caught_up,
        "jobs started": ledger.started,
        "completed": len(ledger.completed),
        "games": sum(ledger.games.values()),
    }


@contextmanager
def _scaled_down() -> Iterator[None]:
    """The product's constants as a small and short cluster needs them, and no threads."""

    async def inline(func: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return func(*args)

    with (
        # One append holds a few entries, so that what a voter misses arrives in several.
        patch.object(conf, "MEBIBYTE", 8 * 1024),
        # A look of a controller takes the simulation's time; a few a second show all that matters.
        patch.object(runner, "BREATH_S", 0.3),
        patch.object(runner, "BATCH", 4),
        # Snapshots are written of tables that go on meanwhile, and of lists.
        patch.object(image, "LONG", 5),
        patch.object(image, "STEP", 3),
        # The file response's threads happen at one moment.
        patch.object(anyio.to_thread, "run_sync", inline),
    ):
        yield


def _play(cluster: Cluster, options: Options, plan: Sequence[Strike]) -> None:
    world = cluster.world
    cluster.start()
    faults = Faults(cluster, plan)
    faults.start()
    world.run_until(BEGAN_AT + options.virtual_s - QUIET_S)
    faults.stop()
    cluster.calm()
    end = world.now + QUIET_S
    world.run_until(end - 4.0)
    cluster.hand_over_busy()
    world.run_until(end - 3.2)
    cluster.send_much()
    world.run_until(end - 2.0)
    for client in cluster.clients:
        client.stopped = True
    world.run_until(end)
    patience = world.now + 10.0
    while world.now < patience and (cluster.unfinished() or not all(c.idle for c in cluster.clients)):
        world.run_until(world.now + 0.1)
    unfinished = cluster.unfinished()
    if unfinished:
        raise Broken(f"not converged after the faults: {unfinished}")
    if not all(c.idle for c in cluster.clients):
        raise Broken("a client waits for an answer for ever")
    names = cluster.membership.names()
    cluster.checks.finish([v for v in cluster.voters if v.name in names])
