"""A replica of one node in memory: the real law, no log, no network, a clock that tests move.

Every proposal becomes one entry at once. Tests make it fail, lag and lose its leader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from ringrift_cluster.replica import Consistency, NoLeader, Proposed, Read, ReplicaError, ReplicaStatus, Stale
from statemachine.commands import Command, encode_command
from statemachine.entries import encode_entry
from statemachine.errors import Rejected
from statemachine.machine import Machine
from statemachine.state import State

T = TypeVar("T")


class MemoryReplica:
    """Offers the `Replica` protocol on one event loop."""

    def __init__(self, node_id: str = "a", voters: tuple[str, ...] = ("a", "b", "c")) -> None:
        self.machine = Machine()
        self.proposed: list[bytes] = []
        #: raised by the next and all further proposals
        self.refusing: ReplicaError | None = None
        #: what `status` says; position and clock come from the machine
        self.says = ReplicaStatus(
            node_id=node_id,
            cluster_id="memory",
            role="leader",
            leader_id=node_id,
            term=1,
            commit=0,
            applied=0,
            chain="",
            ready=True,
            voters=voters,
            voters_heard=voters,
            contact_age_ms=0,
            clock_ms=0,
        )
        self._elapsed_ms = 0
        self._grown: asyncio.Event | None = None

    async def propose(self, commands: Sequence[bytes], *, timeout_s: float = 10.0) -> Proposed:
        if self.refusing is not None:
            raise self.refusing
        if self.says.leader_id is None:
            raise NoLeader("no leader is known")
        return self.commit(commands)

    def commit(self, commands: Sequence[bytes]) -> Proposed:
        """Apply one entry, whatever the replica pretends to be."""
        self.proposed += commands
        index = self.machine.index + 1
        results = self.machine.apply(index, self.says.term, encode_entry(1, self._elapsed_ms, commands))
        if self._grown is not None:
            self._grown.set()
            self._grown = None
        return Proposed(index, self.says.term, tuple(results))

    def run(self, *commands: Command) -> list[object]:
        """Commit commands that must take effect; returns their values."""
        values: list[object] = []
        for command in commands:
            (result,) = self.commit([encode_command(command)]).results
            assert not isinstance(result, Rejected), result
            values.append(result.value)
        return values

    def tick(self, ms: int) -> None:
        """Move the cluster clock."""
        while ms > 0:
            step = min(ms, 2_000)
            self._elapsed_ms += step
            ms -= step
            self.commit(())

    async def read(
        self,
        query: Callable[[State], T],
        *,
        consistency: Consistency = Consistency.LOCAL,
        at_least: int = 0,
        wait_s: float = 0.0,
    ) -> Read[T]:
        if consistency is Consistency.LINEARIZABLE:
            at_least = max(at_least, (await self.propose(())).index)
        if consistency is Consistency.FRESH and self.says.contact_age_ms > 2_000:
            raise Stale(f"the last word from the leader is {self.says.contact_age_ms} ms old")
        if await self.wait_for(at_least, wait_s) < at_least:
            raise Stale(f"entry {at_least} is not applied here yet; this replica is at {self.machine.index}")
        return Read(query(self.machine.state), self.machine.index)

    async def wait_for(self, index: int, timeout_s: float) -> int:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while self.machine.index < index and loop.time() < deadline:
            self._grown = self._grown or asyncio.Event()
            try:
                await asyncio.wait_for(self._grown.wait(), deadline - loop.time())
            except TimeoutError:
                break
        return self.machine.index

    def status(self) -> ReplicaStatus:
        machine = self.machine
        return replace(
            self.says,
            commit=machine.index,
            applied=machine.index,
            chain=machine.chain.hex(),
            clock_ms=machine.state.now_ms,
        )

    def live_state(self) -> State:
        return self.machine.state

    def pretend(self, **fields: object) -> None:
        """Change what `status` says."""
        self.says = replace(self.says, **fields)  # type: ignore[arg-type]

    async def transfer_leadership(self, target: str | None = None) -> str:
        others = [voter for voter in self.says.voters if voter != self.says.node_id]
        chosen = target or (others[0] if others else None)
        if chosen is None or chosen not in self.says.voters:
            raise NoLeader(f"{chosen!r} is no voter that could lead")
        self.pretend(leader_id=chosen, role="voter")
        return chosen

    async def stop(self) -> None:
        self.pretend(halted="stopped by the test", ready=False)
