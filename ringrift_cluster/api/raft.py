"""Who leads, and where this node stands in the log."""

from __future__ import annotations

from msgspec import Struct

from ringrift_cluster.api.endpoint import Call, Routes
from ringrift_cluster.replica import ReplicaStatus
from statemachine.values import Scope

route = Routes("raft", "The log: who leads, what is committed, what is applied here.")

EXAMPLE_STATUS = ReplicaStatus(
    node_id="a",
    cluster_id="demo",
    role="leader",
    leader_id="a",
    term=4,
    commit=1204,
    applied=1204,
    chain="00" * 32,
    ready=True,
    voters=("a", "b", "c"),
    voters_heard=("a", "b", "c"),
    contact_age_ms=0,
    clock_ms=61_000,
)


class Leader(Struct, frozen=True):
    leader_id: str | None
    address: str | None
    term: int
    node_id: str
    is_leader: bool


async def leader(call: Call) -> Leader:
    """As this node knows it now; null when it knows none."""
    status = call.services.replica.status()
    return Leader(
        status.leader_id, call.services.leader_address(), status.term, status.node_id, status.role == "leader"
    )


EXAMPLE_LEADER = Leader("a", "http://10.0.0.1:8770", 4, "a", True)
route("GET", "/election/leader", "Who leads", scope=Scope.READ, answer=EXAMPLE_LEADER)(leader)
route("GET", "/election/status", "Another name for `/election/leader`", scope=Scope.READ, answer=EXAMPLE_LEADER)(leader)


@route("GET", "/raft/state", "Where this replica stands", scope=Scope.READ, answer=EXAMPLE_STATUS)
async def state(call: Call) -> ReplicaStatus:
    """The last published values; costs nothing and waits for nobody."""
    return call.services.replica.status()


class RaftStatus(Struct, frozen=True):
    """`cluster_health` is healthy (all voters), partial (a quorum) or unavailable, as this node sees it."""

    node_id: str
    raft_enabled: bool
    raft_initialized: bool
    consensus_mode: str
    is_leader: bool
    leader_id: str | None
    leader_address: str | None
    term: int
    commit: int
    applied: int
    voters: tuple[str, ...]
    voters_heard: tuple[str, ...]
    cluster_health: str
    timestamp: float


def health(status: ReplicaStatus) -> str:
    """How much of the cluster this node can see: healthy, partial or unavailable."""
    if status.leader_id is None or status.halted:
        return "unavailable"
    heard = set(status.voters_heard)
    if status.node_id in status.voters:
        heard.add(status.node_id)
    elif status.role == "follower":
        # A follower hears one voter; that a leader is known there means a quorum.
        return "healthy" if status.ready else "partial"
    if len(heard) >= len(status.voters):
        return "healthy"
    return "partial" if len(heard) > len(status.voters) // 2 else "unavailable"


@route(
    "GET",
    "/raft/status",
    "Consensus at a glance",
    scope=Scope.READ,
    answer=RaftStatus(
        "a",
        True,
        True,
        "raft",
        True,
        "a",
        "http://10.0.0.1:8770",
        4,
        1204,
        1204,
        ("a", "b", "c"),
        ("b",),
        "partial",
        1.7e9,
    ),
)
async def status(call: Call) -> RaftStatus:
    now = call.services.replica.status()
    return RaftStatus(
        node_id=now.node_id,
        raft_enabled=True,
        raft_initialized=now.ready,
        consensus_mode="raft",
        is_leader=now.role == "leader",
        leader_id=now.leader_id,
        leader_address=call.services.leader_address(),
        term=now.term,
        commit=now.commit,
        applied=now.applied,
        voters=now.voters,
        voters_heard=now.voters_heard,
        cluster_health=health(now),
        timestamp=call.services.wall_ms() / 1000,
    )
