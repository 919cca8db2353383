"""A simulated executor: it obeys committed jobs under leases as the agent does; its processes only take time."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from random import Random

from ringrift_cluster.replica import Replica, ReplicaError
from statemachine.commands import (
    Command,
    CompleteJob,
    FailJob,
    JoinPeer,
    ReleaseJob,
    ReportJob,
    encode_command,
)
from statemachine.errors import Code, Refused, Rejected, Result
from statemachine.rows import Actual, Desired, Job, Work
from statemachine.state import State
from statemachine.values import Beat, MatchResult, Output, PeerFacts, Tally
from tests.simulation.ledger import Ledger
from tests.simulation.loop import Clock
from tests.simulation.world import World

BEAT_S = 0.4
#: a process is dead so long before its lease is over
MARGIN_S = 0.7
#: nothing is started on a view that is older than this
OLD_VIEW_MS = 1_000
SLOTS = 2


class Process:
    """A running attempt. It ends by itself, when it is stopped, or when its lease is over on its machine's clock."""

    def __init__(self, node: str, row: Job, work: Work, clock: Clock, lease_ends_at: float) -> None:
        self.node = node
        self.work = row.work
        self.job = row.job
        self.fence = row.fence
        self.lease_s = row.lease_ms / 1000
        self.spec = work.spec
        self.lease_ends_at = lease_ends_at
        self.alive = True
        self._clock = clock

    def honours(self) -> bool:
        return self.alive and self._clock() < self.lease_ends_at - MARGIN_S


class Executor:
    """One node's hands. `replica` is its own, `record` sends a beat and returns once it was applied."""

    def __init__(
        self,
        node: str,
        incarnation: int,
        world: World,
        clock: Clock,
        replica: Replica,
        record: Callable[[Beat], Awaitable[int]],
        ledger: Ledger,
    ) -> None:
        self._node = node
        self._incarnation = incarnation
        self._rng = Random(f"{node} {incarnation} {world.seed}")
        self._clock = clock
        self._replica = replica
        self._record = record
        self._ledger = ledger
        self._heard_at = -1e9
        self._index = 0
        self._held: dict[str, Process] = {}
        self._over: set[tuple[str, int]] = set()

    async def run(self) -> None:
        await self._join()
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self._beats())
            group.create_task(self._passes())

    def die(self) -> None:
        """The machine lost its power."""
        for process in self._held.values():
            process.alive = False

    # Signs of life

    async def _join(self) -> None:
        facts = PeerFacts(hostname=self._node, cpu_slots=SLOTS)
        boot = f"boot-{self._node}-{self._incarnation}"
        command = JoinPeer(self._node, self._incarnation, boot, "follower", f"http://{self._node}", facts)
        while True:
            sent_at = self._clock()
            result = await self._propose(command)
            if not isinstance(result, Rejected):
                self._renew(sent_at)
                return
            await asyncio.sleep(0.3)

    async def _beats(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S * self._rng.uniform(0.8, 1.2))
            sent_at = self._clock()
            try:
                await self._record(Beat(self._node, self._incarnation))
            except ReplicaError:
                continue
            except Refused:
                await self._join()
                continue
            self._renew(sent_at)

    def _renew(self, sent_at: float) -> None:
        self._heard_at = max(self._heard_at, sent_at)
        for process in self._held.values():
            process.lease_ends_at = self._heard_at + process.lease_s

    # Passes

    async def _passes(self) -> None:
        while True:
            await asyncio.sleep(self._rng.uniform(0.1, 0.3))
            try:
                seen = await self._replica.read(self._view)
            except ReplicaError:
                continue
            incarnation, jobs = seen.value
            if seen.index < self._index or incarnation != self._incarnation:
                continue
            self._index = seen.index
            live = {row.job for row, _ in jobs}
            for name, process in self._held.items():
                if name not in live:
                    process.alive = False
            fit = self._replica.status().contact_age_ms <= OLD_VIEW_MS
            for row, work in jobs:
                self._obey(row, work, fit)

    def _view(self, state: State) -> tuple[int, list[tuple[Job, Work]]]:
        peer = state.peers.get(self._node)
        rows = [state.jobs[name] for name in sorted(state.index.live_jobs_of(self._node))]
        return peer.incarnation if peer else -1, [(row, state.work[row.work]) for row in rows]

    def _obey(self, row: Job, work: Work, fit: bool) -> None:
        process = self._held.get(row.job)
        if process is not None:
            if row.desired is Desired.STOP:
                process.alive = False
            return
        if (row.job, row.fence) in self._over:
            return
        if row.desired is Desired.STOP or row.actual is Actual.RUNNING:
            self._conduct(row, self._end(ReleaseJob(row.job, row.fence, "asked"), row))
            return
        lease_ends_at = self._heard_at + row.lease_ms / 1000
        if not fit or self._clock() >= lease_ends_at - MARGIN_S:
            return
        process = self._held[row.job] = Process(self._node, row, work, self._clock, lease_ends_at)
        self._ledger.start(process)
        self._conduct(row, self._attempt(process, row))

    def _conduct(self, row: Job, attempt: Awaitable[None]) -> None:
        self._over.add((row.job, row.fence))

        async def conduct() -> None:
            await attempt
            self._held.pop(row.job, None)

        self._group.create_task(conduct())

    async def _attempt(self, process: Process, row: Job) -> None:
        said = self._group.create_task(self._end(ReportJob(row.job, row.fence, Actual.RUNNING), row))
        ends_at = self._clock() + self._rng.uniform(0.1, 2.0)
        while self._clock() < ends_at and process.honours():
            left = min(ends_at, process.lease_ends_at - MARGIN_S) - self._clock()
            await asyncio.sleep(min(max(left, 0.001), 0.2))
        stopped = not process.honours()
        process.alive = False
        await said
        if stopped:
            await self._end(FailJob(row.job, row.fence, "stopped", "stopped, or its lease was over"), row)
        elif self._rng.random() < 0.15:
            await self._end(FailJob(row.job, row.fence, self._rng.choice(["user", "infrastructure"]), "failed"), row)
        else:
            await self._end(_completion(process, self._rng), row)

    async def _end(self, command: Command, row: Job) -> None:
        """Report until answered; now and then once more, as a client that did not get the answer."""
        result = await self._propose(command)
        if self._rng.random() < 0.2:
            await asyncio.sleep(self._rng.uniform(0.0, 1.0))
            again = await self._propose(command)
            if isinstance(again, Rejected) and not isinstance(result, Rejected) and again.code == Code.INTERNAL:
                raise AssertionError(f"the repeat of {command} was answered {again}")

    async def _propose(self, command: Command) -> Result:
        while True:
            try:
                proposed = await self._replica.propose([encode_command(command)], timeout_s=2.0)
                return proposed.results[0]
            except ReplicaError:
                await asyncio.sleep(self._rng.uniform(0.05, 0.3))


def _completion(process: Process, rng: Random) -> CompleteJob:
    spec = process.spec
    digest = hashlib.sha256(f"{process.job} {process.fence}".encode()).hexdigest()
    match spec.work_type:
        case "selfplay":
            games = rng.randrange(1, 9)
            output = Output("games.npz", digest, 1000, "games", {"games": games})
            return CompleteJob(process.job, process.fence, {"games": games}, outputs=(output,))
        case "evaluation":
            wins = rng.randrange(0, 5)
            groups = (2 * (wins // 2), 2 * (wins - wins // 2))
            histogram = tuple(groups.count(points) for points in range(5))
            tally = Tally(1, 1, wins, 4 - wins, 0)
            result = MatchResult(spec.params["participant_a"], spec.params["participant_b"], (tally,), histogram)
            return CompleteJob(process.job, process.fence, match=result)
        case _:
            return CompleteJob(process.job, process.fence, outputs=(Output("model.pt", digest, 1000, "model"),))
