"""The hands of a node: its agent, its gateway to hosts without one, and the files that both work on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import httpx

from executors import host
from executors.agent import Agent
from executors.blobs import Blobs
from executors.gateway import Gateway
from executors.notice import Notice
from executors.objectstore import ObjectStore
from executors.options import Options
from ringrift_cluster import __version__
from ringrift_cluster.feed.follower import FeedReplica
from ringrift_cluster.port import ReplicaPort
from ringrift_cluster.raft.engine import RaftReplica
from ringrift_cluster.settings import NodeConfig
from ringrift_cluster.vitals import Executor
from statemachine.machine import SUPPORTED_FEATURE_LEVEL
from statemachine.values import Beat

#: a voter with so many cores keeps one of them for itself
SPARE_CORES = 4


class Hands:
    """They exist from the start; their node runs them."""

    def __init__(
        self,
        config: NodeConfig,
        replica: RaftReplica | FeedReplica,
        record: Callable[[Beat], Awaitable[int]],
        http: httpx.AsyncClient,
    ) -> None:
        """`record` takes the heartbeats of this node's peers and answers when they were applied."""
        self._config = config
        self._replica = replica
        self._record = record
        self._http = http
        self._options = _options(config, votes=isinstance(replica, RaftReplica))
        self.blobs = Blobs(config.data_dir / "artifacts", quota_bytes=config.store_bytes)
        self.executor = Executor(replica, self._hire)
        self.gateway = Gateway(
            ReplicaPort(replica, record),
            node=config.node_id,
            address=config.url,
            data_dir=config.data_dir,
            blobs=self.blobs,
            http=http,
            options=self._options,
            keys=config.ssh,
            cluster_id=lambda: self.executor.cluster_id,
        )

    def _hire(self, cluster_id: str) -> Agent:
        config, options, bucket = self._config, self._options, self._config.object_store
        return Agent(
            ReplicaPort(self._replica, self._record),
            peer=config.node_id,
            address=config.url,
            role="voter" if isinstance(self._replica, RaftReplica) else "follower",
            data_dir=config.data_dir,
            cluster_id=cluster_id,
            blobs=self.blobs,
            http=self._http,
            vault=ObjectStore(bucket, cluster_id) if bucket is not None else None,
            options=replace(options, labels=(*options.labels, bucket.name)) if bucket is not None else options,
        )


def _options(config: NodeConfig, *, votes: bool) -> Options:
    # Its operator says how many cores jobs may not use; else it is one for the log of a voter with some to spare.
    spared = int(votes and host.usable_cores() >= SPARE_CORES)
    return Options(
        cpu_slots=config.cpu_slots,
        max_processes=config.max_processes,
        starts_per_s=config.starts_per_s,
        reserve_cpus=config.reserve_cpus if config.reserve_cpus is not None else spared,
        notice=Notice(config.notice_file, config.notice_command, config.notice_url),
        notice_every_s=config.notice_every_s,
        disk_floor=host.DiskFloor(config.disk_floor_percent, int(config.disk_floor_gib * host.GIB)),
        labels=config.labels,
        transfer_bytes_per_s=config.transfer_bytes_per_s,
        release=__version__,
        feature_level=SUPPORTED_FEATURE_LEVEL,
        progress_every_s=config.progress_every_s,
    )
