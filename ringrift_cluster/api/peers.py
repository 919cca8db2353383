"""The machines of the cluster, and their signs of life."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from ringrift_cluster.api import examples
from ringrift_cluster.api.endpoint import Call, Routes
from ringrift_cluster.api.problems import Problem
from ringrift_cluster.api.views import Cursor, View, look, scan
from statemachine.commands import RecordHeartbeats
from statemachine.errors import Code
from statemachine.rows import Job, Peer, PeerStatus
from statemachine.state import State
from statemachine.values import Beat, Scope

route = Routes("peers", "Who is in the cluster, heard when, offering what.")


class PeerFilter(Cursor, frozen=True, kw_only=True):
    status: Annotated[str, Meta(max_length=16, description="alive, suspect or dead.")] = ""


class PeerList(Struct, frozen=True):
    peers: list[Peer]
    alive: int
    total: int
    next: str


@route(
    "GET",
    "/peers",
    "All known nodes",
    scope=Scope.READ,
    answer=PeerList([examples.PEER], 1, 1, ""),
    errors=(Code.INVALID,),
)
async def listing(call: Call, query: PeerFilter) -> PeerList:
    if query.status and query.status not in set(PeerStatus):
        raise Problem(Code.INVALID, f"no status is called {query.status!r}; they are {', '.join(PeerStatus)}")

    def ask(state: State) -> PeerList:
        rows, after = scan(state.peers, query, lambda row: query.status in ("", row.status))
        alive = state.index.peers_by_status[PeerStatus.ALIVE]
        return PeerList(sorted(rows, key=lambda row: row.peer), alive, len(state.peers), after)

    return await look(call, ask, query)


class PeerView(Struct, frozen=True):
    """A node and the jobs it holds."""

    peer: Peer
    jobs: list[Job]


@route(
    "GET",
    "/peers/{peer_id:any}",
    "One node and its jobs",
    scope=Scope.READ,
    answer=PeerView(examples.PEER, [examples.JOB]),
    errors=(Code.NOT_FOUND,),
)
async def show(call: Call, peer_id: str, query: View) -> PeerView:
    def ask(state: State) -> PeerView:
        row = state.peers.get(peer_id)
        if row is None:
            raise Problem(Code.NOT_FOUND, f"no peer {peer_id!r} is known; a dead one is forgotten after its retention")
        return PeerView(row, [state.jobs[name] for name in state.index.live_jobs_of(peer_id)])

    return await look(call, ask, query)


class Taken(Struct, frozen=True):
    """The heartbeat was applied at this index; the leases it renews count from when it was sent."""

    peer: str
    index: int


@route(
    "POST",
    "/heartbeat",
    "A node's sign of life",
    scope=Scope.NODE,
    example=examples.BEAT,
    answer=Taken("gpu-1", 1204),
    errors=(Code.NOT_FOUND, Code.STALE_INCARNATION, "no_leader", "busy", "outcome_unknown"),
)
async def heartbeat(call: Call, body: Beat) -> Taken:
    """JSON, or msgpack with `Content-Type: application/msgpack`. Answered once it was applied.

    `not_found` asks the node to join again; `stale_incarnation` tells it that a newer process has replaced it.
    """
    if (locks := call.services.locks) is not None:
        locks.cleared(call.caller, RecordHeartbeats((body,)))
    index = await call.services.heartbeats.record(body)
    call.index = index
    return Taken(body.peer, index)
