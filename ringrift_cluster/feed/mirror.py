"""What a follower holds: the state at (cluster, index, chain), how old it may be, and why it goes no further."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from ringrift_cluster import replica as rp
from ringrift_cluster.feed.changes import Changes
from ringrift_cluster.feed.conf import FollowerConfig
from ringrift_cluster.feed.intake import Heard, PositionRefused, Unreachable
from ringrift_cluster.feed.stored import OwnSnapshot, StoredSnapshot
from ringrift_cluster.feed.wire import OTHER_CLUSTER, Frame, Standing
from ringrift_cluster.raft.window import Applied, Window
from statemachine.errors import Halt
from statemachine.machine import SUPPORTED_FEATURE_LEVEL, Machine

log = logging.getLogger(__name__)

#: entries applied before other tasks of the loop get their turn
_SLICE = 64
#: an age for "never"
_NEVER_MS = 10**9


class Diverged(Exception):  # noqa: N818 - names a state of the world
    """Our state is not the one that the voter has; it was dropped."""


class Mirror:
    """Applies what a voter sends and compares the digest chain after every entry. Runs on one event loop."""

    def __init__(self, config: FollowerConfig, clock: Callable[[], float]) -> None:
        self.node_id = config.node_id
        self.window = Window(config.window_entries, config.window_bytes)
        self.own = OwnSnapshot(config.data_dir, config.snapshot_every_entries)
        self.machine: Machine | None = None
        self.cluster = ""
        #: everything up to this raft index is applied (no-ops leave gaps between entries)
        self.applied = 0
        #: where the voter stood that was heard last
        self.standing: Standing | None = None
        #: why it is of no more use, or can be shown but not continued
        self.halted: str | None = None
        self.frozen: str | None = None
        self._clock = clock
        #: when the voter read what we have, as far back as its own contact with the leader
        self._fresh_at: float | None = None
        self._mismatches = 0
        self._changes = Changes()

    @property
    def stopped(self) -> bool:
        return self.halted is not None or self.frozen is not None

    @property
    def fresh(self) -> bool:
        """Whether it once had everything that its voter knew to be committed."""
        return self._fresh_at is not None

    @property
    def age_ms(self) -> int:
        """How old the shown state may be, at worst."""
        if self._fresh_at is None:
            return _NEVER_MS
        return min(_NEVER_MS, max(0, int((self._clock() - self._fresh_at) * 1000)))

    @property
    def read_only(self) -> str | None:
        """Why nothing may be proposed on what is shown here."""
        if self.frozen is not None or self.machine is None:
            return self.frozen
        level = self.machine.state.cluster.feature_level
        return self._too_old(level) if level > SUPPORTED_FEATURE_LEVEL else None

    def _too_old(self, level: int) -> str:
        return (
            f"the cluster is at feature level {level} and {self.node_id} supports {SUPPORTED_FEATURE_LEVEL};"
            " install the newer release here"
        )

    # From a snapshot

    def take(self, machine: Machine, cluster_id: str) -> None:
        """Go on from a snapshot."""
        self.machine = machine
        self.cluster = cluster_id
        self.applied = machine.index
        self._fresh_at = None
        self.window.restart(machine.index)
        self.publish()

    def drop(self) -> None:
        """Forget the state: what follows starts from another snapshot."""
        self.machine = None
        self.own.drop()
        self._fresh_at = None
        self.window.restart(0)
        self.publish()

    # From a voter

    async def hear(self, heard: Heard, voter: str) -> None:
        """Apply a message. Raises Unreachable, PositionRefused, and Diverged when the state had to be dropped."""
        machine, standing = self.present(), heard.batch.standing
        if standing.cluster_id != self.cluster:
            raise PositionRefused(OTHER_CLUSTER, f"{voter} is of cluster {standing.cluster_id}")
        await self._apply(machine, heard.batch.frames, voter)
        if self.stopped:
            return
        if machine.index != standing.index:
            raise Unreachable(f"voter {voter} speaks of entry {standing.index}, and {machine.index} is the last one")
        if machine.chain != standing.chain:
            self._diverge(machine.index, voter)
        self.applied = max(self.applied, standing.through)
        self.standing = standing
        if self.applied >= standing.commit:
            fresh_at = heard.read_at_s - standing.contact_age_ms / 1000
            self._fresh_at = max(fresh_at, self._fresh_at or fresh_at)
        self.publish()
        self.own.save_when_due(machine, self.cluster, standing.voters)

    async def _apply(self, machine: Machine, frames: Sequence[Frame], voter: str) -> None:
        """Apply in order, checking the chain after each."""
        for count, frame in enumerate(frames, 1):
            if frame.index <= machine.index:
                raise Unreachable(f"voter {voter} sent entry {frame.index} after {machine.index}")
            try:
                machine.apply(frame.index, frame.term, frame.entry)
            except Halt as halt:
                self._stop(machine, str(halt))
                return
            if machine.chain != frame.chain:
                self._diverge(frame.index, voter)
            self.applied = frame.index
            self.window.append(Applied(frame.index, frame.term, frame.entry, frame.chain))
            if count % _SLICE == 0:
                self.publish()
                await asyncio.sleep(0)

    def _diverge(self, index: int, voter: str) -> None:
        self._mismatches += 1
        log.error("event=chain_mismatch index=%d voter=%s times=%d", index, voter, self._mismatches)
        if self._mismatches >= 2:
            self.halted = (
                f"after entry {index} the state of {self.node_id} differed from that of voter {voter}, for the"
                " second time; run the same release here as on the voters and start the node again"
            )
        self.drop()
        raise Diverged(f"after entry {index} the state differs from that of voter {voter}")

    def _stop(self, machine: Machine, reason: str) -> None:
        level = machine.state.cluster.feature_level
        if level > SUPPORTED_FEATURE_LEVEL:
            self.frozen = f"{self._too_old(level)}; it stands still at entry {machine.index}"
        else:
            self.halted = f"{self.node_id} stopped at entry {machine.index}: {reason}"
        log.error("event=feed_stopped reason=%s", self.frozen or self.halted)
        self.publish()

    def halt(self, reason: str) -> None:
        self.halted = reason
        self.publish()

    # For those who read

    def present(self) -> Machine:
        """The machine. Raises Halted, and Stale when there is none yet."""
        if self.halted is not None:
            raise rp.Halted(self.halted)
        if self.machine is None:
            raise rp.Stale(f"{self.node_id} has no state yet; it is taking a snapshot from a voter")
        return self.machine

    def publish(self) -> None:
        """Tell those who wait here, and those who follow this follower."""
        self._changes.happened()
        self.window.wake()

    async def until(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Wait until a condition on this mirror holds; False when the time is over. Raises Halted."""

        def look() -> bool:
            if self.halted is not None:
                raise rp.Halted(self.halted)
            return holds()

        return await self._changes.until(look, seconds)

    async def snapshot_file(self, max_behind: int, voters: tuple[str, ...]) -> StoredSnapshot:
        """The own snapshot, written anew when it is older or the window no longer follows on it.

        Raises Stale, Halted.
        """
        machine = self.present()
        oldest = machine.index - max_behind
        latest = self.own.latest
        if latest is None or latest.index < oldest or self.window.since(latest.index, 1) is None:
            await self.own.save(machine, self.cluster, voters)
            latest = self.own.latest
        if latest is None or latest.index < oldest:
            raise rp.Stale(self.own.error or f"{self.node_id} is taking a new snapshot itself")
        return latest
