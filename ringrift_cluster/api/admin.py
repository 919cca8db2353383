"""What operators do: leave, hand over, drain, pause, look for what is stuck."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from ringrift_cluster.api import examples, probes, raft
from ringrift_cluster.api.endpoint import Call, Reply, Routes, reply
from ringrift_cluster.api.passing import PassedOn, elsewhere, order_node
from ringrift_cluster.api.problems import Problem
from ringrift_cluster.api.services import AgentStatus, LoopStatus, ShutdownOrder
from ringrift_cluster.api.views import View, look
from ringrift_cluster.api.writes import Outcome, Requested, carry_out, carry_out_once, noted
from statemachine.cluster import SUPPORTED_FEATURE_LEVEL
from statemachine.commands import DrainPeer, PauseCluster, RaiseFeatureLevel, RemovePeer
from statemachine.deadlines import lease_end_ms
from statemachine.errors import Code
from statemachine.rows import PeerStatus
from statemachine.state import State
from statemachine.values import Id, Scope, Short

route = Routes("admin", "For operators.")

route(
    "GET",
    "/admin/health",
    "This node's parts, one by one",
    scope=Scope.READ,
    answer=probes.AdminHealth(
        probes.EXAMPLE,
        probes.Readiness(True, ""),
        raft.EXAMPLE_STATUS,
        AgentStatus(True, 3),
        {"placement": LoopStatus(enabled=True, running=True)},
        0,
    ),
)(probes.admin_health)


class Shutdown(Struct, frozen=True, forbid_unknown_fields=True):
    reason: Short = ""
    #: this node when left out
    node_id: Id | None = None
    #: stop this node's jobs with their grace instead of leaving them for adoption
    stop_jobs: bool = False


class ShuttingDown(Struct, frozen=True):
    node_id: str
    detail: str


@route(
    "POST",
    "/admin/shutdown",
    "Stop a node",
    scope=Scope.ADMIN,
    example=Shutdown("kernel update"),
    answer=ShuttingDown("a", "this node hands leadership over and leaves; its jobs go on and are adopted"),
    statuses=(202,),
    errors=(Code.NOT_FOUND, "unreachable"),
)
async def shutdown(call: Call, body: Shutdown) -> Reply | PassedOn | ShuttingDown:
    """Leadership is handed over first. Jobs are left running for adoption unless `stop_jobs` is set."""
    if elsewhere(call, body.node_id):
        return await order_node(call, body.node_id, "/admin/shutdown", body)
    node = call.services.replica.status().node_id
    await noted(call, "shutdown", node)
    call.services.shutdown(ShutdownOrder(body.reason or "asked for over HTTP", body.stop_jobs))
    jobs = "its jobs are stopped with their grace" if body.stop_jobs else "its jobs go on and are adopted"
    return reply(ShuttingDown(node, f"this node hands leadership over and leaves; {jobs}"), status=202)


class Restart(Struct, frozen=True, forbid_unknown_fields=True):
    reason: Short = ""
    #: this node when left out
    node_id: Id | None = None


@route(
    "POST",
    "/admin/restart",
    "Start a node's process anew",
    scope=Scope.ADMIN,
    example=Restart("new release"),
    answer=ShuttingDown("a", "this node leaves and begins anew; its jobs go on and are adopted"),
    statuses=(202,),
    errors=(Code.NOT_FOUND, "unreachable"),
)
async def restart(call: Call, body: Restart) -> Reply | PassedOn | ShuttingDown:
    """It leaves in order and becomes a new process in its own place, with the release that is installed then."""
    if elsewhere(call, body.node_id):
        return await order_node(call, body.node_id, "/admin/restart", body)
    node = call.services.replica.status().node_id
    await noted(call, "restart", node)
    call.services.shutdown(ShutdownOrder(body.reason or "asked for over HTTP", stop_jobs=False, restart=True))
    return reply(ShuttingDown(node, "this node leaves and begins anew; its jobs go on and are adopted"), status=202)


class Transfer(Struct, frozen=True, forbid_unknown_fields=True):
    #: a voter; the most up-to-date one when left out
    target: Id | None = None


class Transferred(Struct, frozen=True):
    leader_id: str


@route(
    "POST",
    "/admin/election/start",
    "Hand leadership over",
    scope=Scope.ADMIN,
    example=Transfer("b"),
    answer=Transferred("b"),
    errors=("no_leader", Code.NOT_FOUND),
)
async def transfer(call: Call, body: Transfer) -> Transferred:
    """A leadership transfer: the leader stops proposing, brings a voter up to date and lets it take over."""
    voters = call.services.replica.status().voters
    if body.target is not None and body.target not in voters:
        raise Problem(Code.NOT_FOUND, f"{body.target} is not a voter; {', '.join(voters)} are")
    await noted(call, "leadership", body.target or "")
    return Transferred(await call.services.replica.transfer_leadership(body.target))


class Drain(Requested, frozen=True, kw_only=True):
    #: this node when left out
    node_id: Id | None = None
    reason: Short = ""
    #: jobs that still run then are stopped; 0 lets them finish
    deadline_seconds: Annotated[float, Meta(ge=0, le=10**7)] = 0


@route(
    "POST",
    "/admin/drain",
    "Take a node out of placement",
    scope=Scope.ADMIN,
    example=Drain(node_id="gpu-1", reason="new disk", deadline_seconds=600.0),
    answer=Outcome(True, 1204),
    errors=(Code.NOT_FOUND,),
)
async def drain(call: Call, body: Drain) -> Outcome:
    """It gets no new work; what runs goes on, until the deadline when there is one."""
    peer = body.node_id or call.services.replica.status().node_id
    deadline_ms = round(body.deadline_seconds * 1000)
    command = DrainPeer(peer=peer, drain=True, reason=body.reason, deadline_ms=deadline_ms)
    return await carry_out_once(call, command, body.request_id)


class Undrain(Requested, frozen=True, kw_only=True):
    #: this node when left out
    node_id: Id | None = None


@route(
    "POST",
    "/admin/undrain",
    "Put a node back into placement",
    scope=Scope.ADMIN,
    example=Undrain(node_id="gpu-1"),
    answer=Outcome(False, 1204),
    errors=(Code.NOT_FOUND,),
)
async def undrain(call: Call, body: Undrain) -> Outcome:
    peer = body.node_id or call.services.replica.status().node_id
    return await carry_out_once(call, DrainPeer(peer=peer, drain=False), body.request_id)


class Removal(Requested, frozen=True, kw_only=True):
    node_id: Id
    reason: Short = ""


@route(
    "POST",
    "/admin/peers/remove",
    "Forget a node",
    scope=Scope.ADMIN,
    example=Removal(node_id="gpu-1", reason="sold"),
    answer=Outcome(True, 1204),
    errors=(Code.NOT_FOUND, Code.ILLEGAL_TRANSITION),
)
async def remove(call: Call, body: Removal) -> Outcome:
    """For nodes that are dead, or drained and silent; jobs they still hold are lost at once."""
    return await carry_out_once(call, RemovePeer(peer=body.node_id, reason=body.reason), body.request_id)


class Pause(Struct, frozen=True, forbid_unknown_fields=True):
    paused: bool
    reason: Short = ""


@route(
    "POST",
    "/admin/pause",
    "Pause or resume the cluster",
    scope=Scope.ADMIN,
    example=Pause(True, "power work"),
    answer=Outcome(True, 1204),
)
async def pause(call: Call, body: Pause) -> Outcome:
    """While it is paused nothing is placed or claimed; reports and reads go on."""
    return await carry_out(call, PauseCluster(paused=body.paused, reason=body.reason))


class Raise(Struct, frozen=True, forbid_unknown_fields=True):
    #: one above the present level
    level: Annotated[int, Meta(ge=1, le=1000)]


@route(
    "POST",
    "/admin/feature-level",
    "Let newer commands be used",
    scope=Scope.ADMIN,
    example=Raise(2),
    answer=Outcome(2, 1204),
    errors=(Code.INVALID, Code.ILLEGAL_TRANSITION),
)
async def raise_level(call: Call, body: Raise) -> Outcome:
    """One step at a time, and never down again: nodes of an older release turn read-only at once.

    A level that this node's own release does not support is refused, since it would turn every node read-only.
    """
    present = await look(call, lambda state: state.cluster.feature_level)
    if body.level != present + 1:
        text = f"the feature level is {present}, so the next one is {present + 1}, not {body.level}"
        raise Problem(Code.INVALID, text)
    if body.level > SUPPORTED_FEATURE_LEVEL:
        text = f"this node's release supports level {SUPPORTED_FEATURE_LEVEL}; install one of level {body.level} first"
        raise Problem(Code.INVALID, text)
    return await carry_out(call, RaiseFeatureLevel(level=body.level))


class StaleJob(Struct, frozen=True):
    """A job whose lease runs out because its node is silent. Negative: it is over and waits for the clock."""

    job: str
    work: str
    peer: str
    peer_status: str
    lease_ends_in_ms: int


class StaleJobs(Struct, frozen=True):
    found: list[StaleJob]
    detail: str


LEASES_DO_IT = (
    "nothing was reset: a job whose node falls silent is lost when its lease ends, and its item returns to the "
    "queue by itself; to end one sooner, POST /work/stop or remove its dead node with POST /admin/peers/remove"
)


@route(
    "POST",
    "/admin/jobs/reset-stale",
    "What is stuck",
    scope=Scope.READ,
    answer=StaleJobs([StaleJob(examples.JOB.job, examples.JOB.work, "gpu-1", "suspect", 120_000)], LEASES_DO_IT),
)
async def reset_stale(call: Call, query: View) -> StaleJobs:
    """Leases reset stale jobs, so this changes nothing and reports what they will do, and when."""

    def ask(state: State) -> list[StaleJob]:
        found = []
        for peer, held in state.index.live_jobs.items():
            row = state.peers.get(peer)
            status = str(row.status) if row else "unknown"
            for name in held:
                job = state.jobs[name]
                left = lease_end_ms(job, state.peers) - state.now_ms
                silent = status not in (PeerStatus.ALIVE, "unknown")
                if silent or left <= 0:
                    found.append(StaleJob(name, job.work, peer, status, left))
                if len(found) >= 1000:
                    return found
        return found

    return StaleJobs(await look(call, ask, query), LEASES_DO_IT)
