"""The consensus thread of a simulated voter, as `RaftReplica` sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from ringrift_cluster.raft.conf import VoterConfig
from ringrift_cluster.raft.node import RaftNode
from ringrift_cluster.replica import ReplicaStatus

if TYPE_CHECKING:
    from tests.simulation.voter import Voter

Call = Callable[[], None]


class VirtualThread:
    """Calls wait for the voter's next turn; they are lost with the life in which they were made."""

    crowded = False

    def __init__(self, voter: Voter, node: RaftNode, config: VoterConfig) -> None:
        self._voter = voter
        self._life = voter.life
        self.node = node
        self.config = config

    def call(self, call: Call, refuse: Callable[[str], None]) -> None:
        if self._voter.life == self._life:
            self._voter.call(lambda node: call())
        else:
            refuse("this voter has stopped")

    def answer(self, loop: asyncio.AbstractEventLoop, call: Call) -> None:
        loop.call_soon(call)

    def status(self) -> ReplicaStatus:
        return self.node.status
