"""The executor's door to the cluster, over whichever replica this node has."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from executors.ports import ClusterUnavailable, HeartbeatRefused
from executors.ports import OutcomeUnknown as Unknown
from ringrift_cluster.replica import OutcomeUnknown, Replica, ReplicaError
from statemachine.commands import Command, encode_command
from statemachine.errors import Refused, Result
from statemachine.state import State
from statemachine.values import Beat

T = TypeVar("T")

#: a view whose last word from the leader is older than this shows grants too late; a long poll takes a third of it
OLD_VIEW_MS = 15_000


class ReplicaPort:
    """`executors.ports.Cluster` over a replica and the way its heartbeats take."""

    def __init__(self, replica: Replica, record: Callable[[Beat], Awaitable[int]]) -> None:
        self._replica = replica
        self._record = record

    async def read(self, query: Callable[[State], T]) -> tuple[T, int]:
        try:
            seen = await self._replica.read(query)
        except ReplicaError as error:
            raise ClusterUnavailable(str(error)) from error
        return seen.value, seen.index

    async def wait_for(self, index: int, timeout_s: float) -> int:
        try:
            return await self._replica.wait_for(index, timeout_s)
        except ReplicaError as error:
            raise ClusterUnavailable(str(error)) from error

    async def propose(self, commands: Sequence[Command]) -> list[Result]:
        try:
            proposed = await self._replica.propose([encode_command(c) for c in commands])
        except OutcomeUnknown as error:
            raise Unknown(str(error)) from error
        except ReplicaError as error:
            raise ClusterUnavailable(str(error)) from error
        return list(proposed.results)

    def unfit(self) -> str:
        now = self._replica.status()
        if now.halted or now.read_only:
            return now.halted or now.read_only or ""
        # Without the age: a changing sentence would be a new fact at every heartbeat.
        return "it has not heard of the cluster's leader lately" if now.contact_age_ms > OLD_VIEW_MS else ""

    async def heartbeat(self, beat: Beat) -> None:
        try:
            await self._record(beat)
        except Refused as refused:
            raise HeartbeatRefused(refused.detail) from refused
        except OutcomeUnknown as error:
            raise Unknown(str(error)) from error
        except ReplicaError as error:
            raise ClusterUnavailable(str(error)) from error
