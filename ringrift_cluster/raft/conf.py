"""The figures of a voter, and the one place where a SyncObjConf is built."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pysyncobj import SyncObjConf

MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Timing:
    """Raft's times in seconds. Wide areas want 1.5 and 3.0 for the election timeout."""

    heartbeat_s: float = 0.1
    election_min_s: float = 0.5
    election_max_s: float = 1.0
    #: after the leader's connection broke, an election is tried within this range
    hint_min_s: float = 0.05
    hint_max_s: float = 0.25
    #: a proposal waits this long for a leader to appear before it is refused
    leader_wait_s: float = 3.0
    #: an idle leader moves the cluster clock this often
    clock_s: float = 1.0
    #: a fresh read wants contact with the leader within this time
    fresh_s: float = 2.0
    #: a barrier read gives up after this time
    barrier_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of queues, entries and what is kept."""

    #: proposals waiting for their entry, and their bytes; beyond it callers are told to come back
    queue: int = 8192
    queue_bytes: int = 32 * MEBIBYTE
    commands_per_entry: int = 512
    #: entries proposed and not yet committed, their commands and bytes
    in_flight: int = 256
    in_flight_commands: int = 4096
    in_flight_bytes: int = 16 * MEBIBYTE
    #: a snapshot is taken after so many applied entries or journal bytes
    snapshot_entries: int = 10_000
    snapshot_bytes: int = 64 * MEBIBYTE
    #: entries kept behind the snapshot, so that a voter that was away rarely needs one
    tail_entries: int = 5_000
    tail_bytes: int = 32 * MEBIBYTE
    #: while a voter fetches a snapshot the entries after it are kept, as long as all of them have no more bytes
    fetched_tail_bytes: int = 256 * MEBIBYTE
    #: applied entries kept for followers
    window_entries: int = 50_000
    window_bytes: int = 64 * MEBIBYTE
    #: one part of a snapshot on the wire
    part_bytes: int = 256 * 1024
    #: outbound bytes a peer may leave unread before its connection is closed
    outbound_bytes: int = 16 * MEBIBYTE
    #: free space below which this voter takes no more commands and hands leadership over
    disk_floor_bytes: int = 64 * MEBIBYTE

    @classmethod
    def for_snapshots(cls, every_entries: int) -> Limits:
        """The usual bounds with a snapshot after so many entries, and half as many kept behind it."""
        return cls(snapshot_entries=every_entries, tail_entries=every_entries // 2)


@dataclass(frozen=True, slots=True)
class VoterConfig:
    """Who this voter is and where it lives.

    `voters` maps the node id of every voter that the cluster begins with to its raft address `host:port`, this
    one included, and `urls` to where its HTTP is; once the log says who votes they mean nothing any more, and both
    are empty for a node that joins (`bind` is then needed). `elsewhere` is where voters are looked for that do not
    answer at the raft address in the log: they may have moved. `secret` is the cluster's shared secret of the
    challenge-response between voters.
    """

    node_id: str
    voters: Mapping[str, str]
    data_dir: Path
    urls: Mapping[str, str] = field(default_factory=dict)
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    #: address to listen on; None means the one in `voters`
    bind: str | None = None
    secret: bytes | None = None
    #: the present contexts of mutual TLS between voters, on the side that was dialled and on the one that dials
    server_tls: Callable[[], ssl.SSLContext] | None = None
    client_tls: Callable[[], ssl.SSLContext] | None = None
    #: links without TLS are made and taken too
    clear_too: bool = False
    timing: Timing = field(default_factory=Timing)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.voters and self.node_id not in self.voters:
            raise ValueError(f"{self.node_id} is not among the voters {', '.join(sorted(self.voters))}")
        if not self.voters and self.bind is None:
            raise ValueError(f"{self.node_id} joins a cluster and needs an address to listen on")


def sync_obj_settings(timing: Timing, limits: Limits, journal: Any) -> dict[str, Any]:
    """The library's settings by name. It ignores unknown names silently; a test checks each."""
    return {
        "autoTick": False,
        "commandsQueueSize": limits.in_flight,
        "raftMinTimeout": timing.election_min_s,
        "raftMaxTimeout": timing.election_max_s,
        "appendEntriesPeriod": timing.heartbeat_s,
        "connectionTimeout": 60.0,
        "leaderFallbackTimeout": 2 * timing.election_max_s,
        "appendEntriesUseBatch": False,
        "appendEntriesBatchSizeBytes": MEBIBYTE,
        "logCompactionMinEntries": 10**9,
        "logCompactionMinTime": 10**9,
        "commandsWaitLeader": False,
        "dynamicMembershipChange": False,
        "journalFile": journal,
        "useFork": False,
    }


def sync_obj_conf(timing: Timing, limits: Limits, journal: Any) -> SyncObjConf:
    """Build the library's configuration."""
    return SyncObjConf(**sync_obj_settings(timing, limits, journal))
