"""The follower's replica: applies what a voter feeds it and never believes a voter it cannot check."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx

from ringrift_cluster import replica as rp
from ringrift_cluster.feed.changes import Changes
from ringrift_cluster.feed.stored import OwnSnapshot, StoredSnapshot
from ringrift_cluster.feed.voters import Polled, PositionRefused, ShutOut, Unreachable, Voters
from ringrift_cluster.feed.wire import FELL_OUT, MAX_BATCH_BYTES, OTHER_CLUSTER, Frame
from ringrift_cluster.members import urls_of
from ringrift_cluster.raft.window import Applied, Window
from ringrift_cluster.replica import Consistency, Proposed, Read, ReplicaStatus
from statemachine.errors import Halt
from statemachine.machine import SUPPORTED_FEATURE_LEVEL, Machine
from statemachine.snapshot import SnapshotDamaged
from statemachine.state import State
from statemachine.values import Beat

log = logging.getLogger(__name__)
T = TypeVar("T")

#: entries applied before other tasks of the loop get their turn
_SLICE = 64
#: an age for "never"
_NEVER_MS = 10**9


@dataclass(frozen=True, slots=True)
class FollowerConfig:
    """Who this follower is and whom it follows. `voters` maps node ids to "http://host:port"."""

    node_id: str
    voters: Mapping[str, str]
    data_dir: Path
    token: str | None = None
    #: a fresh read is at most this old
    fresh_s: float = 5.0
    #: one long poll
    wait_s: float = 5.0
    batch_bytes: int = 4 * 1024 * 1024
    #: a barrier gives up after this time
    barrier_s: float = 5.0
    #: a voter that has not heard its leader for this long is left for another one
    leave_after_s: float = 3.0
    #: between failed attempts, jittered
    backoff_s: float = 0.1
    backoff_cap_s: float = 3.0
    #: an own snapshot is written after so many applied entries
    snapshot_every_entries: int = 10_000
    #: applied entries kept for followers of this follower
    window_entries: int = 20_000
    window_bytes: int = 32 * 1024 * 1024


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
        self._rng = rng or random.Random()
        self._clock = clock
        self.voters = Voters(config.voters, http, token=config.token, rng=self._rng, clock=clock)
        self.window = Window(config.window_entries, config.window_bytes)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._own = OwnSnapshot(config.data_dir, config.snapshot_every_entries)
        self._changes = Changes()
        self._machine: Machine | None = None
        self._cluster = ""
        #: the entry that said who votes
        #: everything up to this raft index is applied (no-ops leave gaps between entries)
        self._applied = 0
        #: the state is of no more use, or can be shown but not continued
        self._wants_snapshot = True
        #: no poll has continued from the last snapshot yet
        self._unproven = False
        self._polled: Polled | None = None
        #: when the voter read what we have, as far back as its own contact with the leader
        self._fresh_at: float | None = None
        self._mismatches = 0
        self._halted: str | None = None
        self._frozen: str | None = None
        self._failures = 0
        self.snapshots_taken = 0
        self.last_error = ""

    @classmethod
    async def start(cls, config: FollowerConfig, http: httpx.AsyncClient, **options: Any) -> Self:
        """Load what is on disk and begin to follow; ready once the first poll was applied."""
        replica = cls(config, http, **options)
        replica._loop = asyncio.get_running_loop()
        await replica._resume()
        replica._task = asyncio.create_task(replica._follow(), name="feed")
        replica._task.add_done_callback(replica._ended)
        return replica

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A fault of ours is never silent: the replica halts with it."""
        failure = None if task.cancelled() else task.exception()
        if failure is not None:
            self._halted = f"the feed of {self.config.node_id} failed: {type(failure).__name__}: {failure}"
            log.error("event=feed_failed reason=%r", self._halted, exc_info=failure)
            self._publish()

    # Following

    async def _resume(self) -> None:
        """Start from the own snapshot, where there is a good one."""
        found = await self._own.load()
        if found is not None:
            stored, machine = found
            self._take(machine, stored.cluster_id)
            log.info("event=resumed index=%d cluster=%s", stored.index, stored.cluster_id)

    async def _follow(self) -> None:
        """Until halted: a snapshot when there is no state, else the next poll."""
        while self._halted is None and self._frozen is None:
            try:
                if self._wants_snapshot:
                    await self._bootstrap()
                await self._poll()
                self._failures = 0
                self._unproven = False
            except PositionRefused as refused:
                log.warning("event=position_refused code=%s reason=%r", refused.code, str(refused))
                self._wants_snapshot = True
                if refused.code != FELL_OUT:
                    self._drop()
                if self._unproven:
                    # A voter whose snapshot is older than what it still keeps: ask another one, and not at once.
                    await self._back_off(str(refused))
            except ShutOut as shut_out:
                node = self.config.node_id
                self._halted = f"{node} is shut out of the cluster: {shut_out}; it needs another one to come back"
                log.error("event=shut_out reason=%r", str(shut_out))
            except (Unreachable, SnapshotDamaged) as error:
                await self._back_off(str(error))
            except OSError as error:
                await self._back_off(f"{self._own.path.parent} cannot be written: {error}")
        self._publish()

    async def _back_off(self, reason: str) -> None:
        self.last_error = reason
        log.warning("event=voter_left voter=%s reason=%r", self.voters.current, reason)
        self.voters.rotate()
        self._publish()
        ceiling = min(self.config.backoff_cap_s, self.config.backoff_s * 2.0 ** min(self._failures, 10))
        self._failures += 1
        await asyncio.sleep(self._rng.uniform(0.5, 1.0) * ceiling)

    async def _bootstrap(self) -> None:
        self._own.draft.parent.mkdir(parents=True, exist_ok=True)
        await self.voters.download(self._own.draft)
        stored, machine = await self._own.adopt_draft()
        self._unproven = True
        self.snapshots_taken += 1
        if self._cluster not in ("", stored.cluster_id):
            log.warning("event=cluster_changed before=%s now=%s", self._cluster, stored.cluster_id)
        self._take(machine, stored.cluster_id)
        log.info("event=bootstrapped index=%d voter=%s", stored.index, self.voters.current)

    def _take(self, machine: Machine, cluster_id: str) -> None:
        self._machine = machine
        self._cluster = cluster_id
        self._applied = machine.index
        self._learn_voters(machine)
        self._wants_snapshot = False
        self._fresh_at = None
        self.window.restart(machine.index)
        self._publish()

    def _drop(self) -> None:
        """Forget the state: what follows starts from another snapshot."""
        self._machine = None
        self._wants_snapshot = True
        self._own.drop()
        self._fresh_at = None
        self.window.restart(0)
        self._publish()

    def _learn_voters(self, machine: Machine) -> None:
        own = self.config.node_id
        self.voters.learn({node: url for node, url in urls_of(machine.state).items() if node != own})

    async def _poll(self) -> None:
        machine = self._machine
        if machine is None:
            return
        config = self.config
        polled = await self.voters.poll(self._cluster, machine.index, machine.chain, config.wait_s, config.batch_bytes)
        standing = polled.batch.standing
        if standing.cluster_id != self._cluster:
            raise PositionRefused(OTHER_CLUSTER, f"{self.voters.current} is of cluster {standing.cluster_id}")
        if not await self._apply(machine, polled.batch.frames):
            return
        self._learn_voters(machine)
        self._applied = max(self._applied, standing.through)
        self._polled = polled
        if self._applied >= standing.commit:
            fresh_at = polled.read_at_s - standing.contact_age_ms / 1000
            self._fresh_at = max(fresh_at, self._fresh_at or fresh_at)
        self._publish()
        self._own.save_when_due(machine, self._cluster, standing.voters)
        if standing.contact_age_ms > config.leave_after_s * 1000:
            raise Unreachable(f"voter {self.voters.current} has not heard a leader for {standing.contact_age_ms} ms")

    async def _apply(self, machine: Machine, frames: Sequence[Frame]) -> bool:
        """Apply in order, checking the chain after each; False when that ended here."""
        for count, frame in enumerate(frames, 1):
            if frame.index <= machine.index:
                raise Unreachable(f"voter {self.voters.current} sent entry {frame.index} after {machine.index}")
            try:
                machine.apply(frame.index, frame.term, frame.entry)
            except Halt as halt:
                self._stop_applying(machine, str(halt))
                return False
            if machine.chain != frame.chain:
                self._diverged(frame.index)
                return False
            self._applied = frame.index
            self.window.append(Applied(frame.index, frame.term, frame.entry, frame.chain))
            if count % _SLICE == 0:
                self._publish()
                await asyncio.sleep(0)
        return True

    def _diverged(self, index: int) -> None:
        self._mismatches += 1
        voter = self.voters.current
        log.error("event=chain_mismatch index=%d voter=%s times=%d", index, voter, self._mismatches)
        self._drop()
        if self._mismatches >= 2:
            self._halted = (
                f"after entry {index} the state of {self.config.node_id} differed from that of voter {voter}, for the"
                " second time; run the same release here as on the voters and start the node again"
            )
        # The next snapshot comes from another voter: this one may be the one that is wrong.
        self.voters.rotate()
        self._publish()

    def _stop_applying(self, machine: Machine, reason: str) -> None:
        level = machine.state.cluster.feature_level
        if level > SUPPORTED_FEATURE_LEVEL:
            self._frozen = f"{self._too_old(level)}; it stands still at entry {machine.index}"
        else:
            self._halted = f"{self.config.node_id} stopped at entry {machine.index}: {reason}"
        log.error("event=feed_stopped reason=%r", self._frozen or self._halted)

    def _too_old(self, level: int) -> str:
        return (
            f"the cluster is at feature level {level} and {self.config.node_id} supports {SUPPORTED_FEATURE_LEVEL};"
            " install the newer release here"
        )

    def _read_only(self) -> str | None:
        if self._frozen is not None or self._machine is None:
            return self._frozen
        level = self._machine.state.cluster.feature_level
        return self._too_old(level) if level > SUPPORTED_FEATURE_LEVEL else None

    # The own snapshot

    async def snapshot_file(self, max_behind: int = 5_000) -> StoredSnapshot:
        """The own snapshot, written anew when it is older or the window no longer follows on it.

        Raises Stale, Halted.
        """
        return await self._here(lambda: self._snapshot_file(max_behind))

    async def _snapshot_file(self, max_behind: int) -> StoredSnapshot:
        machine = self._present()
        oldest = machine.index - max_behind
        latest = self._own.latest
        if latest is None or latest.index < oldest or self.window.since(latest.index, 1) is None:
            await self._own.save(machine, self._cluster, self.status().voters)
            latest = self._own.latest
        if latest is None or latest.index < oldest:
            raise rp.Stale(self._own.error or f"{self.config.node_id} is taking a new snapshot itself")
        return latest

    # The replica protocol

    async def propose(self, commands: Sequence[bytes], *, timeout_s: float = 10.0) -> Proposed:
        """Commit through a voter and wait until the outcome is applied here too. Raises ReplicaError."""
        return await self._here(lambda: self._propose(commands, timeout_s))

    async def _propose(self, commands: Sequence[bytes], timeout_s: float) -> Proposed:
        if self._halted is not None:
            raise rp.Halted(self._halted)
        read_only = self._read_only()
        if read_only is not None:
            raise rp.ReadOnly(read_only)
        deadline = self._clock() + timeout_s
        proposed = await self.voters.propose(commands, timeout_s)
        # What was answered here can be read here. The outcome is certain even when the feed is late.
        await self._until(lambda: self._applied >= proposed.index, deadline - self._clock())
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
            there = self._machine is not None and self._applied >= at_least
            return there and (not fresh or self._age_ms() <= self.config.fresh_s * 1000)

        if not await self._until(shown, wait_s):
            self._present()
            if self._applied < at_least:
                raise rp.Stale(f"entry {at_least} is not applied here yet; {self.config.node_id} is at {self._applied}")
            raise rp.Stale(
                f"the view of {self.config.node_id} is {self._age_ms() / 1000:.1f} s old;"
                f" a fresh one wants {self.config.fresh_s:g} s"
            )
        return Read(query(self._present().state), self._applied)

    def _present(self) -> Machine:
        if self._halted is not None:
            raise rp.Halted(self._halted)
        if self._machine is None:
            raise rp.Stale(f"{self.config.node_id} has no state yet; it is taking a snapshot from a voter")
        return self._machine

    async def wait_for(self, index: int, timeout_s: float) -> int:
        """Wait until `index` is applied or the time is over; returns the applied index. Raises Halted."""
        await self._here(lambda: self._until(lambda: self._applied >= index, timeout_s))
        return self._applied

    async def record(self, beat: Beat, timeout_s: float = 10.0) -> int:
        """Send a heartbeat to a voter; returns the index at which it was applied. Raises ReplicaError, Refused.

        One that stands still raises Halted: its jobs are not told what the cluster decides, so their leases must
        end. One that may only read goes on beating, so that what it runs is not lost.
        """
        return await self._here(lambda: self._record(beat, timeout_s))

    async def _record(self, beat: Beat, timeout_s: float) -> int:
        standing_still = self._halted or self._frozen
        if standing_still is not None:
            raise rp.Halted(standing_still)
        return await self.voters.heartbeat(beat, timeout_s)

    async def transfer_leadership(self, target: str | None = None) -> str:
        """Ask the voters to hand leadership over. Raises NoLeader."""
        return await self._here(lambda: self.voters.transfer(target))

    def status(self) -> ReplicaStatus:
        machine = self._machine
        standing = self._polled.batch.standing if self._polled else None
        return ReplicaStatus(
            node_id=self.config.node_id,
            cluster_id=self._cluster,
            role="follower",
            leader_id=standing.leader_id if standing else None,
            term=standing.term if standing else 0,
            commit=max(standing.commit if standing else 0, self._applied),
            applied=self._applied,
            chain=(machine.chain if machine else bytes(32)).hex(),
            ready=machine is not None and self._fresh_at is not None and self._halted is None,
            voters=standing.voters if standing else tuple(sorted(self.config.voters)),
            voters_heard=(self.voters.current,) if standing and self._failures == 0 else (),
            contact_age_ms=self._age_ms(),
            clock_ms=machine.state.now_ms if machine else 0,
            halted=self._halted,
            read_only=self._read_only(),
        )

    def live_state(self) -> State | None:
        """The state itself, for single look-ups by key from any thread; None before there is one."""
        machine = self._machine
        return machine.state if machine is not None else None

    def _age_ms(self) -> int:
        """How old the shown state may be, at worst."""
        if self._fresh_at is None:
            return _NEVER_MS
        return min(_NEVER_MS, max(0, int((self._clock() - self._fresh_at) * 1000)))

    def feed_since(self, index: int, limit: int = 1000) -> Sequence[Applied] | None:
        """Entries for followers of this follower. Any thread."""
        return self.window.since(index, limit, MAX_BATCH_BYTES) if self._machine is not None else None

    def subscribe(self, wake: Callable[[], None]) -> int:
        return self.window.subscribe(wake)

    def unsubscribe(self, ticket: int) -> None:
        self.window.unsubscribe(ticket)

    async def stop(self) -> None:
        """Stop following and keep what is applied for the next start."""
        await self._here(self._stop)

    async def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._machine is not None:
            await self._own.save(self._machine, self._cluster, self.status().voters)
        self._halted = self._halted or f"{self.config.node_id} was stopped"
        self._publish()

    # Waiting

    def _publish(self) -> None:
        self._changes.happened()
        self.window.wake()

    async def _until(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Wait until a condition on this replica holds; False when the time is over. Raises Halted."""

        def look() -> bool:
            if self._halted is not None:
                raise rp.Halted(self._halted)
            return holds()

        return await self._changes.until(look, seconds)

    async def _here(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run on the loop that owns the state, from whichever loop the caller is on."""
        loop = self._loop
        if loop is None or loop is asyncio.get_running_loop():
            return await work()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), loop))
