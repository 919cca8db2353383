"""The follower's replica: applies what a voter feeds it and never believes a voter it cannot check.

FeedReplica  -- the replica protocol
  |- Pursuit  takes snapshots and streams (Intake) from one of the voters (Voters), leaves the ones that fail
  '- Mirror   applies, checks, knows how old its state is; keeps a window and a snapshot of its own
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Self, TypeVar

import httpx

from ringrift_cluster import replica as rp
from ringrift_cluster.feed.conf import FollowerConfig
from ringrift_cluster.feed.intake import Intake
from ringrift_cluster.feed.mirror import Mirror
from ringrift_cluster.feed.pursuit import Pursuit
from ringrift_cluster.feed.stored import StoredSnapshot
from ringrift_cluster.feed.voters import Voters
from ringrift_cluster.raft.window import Applied
from ringrift_cluster.replica import Consistency, Proposed, Read, ReplicaStatus
from statemachine.state import State
from statemachine.values import Beat

log = logging.getLogger(__name__)
T = TypeVar("T")


class FeedReplica:
    """A replica that does not vote.

    Everything happens on the event loop that started it; its methods may be awaited on any loop of the
    process. It resumes from its own snapshot file where the voters still keep what came after.
    """

    def __init__(
        self,
        config: FollowerConfig,
        http: httpx.AsyncClient,
        *,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self._clock = clock
        rng = rng or random.Random()
        self.voters = Voters(config.voters, http, token=config.token, rng=rng, clock=clock)
        self._mirror = Mirror(config, clock)
        self._pursuit = Pursuit(config, self._mirror, Intake(self.voters, clock), rng)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, config: FollowerConfig, http: httpx.AsyncClient, **options: Any) -> Self:
        """Load what is on disk and begin to follow; ready once a first message was applied."""
        replica = cls(config, http, **options)
        replica._loop = asyncio.get_running_loop()
        await replica._pursuit.resume()
        replica._task = asyncio.create_task(replica._pursuit.run(), name="feed")
        replica._task.add_done_callback(replica._ended)
        return replica

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A fault of ours is never silent: the replica halts with it."""
        failure = None if task.cancelled() else task.exception()
        if failure is not None:
            reason = f"the feed of {self.config.node_id} failed: {type(failure).__name__}: {failure}"
            log.error("event=feed_failed reason=%s", reason, exc_info=failure)
            self._mirror.halt(reason)

    @property
    def snapshots_taken(self) -> int:
        return self._pursuit.snapshots_taken

    @property
    def last_error(self) -> str:
        """Why a voter was left the last time."""
        return self._pursuit.last_error

    async def snapshot_file(self, max_behind: int = 5_000) -> StoredSnapshot:
        """The own snapshot, written anew when it is older or the window no longer follows on it.

        Raises Stale, Halted.
        """
        return await self._here(lambda: self._mirror.snapshot_file(max_behind, self.status().voters))

    # The replica protocol

    async def propose(self, commands: Sequence[bytes], *, timeout_s: float = 10.0) -> Proposed:
        """Commit through a voter and wait until the outcome is applied here too. Raises ReplicaError."""
        return await self._here(lambda: self._propose(commands, timeout_s))

    async def _propose(self, commands: Sequence[bytes], timeout_s: float) -> Proposed:
        mirror = self._mirror
        if mirror.halted is not None:
            raise rp.Halted(mirror.halted)
        read_only = mirror.read_only
        if read_only is not None:
            raise rp.ReadOnly(read_only)
        deadline = self._clock() + timeout_s
        proposed = await self.voters.propose(commands, timeout_s)
        # What was answered here can be read here. The outcome is certain even when the feed is late.
        await mirror.until(lambda: mirror.applied >= proposed.index, deadline - self._clock())
        return proposed

    async def read(
        self,
        query: Callable[[State], T],
        *,
        consistency: Consistency = Consistency.LOCAL,
        at_least: int = 0,
        wait_s: float = 0.0,
    ) -> Read[T]:
        """Run a short pure query on the applied state. Raises Stale, NoLeader, Busy, Halted."""
        return await self._here(lambda: self._read(query, consistency, at_least, wait_s))

    async def _read(
        self, query: Callable[[State], T], consistency: Consistency, at_least: int, wait_s: float
    ) -> Read[T]:
        mirror = self._mirror
        if consistency is Consistency.LINEARIZABLE:
            wait_s = max(wait_s, self.config.barrier_s)
            deadline = self._clock() + wait_s
            try:
                barrier = await self.voters.propose((), wait_s)
            except rp.OutcomeUnknown as error:
                raise rp.Stale(f"no leader confirmed the view in time: {error}") from error
            at_least = max(at_least, barrier.index)
            wait_s = deadline - self._clock()
        fresh = consistency is Consistency.FRESH

        def shown() -> bool:
            there = mirror.machine is not None and mirror.applied >= at_least
            return there and (not fresh or mirror.age_ms <= self.config.fresh_s * 1000)

        if not await mirror.until(shown, wait_s):
            mirror.present()
            if mirror.applied < at_least:
                raise rp.Stale(
                    f"entry {at_least} is not applied here yet; {self.config.node_id} is at {mirror.applied}"
                )
            raise rp.Stale(
                f"the view of {self.config.node_id} is {mirror.age_ms / 1000:.1f} s old;"
                f" a fresh one wants {self.config.fresh_s:g} s"
            )
        return Read(query(mirror.present().state), mirror.applied)

    async def wait_for(self, index: int, timeout_s: float) -> int:
        """Wait until `index` is applied or the time is over; returns the applied index. Raises Halted."""
        await self._here(lambda: self._mirror.until(lambda: self._mirror.applied >= index, timeout_s))
        return self._mirror.applied

    async def record(self, beat: Beat, timeout_s: float = 10.0) -> int:
        """Send a heartbeat to a voter; returns the index at which it was applied. Raises ReplicaError, Refused.

        One that stands still raises Halted: its jobs are not told what the cluster decides, so their leases must
        end. One that may only read goes on beating, so that what it runs is not lost.
        """
        return await self._here(lambda: self._record(beat, timeout_s))

    async def _record(self, beat: Beat, timeout_s: float) -> int:
        standing_still = self._mirror.halted or self._mirror.frozen
        if standing_still is not None:
            raise rp.Halted(standing_still)
        return await self.voters.heartbeat(beat, timeout_s)

    async def transfer_leadership(self, target: str | None = None) -> str:
        """Ask the voters to hand leadership over. Raises NoLeader."""
        return await self._here(lambda: self.voters.transfer(target))

    def status(self) -> ReplicaStatus:
        mirror = self._mirror
        machine, standing = mirror.machine, mirror.standing
        return ReplicaStatus(
            node_id=self.config.node_id,
            cluster_id=mirror.cluster,
            role="follower",
            leader_id=standing.leader_id if standing else None,
            term=standing.term if standing else 0,
            commit=max(standing.commit if standing else 0, mirror.applied),
            applied=mirror.applied,
            chain=(machine.chain if machine else bytes(32)).hex(),
            ready=machine is not None and mirror.fresh and mirror.halted is None,
            voters=standing.voters if standing else tuple(sorted(self.config.voters)),
            voters_heard=(self.voters.current,) if standing and self._pursuit.failures == 0 else (),
            contact_age_ms=mirror.age_ms,
            clock_ms=machine.state.now_ms if machine else 0,
            halted=mirror.halted,
            read_only=mirror.read_only,
        )

    def live_state(self) -> State | None:
        """The state itself, for single look-ups by key from any thread; None before there is one."""
        machine = self._mirror.machine
        return machine.state if machine is not None else None

    # For followers of this follower

    def feed_since(self, index: int, limit: int = 1000) -> Sequence[Applied] | None:
        """Entries after `index`, oldest first; None when the window no longer has them. Any thread."""
        return self._mirror.window.since(index, limit) if self._mirror.machine is not None else None

    def subscribe(self, wake: Callable[[], None]) -> int:
        return self._mirror.window.subscribe(wake)

    def unsubscribe(self, ticket: int) -> None:
        self._mirror.window.unsubscribe(ticket)

    async def stop(self) -> None:
        """Stop following and keep what is applied for the next start."""
        await self._here(self._stop)

    async def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        mirror = self._mirror
        if mirror.machine is not None:
            await mirror.own.save(mirror.machine, mirror.cluster, self.status().voters)
        mirror.halt(mirror.halted or f"{self.config.node_id} was stopped")

    async def _here(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run on the loop that owns the state, from whichever loop the caller is on."""
        loop = self._loop
        if loop is None or loop is asyncio.get_running_loop():
            return await work()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), loop))
