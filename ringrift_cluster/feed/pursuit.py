"""Following: a snapshot where there is no state, then one stream after another, from a voter that can be believed."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import aclosing

from ringrift_cluster.feed.conf import FollowerConfig
from ringrift_cluster.feed.intake import Intake, PositionRefused, ShutOut, Unreachable
from ringrift_cluster.feed.mirror import Diverged, Mirror
from ringrift_cluster.feed.wire import FELL_OUT
from ringrift_cluster.members import urls_of
from statemachine.snapshot import SnapshotDamaged

log = logging.getLogger(__name__)


class Pursuit:
    """Keeps a mirror up to date until it stops. A voter that fails is left for the next one, with a pause between."""

    def __init__(self, config: FollowerConfig, mirror: Mirror, intake: Intake, rng: random.Random) -> None:
        self._config = config
        self._mirror = mirror
        self._intake = intake
        self._voters = intake.voters
        self._rng = rng
        self._wants_snapshot = True
        #: no stream has continued from the last snapshot yet
        self._unproven = False
        #: attempts that failed since the last word from a voter
        self.failures = 0
        self.snapshots_taken = 0
        self.last_error = ""

    async def resume(self) -> None:
        """Start from the own snapshot, where there is a good one."""
        found = await self._mirror.own.load()
        if found is not None:
            stored, machine = found
            self._mirror.take(machine, stored.cluster_id)
            self._wants_snapshot = False
            self._learn_voters()
            log.info("event=resumed index=%d cluster=%s", stored.index, stored.cluster_id)

    async def run(self) -> None:
        """Until the mirror stops."""
        mirror = self._mirror
        while not mirror.stopped:
            try:
                if self._wants_snapshot:
                    await self._bootstrap()
                await self._stream()
            except PositionRefused as refused:
                log.warning("event=position_refused code=%s reason=%s", refused.code, refused)
                self._wants_snapshot = True
                if refused.code != FELL_OUT:
                    mirror.drop()
                if self._unproven:
                    # A voter whose snapshot is older than what it still keeps: ask another one, and not at once.
                    await self._back_off(str(refused))
            except Diverged:
                self._wants_snapshot = True
                # The next snapshot comes from another voter: this one may be the one that is wrong.
                self._voters.rotate()
            except ShutOut as shut_out:
                node = self._config.node_id
                log.error("event=shut_out reason=%s", shut_out)
                mirror.halt(f"{node} is shut out of the cluster: {shut_out}; it needs another one to come back")
            except (Unreachable, SnapshotDamaged) as error:
                await self._back_off(str(error))
            except OSError as error:
                await self._back_off(f"{mirror.own.path.parent} cannot be written: {error}")

    async def _back_off(self, reason: str) -> None:
        self.last_error = reason
        log.warning("event=voter_left voter=%s reason=%s", self._voters.current, reason)
        self._voters.rotate()
        self._mirror.publish()
        ceiling = min(self._config.backoff_cap_s, self._config.backoff_s * 2.0 ** min(self.failures, 10))
        self.failures += 1
        await asyncio.sleep(self._rng.uniform(0.5, 1.0) * ceiling)

    async def _bootstrap(self) -> None:
        mirror = self._mirror
        mirror.own.draft.parent.mkdir(parents=True, exist_ok=True)
        await self._intake.download(mirror.own.draft)
        stored, machine = await mirror.own.adopt_draft()
        self._unproven = True
        self.snapshots_taken += 1
        if mirror.cluster not in ("", stored.cluster_id):
            log.warning("event=cluster_changed before=%s now=%s", mirror.cluster, stored.cluster_id)
        mirror.take(machine, stored.cluster_id)
        self._wants_snapshot = False
        self._learn_voters()
        log.info("event=bootstrapped index=%d voter=%s", stored.index, self._voters.current)

    async def _stream(self) -> None:
        """From one voter, until its time is over or another voter is to be asked."""
        mirror, voter, config = self._mirror, self._voters.current, self._config
        machine = mirror.present()
        seconds = config.stream_s * self._rng.uniform(0.8, 1.0)
        async with aclosing(self._intake.stream(mirror.cluster, machine.index, machine.chain, seconds)) as words:
            async for heard in words:
                await mirror.hear(heard, voter)
                if mirror.stopped:
                    return
                self.failures = 0
                self._unproven = False
                self._learn_voters()
                age_ms = heard.batch.standing.contact_age_ms
                if age_ms > config.leave_after_s * 1000:
                    raise Unreachable(f"voter {voter} has not heard a leader for {age_ms} ms")
                if self._voters.current != voter:
                    return  # it does not vote any more

    def _learn_voters(self) -> None:
        own = self._config.node_id
        self._voters.learn({n: url for n, url in urls_of(self._mirror.present().state).items() if n != own})
