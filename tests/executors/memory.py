"""A cluster of one process: the real state machine behind the port the agent uses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from executors.ports import ClusterUnavailable, HeartbeatRefused, OutcomeUnknown
from statemachine import settings
from statemachine.commands import AddWork, ChangeSetting, Command, PlaceWork, RecordHeartbeats, encode_command
from statemachine.entries import encode_entry
from statemachine.errors import Done, Result
from statemachine.machine import Machine
from statemachine.rows import Job, Work
from statemachine.settings import Template, Timing
from statemachine.state import State
from statemachine.values import Beat, Input, Needs

T = TypeVar("T")

QUICK = Timing(
    heartbeat_ms=100,
    suspect_after_ms=60_000,
    dead_after_ms=120_000,
    lease_ms={"default": 60_000},
    grace_ms=5_000,
    backoff_ms=10,
)


class MemoryCluster:
    """Applies what is proposed at once; can be cut off, and can answer after it has forgotten the asker."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.cut = False
        #: what the port says of itself
        self.unfit_because = ""
        #: this many proposals take effect and are answered with OutcomeUnknown
        self.lose_answers = 0
        self.commands: list[Command] = []
        self.beats: list[Beat] = []
        self.refused = 0
        self._began = time.monotonic()
        self._changed = asyncio.Event()

    @property
    def state(self) -> State:
        return self.machine.state

    def apply(self, *commands: Command) -> list[Result]:
        elapsed = int((time.monotonic() - self._began) * 1000)
        entry = encode_entry(1, elapsed, [encode_command(c) for c in commands])
        results = self.machine.apply(self.machine.index + 1, 1, entry)
        self._changed.set()
        self._changed = asyncio.Event()
        return results

    def must(self, *commands: Command) -> list[Result]:
        results = self.apply(*commands)
        assert all(isinstance(r, Done) for r in results), results
        return results

    def setting(self, name: str, value: Template | Timing) -> None:
        self.must(ChangeSetting(name, settings.encode(value)))

    def add(
        self,
        work: str,
        template: str,
        params: dict[str, str] | None = None,
        inputs: Sequence[Input] = (),
        work_type: str = "task",
        timeout_ms: int = 0,
        needs: Needs | None = None,
    ) -> None:
        self.must(
            AddWork(
                work,
                work_type,
                template=template,
                params=params or {},
                inputs=tuple(inputs),
                timeout_ms=timeout_ms,
                needs=needs or Needs(),
            )
        )

    def place(self, work: str, peer: str, gpus: tuple[str, ...] = ()) -> Job:
        """Grant an item to a peer, as the leader's placement would."""
        self.must(PlaceWork(work, peer, self.state.peers[peer].incarnation, gpus))
        return self.state.jobs[self.state.work[work].job]

    def work(self, work: str) -> Work:
        return self.state.work[work]

    def jobs_of(self, work: str) -> list[Job]:
        return [job for job in self.state.jobs.values() if job.work == work]

    # --- the port ---------------------------------------------------------------------------------

    async def read(self, query: Callable[[State], T]) -> tuple[T, int]:
        return query(self.state), self.machine.index

    async def wait_for(self, index: int, timeout_s: float) -> int:
        try:
            async with asyncio.timeout(timeout_s):
                while self.machine.index < index:
                    await self._changed.wait()
        except TimeoutError:
            pass
        return self.machine.index

    async def propose(self, commands: Sequence[Command]) -> list[Result]:
        await asyncio.sleep(0)
        if self.cut:
            raise ClusterUnavailable("the test has cut the cluster off")
        results = self.apply(*commands)
        self.commands += commands
        if self.lose_answers:
            self.lose_answers -= 1
            raise OutcomeUnknown("the test has lost the answer")
        return results

    async def heartbeat(self, beat: Beat) -> None:
        await asyncio.sleep(0)
        if self.cut:
            self.refused += 1
            raise ClusterUnavailable("the test has cut the cluster off")
        (result,) = self.apply(RecordHeartbeats((beat,)))
        self.beats.append(beat)
        assert isinstance(result, Done)
        if result.value:
            raise HeartbeatRefused(str(result.value))

    def unfit(self) -> str:
        return self.unfit_because


async def eventually(what: Callable[[], object], timeout_s: float = 15.0) -> None:
    """Wait until a predicate holds."""
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, f"it did not come true within {timeout_s:g} s"
        await asyncio.sleep(0.01)
