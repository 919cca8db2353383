"""What the HTTP face is given by the node that composes it, and nothing more.

A test composes the whole face from plain objects: the face never learns which kind of replica stands behind
it, nor how heartbeats travel, and of the executor it knows the files on disk and a status.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Protocol

import httpx
from msgspec import Struct

from executors.blobs import Blobs
from executors.gate import Gate
from executors.logs import Logs
from executors.storage import StorageStatus
from executors.telemetry import Telemetry
from executors.uploads import Uploads
from ringrift_cluster.api.locks import Locks
from ringrift_cluster.api.meter import Meter
from ringrift_cluster.members import urls_of
from ringrift_cluster.relay.inside import Asgi
from ringrift_cluster.relay.switchboard import Switchboard
from ringrift_cluster.replica import Replica
from statemachine.elo import Ranking, Table
from statemachine.values import Beat


class Heartbeats(Protocol):
    """Where a sign of life goes: into the next batch on a voter, to a voter elsewhere."""

    async def record(self, beat: Beat) -> int:
        """Return the index at which the heartbeat was applied.

        Raises ReplicaError, or statemachine.errors.Refused when the law did not take it.
        """
        ...


class AgentStatus(Struct, frozen=True):
    """What this node's executor says about itself."""

    healthy: bool
    jobs_active: int = 0
    #: wall time of its last pass, in ms
    last_pass_at_ms: int = 0
    #: the applied index it last acted on
    acted_index: int = 0
    #: empty when it takes work
    not_ready: str = ""


class LoopStatus(Struct, frozen=True):
    """One background loop of this node: a controller, the feed, the agent."""

    enabled: bool
    running: bool
    #: wall time in seconds, 0 when it never ran
    last_run: float = 0.0
    #: per cent of the last runs
    success_rate: float = 100.0
    last_error: str = ""


@dataclass(frozen=True, slots=True)
class ApiLimits:
    """Bounds on what one request, or all of them together, may take."""

    body_bytes: int = 8 * 1024 * 1024
    #: bodies that are being received in parts, together
    bodies_bytes: int = 128 * 1024 * 1024
    upload_bytes: int = 4 * 1024 * 1024 * 1024
    header_bytes: int = 32 * 1024
    items: int = 1000
    wait_s: float = 60.0
    stream_s: float = 3600.0
    streams: int = 64
    #: blocking reads that wait for their index at a time
    waits: int = 1024
    #: a loop that has not turned for this long is not alive
    stall_s: float = 10.0


class Learner(Struct, frozen=True):
    """A log that may become a voter's: where it is reached, and its name."""

    raft: str
    url: str
    log_id: str


@dataclass(frozen=True, slots=True)
class ShutdownOrder:
    """How this node should leave."""

    reason: str
    stop_jobs: bool
    #: the process begins anew once it has left
    restart: bool = False


class OwnChannel(Struct, frozen=True):
    """The channel of a node that does not vote. `voter` is empty while there is none."""

    voter: str = ""
    open_for_s: float = 0.0
    answering: int = 0
    opened: int = 0
    last_error: str = ""


@dataclass(slots=True)
class Services:
    """Everything a route may use."""

    replica: Replica
    heartbeats: Heartbeats
    blobs: Blobs
    logs: Logs
    agent: Callable[[], AgentStatus]
    #: begins to stop the process and returns at once
    shutdown: Callable[[ShutdownOrder], None]
    #: begins a log here that a leader may make a voter's; None: this node cannot
    learn: Callable[[], Awaitable[Learner]] | None = None
    #: node id to "http://host:port" of the voters that the cluster began with
    voters: Mapping[str, str] = field(default_factory=dict)
    #: for requests passed on to other nodes
    http: httpx.AsyncClient | None = None
    feed: Asgi | None = None
    #: where followers hold their channels; None: this node does not vote
    switchboard: Switchboard | None = None
    #: this node's own channel; None: it votes, and is dialled
    channel: Callable[[], OwnChannel] | None = None
    #: where templates are tried outside the queue; None: not here
    trials: Path | None = None
    #: seconds since each essential loop of the process last turned (consensus, http, agent)
    pulse: Callable[[], Mapping[str, float]] = dict
    loops: Callable[[], Mapping[str, LoopStatus]] = dict
    #: this node's GPUs in full, as of the last look
    gpus: Callable[[], Sequence[Telemetry]] = tuple
    #: what this node does about its files; None before its agent has begun
    storage: Callable[[], StorageStatus | None] = lambda: None
    #: begins to get a file from an object store; false when this node has no access to the one that has it
    restore: Callable[[str], bool] = lambda digest: False
    #: further numbers for /metrics: name without prefix, ending in _total when it only grows
    counters: Callable[[], Mapping[str, float]] = dict
    #: true once the process is leaving, so that streams end
    closing: Callable[[], bool] = bool
    monotonic_s: Callable[[], float] = time.monotonic
    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    new_id: Callable[[], str] = lambda: uuid.uuid4().hex
    #: the configured token, which is good for everything
    token: str | None = None
    #: what is open to the network because of --insecure, in a sentence
    exposure: str = ""
    #: what is wrong on this machine and wants its operator, in sentences
    complaints: Callable[[], tuple[str, ...]] = tuple
    #: ask for tokens although none is configured here: the node joined a cluster that does
    guarded: bool = False
    version: str = "0.1.0"
    started_s: float = field(default_factory=time.monotonic)
    limits: ApiLimits = ApiLimits()
    #: None: everything is open to everybody
    locks: Locks | None = field(default=None, init=False)
    #: what is sent and received of the store
    gate: Gate = field(default_factory=Gate, init=False)
    uploads: Uploads = field(init=False)
    #: the application that answers here, once it is made
    face: Asgi | None = field(default=None, init=False)
    #: the voter through which a node was reached last
    routes: dict[str, str] = field(default_factory=dict, init=False)
    #: tries a template, or did last
    trial: Thread | None = field(default=None, init=False)
    #: bytes of bodies that are being received in parts
    gathered_bytes: int = field(default=0, init=False)
    #: streams that are open now
    streams: int = field(default=0, init=False)
    #: blocking reads that wait now
    waits: int = field(default=0, init=False)
    #: one a route, filled by the application
    meters: list[Meter] = field(default_factory=list, init=False)
    #: the last fit of each config, by the sums it was made from
    ratings: dict[str, tuple[Table, list[Ranking]]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.uploads = Uploads(self.blobs)
        if self.token or self.guarded:
            self.locks = Locks(
                self.token,
                self.replica.live_state,
                self.monotonic_s,
                lambda: self.replica.status().contact_age_ms,
                lambda: self.replica.status().ready,
            )

    def leader_address(self) -> str | None:
        """The HTTP address of the present leader, where it is known."""
        leader = self.replica.status().leader_id
        return self.voter_address(leader) if leader else None

    def voter_address(self, node: str) -> str | None:
        """The HTTP address of a voter: as the log says it, else as this node was told."""
        return urls_of(self.replica.live_state()).get(node) or self.voters.get(node)
