"""The agent's signs of life: joining, beating, and the leases that follow from both.

A lease lasts from the moment the acknowledged sign was *sent*; the cluster counts from when it was applied,
which is later. So the holder always stops before the cluster gives the work to somebody else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from executors.attempts import Attempt
from executors.bench import Bench
from executors.options import Options
from executors.ports import ClusterError, HeartbeatRefused
from statemachine.commands import JoinPeer
from statemachine.errors import Code, Done
from statemachine.values import Beat, JobProgress, PeerFacts

log = logging.getLogger(__name__)
T = TypeVar("T")

#: beats carry at most this many jobs' progress (a bound of the command)
PROGRESS_PER_BEAT = 256
#: a beat is due at this share of its interval, since the timer that wakes us is never early and often late
DUE = 0.9


class AgentRefused(Exception):  # noqa: N818
    """The cluster does not take this process for the node it says it is; the text says what to do."""


class Heartbeat:
    """One peer's membership. `renewable` lists the attempts whose leases an acknowledged beat extends."""

    def __init__(
        self,
        bench: Bench,
        options: Options,
        peer: str,
        address: str,
        role: str,
        renewable: Callable[[], list[Attempt]],
    ) -> None:
        self.incarnation = 0
        self.joined = False
        self.facts = PeerFacts()
        self._bench = bench
        self._options = options
        self._peer = peer
        self._address = address
        self._role = role
        self._renewable = renewable
        self._facts_sent: PeerFacts | None = None
        self._sooner = asyncio.Event()
        #: leases must not wait until somebody else's large files are hashed
        self._thread = ThreadPoolExecutor(1, "agent-beat")

    def close(self) -> None:
        """Let go of the thread, once what it was doing is done."""
        self._thread.shutdown()

    async def _read(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def tell(self, facts: PeerFacts) -> None:
        """Let the cluster know the facts if they are new."""
        self.facts = facts
        if self.joined and facts != self._facts_sent:
            self._sooner.set()

    async def join(self) -> None:
        """Register this process. Raises AgentRefused when another one has its name."""
        bench, pause_s = self._bench, 0.1
        while True:
            sent_s, facts = bench.clock.boot_s(), self.facts
            command = JoinPeer(
                self._peer, self.incarnation, bench.boot_id, self._role, self._address, facts, bench.clock.wall_ms()
            )
            try:
                (result,) = await bench.cluster.propose([command])
            except ClusterError as error:
                log.info("event=join_waits peer=%s retry_s=%.1f error=%s", self._peer, pause_s, error)
            else:
                if isinstance(result, Done):
                    self.joined = True
                    self._facts_sent = facts
                    bench.heard_s = sent_s
                    log.info("event=joined peer=%s incarnation=%d", self._peer, self.incarnation)
                    return
                if result.code != Code.LIMIT:
                    raise AgentRefused(result.detail)
                log.warning("event=join_refused peer=%s detail=%s", self._peer, result.detail)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 5.0)

    async def run(self) -> None:
        """Beat on time, sooner when there is progress or a new fact to tell. Raises AgentRefused."""
        bench, retry_s = self._bench, 0.0
        woken_s = bench.heard_s
        while True:
            every_s = bench.timing.heartbeat_ms / 1000
            next_s = woken_s + (retry_s or min(every_s, self._options.progress_every_s))
            await self._sleep_until(next_s)
            if not bench.driver.reached():
                woken_s, retry_s = bench.clock.boot_s(), 1.0
                continue  # the peer is that machine, and nobody knows whether it lives
            told = await self._read(self._progress)
            woken_s = bench.clock.boot_s()
            news = bool(told) or self.facts != self._facts_sent
            if not news and not retry_s and woken_s - bench.heard_s < every_s * DUE:
                continue
            retry_s = 0.0 if await self._beat(told, woken_s) else min(every_s / 4, 2.0)

    async def _sleep_until(self, at_s: float) -> None:
        self._sooner.clear()
        try:
            async with asyncio.timeout(max(at_s - self._bench.clock.boot_s(), 0.0)):
                await self._sooner.wait()
        except TimeoutError:
            return

    async def _beat(self, told: list[Attempt], sent_s: float) -> bool:
        """Send one beat; extends the leases and returns True when it was acknowledged."""
        bench, facts = self._bench, self.facts
        new_facts = facts if facts != self._facts_sent else None
        beat = Beat(self._peer, self.incarnation, new_facts, tuple(_progress_of(a) for a in told))
        try:
            async with asyncio.timeout(self._options.request_timeout_s):
                await bench.cluster.heartbeat(beat)
        except HeartbeatRefused as error:
            log.warning("event=heartbeat_refused peer=%s error=%s", self._peer, error)
            await self.join()
        except (ClusterError, TimeoutError) as error:
            log.info("event=heartbeat_unanswered peer=%s error=%s", self._peer, error)
            for attempt in told:
                attempt.progress_sent_s = 0.0
            return False
        else:
            bench.heard_s = sent_s
            self._facts_sent = facts
        await self._read(self._renew_leases)
        return True

    def _progress(self) -> list[Attempt]:
        """Attempts with new totals that are due to be told; reads their progress files."""
        now = self._bench.clock.boot_s()
        due: list[Attempt] = []
        for attempt in self._renewable():
            if len(due) >= PROGRESS_PER_BEAT:
                break
            if now - attempt.progress_sent_s < self._options.progress_every_s * DUE:
                continue
            fresh = attempt.look_for_progress()
            untold = attempt.progress_sent_s == 0.0 and attempt.progress is not None
            if fresh is not None:
                attempt.progress = fresh
            if fresh is not None or untold:
                attempt.progress_sent_s = now
                due.append(attempt)
        return due

    def _renew_leases(self) -> None:
        for attempt in self._renewable():
            attempt.renew(self._bench.heard_s + attempt.job.lease_ms / 1000)


def _progress_of(attempt: Attempt) -> JobProgress:
    told = attempt.progress
    return JobProgress(*attempt.key, told.counts if told else {}, told.total if told else {})
