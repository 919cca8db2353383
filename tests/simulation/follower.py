"""One simulated machine with a follower: the real feed replica, an executor, and a machine's crashes and pauses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any, cast

import httpx
import msgspec

from ringrift_cluster.feed.conf import FollowerConfig
from ringrift_cluster.feed.follower import FeedReplica
from tests.simulation.executor import Executor
from tests.simulation.http import Answer, Http, Serve
from tests.simulation.ledger import Ledger
from tests.simulation.loop import Clock, VirtualLoop
from tests.simulation.network import Network
from tests.simulation.world import World


class Follower:
    """`watch` is told whenever its replica applied something."""

    def __init__(
        self,
        name: str,
        voters: list[str],
        world: World,
        network: Network,
        servers: Mapping[str, Callable[[], Serve | None]],
        directory: Path,
        ledger: Ledger,
        watch: Callable[[Follower], None],
    ) -> None:
        self.name = name
        self._voters = voters
        self._world = world
        self._network = network
        self._servers = servers
        self._directory = directory
        self._ledger = ledger
        self._watch = watch
        self._rate = Random(f"clock {name} {world.seed}").uniform(0.95, 1.05)
        self._loop: VirtualLoop | None = None
        self._executor: Executor | None = None
        self.replica: FeedReplica | None = None
        self.lives = 0
        self.paused = False
        #: the last index that was compared with the log, and after how many snapshots
        self.seen = 0
        self.snapshots = 0

    @property
    def alive(self) -> bool:
        return self._loop is not None

    def start(self) -> None:
        self.lives += 1
        self.paused = False
        self.seen = self.snapshots = 0
        clock = Clock(self._world, self._rate, self._world.between(1.0, 1000.0))
        loop = self._loop = VirtualLoop(self._world, clock)
        loop.enter()
        main = loop.create_task(self._main(clock))

        def ended(task: Any) -> None:
            if not task.cancelled() and task.exception() is not None:
                self._world.fail(f"{self.name} failed: {task.exception()!r}")

        main.add_done_callback(ended)

    async def _main(self, clock: Clock) -> None:
        config = FollowerConfig(
            self.name,
            {v: f"http://{v}" for v in self._voters},
            self._directory,
            stream_s=5.0,
            leave_after_s=1.5,
            backoff_cap_s=0.5,
            snapshot_every_entries=100,
        )
        http = cast(httpx.AsyncClient, Http(self._world, self._network, self.name, self._servers))
        rng = Random(f"{self.name} {self.lives} {self._world.seed}")
        replica = self.replica = await FeedReplica.start(config, http, rng=rng, clock=clock)
        replica.subscribe(lambda: self._watch(self))
        self._executor = Executor(
            self.name, self.lives, self._world, clock, replica, lambda beat: replica.record(beat, 2.0), self._ledger
        )
        await self._executor.run()

    def crash(self) -> None:
        loop, executor = self._loop, self._executor
        assert loop is not None
        if executor is not None:
            executor.die()
        self._loop = self._executor = self.replica = None
        loop.kill()
        for draft in self._directory.glob("feed/*.tmp"):
            with draft.open("r+b") as out:
                out.truncate(draft.stat().st_size // 2)

    def end(self) -> None:
        """Forget what it was about to do."""
        if self._loop is not None:
            self._loop.kill()

    def pause(self) -> None:
        self.paused = True
        if self._loop is not None:
            self._loop.pause()

    def resume(self) -> None:
        self.paused = False
        if self._loop is not None:
            self._loop.resume()

    def serve(self) -> Serve | None:
        return self._answer if self.alive and not self.paused else None

    def _answer(self, scope: dict[str, Any], body: bytes, reply: Callable[[Answer | None], None]) -> None:
        """Others probe it; nothing else is asked of it here."""
        reply(Answer(200, {}, msgspec.json.encode({"node_id": self.name})))
