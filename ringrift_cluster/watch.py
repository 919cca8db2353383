"""What ends a node that nobody told to leave: its replica, its voters, its parent."""

from __future__ import annotations

import asyncio
import os

from ringrift_cluster.api.services import ShutdownOrder
from ringrift_cluster.beside import LogBeside
from ringrift_cluster.departure import EXIT_AGAIN, Departure
from ringrift_cluster.feed.follower import FeedReplica
from ringrift_cluster.pulse import PULSE_S, Pulse
from ringrift_cluster.raft.engine import RaftReplica
from ringrift_cluster.seat import Seat
from ringrift_cluster.settings import NodeConfig
from ringrift_cluster.vitals import Executor


class Watch:
    """Over one node, once a beat."""

    def __init__(self, config: NodeConfig, departure: Departure, beside: LogBeside) -> None:
        self._config = config
        self._departure = departure
        self._beside = beside

    async def keep(self, pulse: Pulse, replica: RaftReplica | FeedReplica, executor: Executor) -> None:
        while True:
            await pulse.beat()
            self.look(replica, executor)

    def look(self, replica: RaftReplica | FeedReplica, executor: Executor) -> None:
        """A follower that halted, or that follows another cluster than its agent works for, ends its node."""
        now, hired_for, node = replica.status(), executor.cluster_id, self._config.node_id
        if self._departure.begun() or isinstance(replica, RaftReplica):
            return  # a voter calls when it halts, and never changes its cluster
        if now.halted:
            self._departure.halt(now.halted)
        elif self._beside.votes:
            self._departure.change_seat(Seat.VOTER, f"{node} is a voter now")
        elif self._beside.is_missed(replica):
            self._departure.halt(
                f"{node} is a voter of the cluster by a log that is not here: restore its data "
                f"directory, or run `ringrift-node voters remove {node}`, start it again and run "
                f"`ringrift-node voters add {node}`"
            )
        elif hired_for and now.cluster_id not in ("", hired_for):
            self._departure.fall(
                "cluster_changed",
                f"the voters are of cluster {now.cluster_id} now, the jobs here are of {hired_for}; "
                "start the node again if that is meant",
                EXIT_AGAIN,
            )

    async def keep_parent(self) -> None:
        """Leave when the process that started this node is gone; return at once when none is named."""
        # The parent's pid is told to us: one that died while we were still importing would not be noticed.
        while parent := self._config.exit_with_parent:
            if os.getppid() != parent:
                self._departure.begin(ShutdownOrder("parent_gone", stop_jobs=True))
                return
            await asyncio.sleep(PULSE_S)
