"""The consensus thread of a simulated voter, as `RaftReplica` sees it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ringrift_cluster.raft.conf import VoterConfig
from ringrift_cluster.raft.node import RaftNode
from ringrift_cluster.raft.thread import Call, complete
from ringrift_cluster.replica import Halted, ReplicaStatus

if TYPE_CHECKING:
    from tests.simulation.voter import Voter


class VirtualThread:
    """Calls wait for the voter's next turn; they are lost with the life in which they were made."""

    crowded = False

    def __init__(self, voter: Voter, node: RaftNode, config: VoterConfig) -> None:
        self._voter = voter
        self._life = voter.life
        self.node = node
        self.config = config

    def call(self, call: Call) -> None:
        if self._voter.life != self._life:
            raise Halted("this voter has stopped")
        self._voter.call(lambda node: call())

    def answer(self, future: asyncio.Future[Any], value: object) -> None:
        future.get_loop().call_soon(complete, [(future, value)])

    def status(self) -> ReplicaStatus:
        return self.node.status
