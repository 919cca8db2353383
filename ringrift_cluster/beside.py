"""The log of a learner: it lies beside a follower until a leader has brought it up to date and made it a voter's."""

from __future__ import annotations

import asyncio

from ringrift_cluster.api.services import Learner
from ringrift_cluster.feed.follower import FeedReplica
from ringrift_cluster.members import is_loopback
from ringrift_cluster.pulse import PULSE_S
from ringrift_cluster.raft.engine import RaftReplica
from ringrift_cluster.raft.errors import RaftError
from ringrift_cluster.replica import ChangeRefused
from ringrift_cluster.seat import raft_address, voter_config
from ringrift_cluster.settings import NodeConfig
from ringrift_cluster.tls import Tls

#: a follower that the cluster counts as a voter, with a log that it has not, ends after this long
MISSED_S = 10.0


class LogBeside:
    """What a follower has of a log, and whether it may have one."""

    def __init__(self, config: NodeConfig, log: RaftReplica | None = None) -> None:
        """`log` is the running log of a learner that has become a voter."""
        self._config = config
        self._starting = asyncio.Lock()
        self._counted = 0
        #: one that joins; or the one that a voter takes over
        self.log = log

    @property
    def votes(self) -> bool:
        """Whether the cluster has made it a voter's."""
        return self.log is not None and self.log.is_voter

    async def start(self, tls: Tls | None) -> RaftReplica:
        """Begin the log, or go on with the one on disk, also after it stopped by itself. Raises ChangeRefused."""
        async with self._starting:
            if self.log is None or self.log.status().halted is not None:
                try:
                    self.log = await asyncio.to_thread(RaftReplica.start, voter_config(self._config, tls, joins=True))
                except RaftError as error:
                    raise ChangeRefused(f"{self._config.node_id} cannot begin a log: {error}") from error
            return self.log

    def take(self) -> RaftReplica | None:
        """The log, for the voter that its node is now."""
        log, self.log = self.log, None
        return log

    async def learn(self, follower: FeedReplica, tls: Tls | None, *, joined: bool) -> Learner:
        """Have a log here that a leader may bring up to date; what names it. `joined`: a join token let the node in.

        Raises ChangeRefused.
        """
        config = self._config
        now = follower.status()
        if not now.ready:
            raise ChangeRefused(
                f"{config.node_id} has not caught up on the feed (it is at entry {now.applied} of {now.commit})"
            )
        if joined:
            raise ChangeRefused(
                f"{config.node_id} came with a join token, which makes no voters; start it with --auth-token-file"
            )
        said = tls.facts if tls is not None else None
        if tls is not None and (said is None or not said.voter):
            raise ChangeRefused(
                f"the certificate of {config.node_id} is not a voter's; give it one "
                f"(`ringrift-node certs issue {config.node_id} --voter`)"
            )
        if tls is None and config.cluster_secret is None and not is_loopback(config.bind):
            raise ChangeRefused(
                f"{config.node_id} has no cluster secret to know the voters by; start it with --cluster-secret-file"
            )
        log = await self.start(tls)
        return Learner(raft_address(config), config.url, log.log_id)

    def is_missed(self, follower: FeedReplica) -> bool:
        """Whether the voters wait for a log of this node that it has lost; asked once a beat.

        The follower's state may be from before a removal, so it must say so for a while.
        """
        state = follower.live_state()
        own = None
        if state is not None and follower.status().ready:
            own = next((v for v in state.voters.voters if v.node == self._config.node_id), None)
        beside = self.log.log_id if self.log is not None else ""
        self._counted = self._counted + 1 if own is not None and own.log_id != beside else 0
        return self._counted * PULSE_S >= MISSED_S
