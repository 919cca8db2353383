"""Questions of supervisors: is the process alive, may it get traffic."""

from __future__ import annotations

import httpx
from msgspec import Struct

from ringrift_cluster.api.endpoint import Call, Reply, Routes, reply
from ringrift_cluster.api.problems import Problem
from ringrift_cluster.api.services import AgentStatus, LoopStatus, Services
from ringrift_cluster.replica import ReplicaStatus
from statemachine.errors import Code
from statemachine.values import Scope

PROBE_TIMEOUT_S = 2.0

route = Routes("probes", "Liveness and readiness.")


class Health(Struct, frozen=True):
    """`status` is ok or failing; `problems` says why."""

    status: str
    healthy: bool
    node_id: str
    role: str
    leader_id: str | None
    uptime_seconds: float
    #: seconds since each essential loop last turned
    loops: dict[str, float]
    problems: list[str]
    #: wall time in seconds
    timestamp: float


def liveness(services: Services) -> Health:
    """Whether this process works. A missing leader or quorum is no fault of it."""
    now = services.replica.status()
    ages = {name: round(age, 3) for name, age in services.pulse().items()}
    stall = services.limits.stall_s
    wrong = [f"the {name} loop has not turned for {age:.1f} s" for name, age in ages.items() if age > stall]
    if now.halted is not None:
        wrong.append(f"the replica has stopped: {now.halted}")
    return Health(
        status="failing" if wrong else "ok",
        healthy=not wrong,
        node_id=now.node_id,
        role=now.role,
        leader_id=now.leader_id,
        uptime_seconds=round(services.monotonic_s() - services.started_s, 3),
        loops=ages,
        problems=wrong,
        timestamp=services.wall_ms() / 1000,
    )


EXAMPLE = Health("ok", True, "a", "leader", "a", 3600.0, {"consensus": 0.02}, [], 1.7e9)


@route("GET", "/health", "Is the process alive?", scope=None, answer=EXAMPLE, statuses=(200, 503))
async def health(call: Call) -> Reply | Health:
    """200 or 503. Never depends on a quorum, so a supervisor does not restart nodes for want of a leader."""
    found = liveness(call.services)
    return reply(found, status=200 if found.healthy else 503)


class Probed(Struct, frozen=True):
    """Whether a peer answers this node at the address that the cluster has of it."""

    peer: str
    answers: bool


async def answers(http: httpx.AsyncClient, peer: str, address: str) -> bool:
    """Whether the peer itself answers there; many nodes call themselves 127.0.0.1."""
    try:
        answer = await http.get(f"{address}/health", timeout=PROBE_TIMEOUT_S)
        return answer.is_success and answer.json().get("node_id") == peer
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, AttributeError):
        return False


@route(
    "GET",
    "/probes/{peer_id:any}",
    "Does another node answer this one?",
    scope=Scope.NODE,
    answer=Probed("gpu-1", True),
    errors=(Code.NOT_FOUND,),
)
async def probe(call: Call, peer_id: str) -> Probed:
    """The leader asks so before it takes a silent node for dead. Only a node's own address is dialled."""
    seen = await call.services.replica.read(lambda state: state.peers.get(peer_id))
    if seen.value is None or not seen.value.address:
        raise Problem(Code.NOT_FOUND, f"no address of a peer {peer_id!r} is known here")
    http = call.services.http
    return Probed(peer_id, http is not None and await answers(http, peer_id, seen.value.address))


class Readiness(Struct, frozen=True):
    ready: bool
    reason: str


def readiness(now: ReplicaStatus, closing: bool) -> Readiness:
    """Whether requests should be sent here."""
    if closing:
        return Readiness(False, "this node is leaving")
    if now.halted is not None:
        return Readiness(False, f"the replica has stopped: {now.halted}")
    if now.leader_id is None:
        return Readiness(False, "no leader is known; at least a majority of the voters must be up")
    if not now.ready:
        return Readiness(False, f"the log is still being caught up with: {now.applied} of {now.commit} applied")
    return Readiness(True, now.read_only or "")


@route("GET", "/ready", "May it get traffic?", scope=None, answer=Readiness(True, ""), statuses=(200, 503))
async def ready(call: Call) -> Reply | Readiness:
    """200, or 503 with the reason."""
    found = readiness(call.services.replica.status(), call.services.closing())
    return reply(found, status=200 if found.ready else 503)


class AdminHealth(Struct, frozen=True):
    health: Health
    readiness: Readiness
    replica: ReplicaStatus
    agent: AgentStatus
    loops: dict[str, LoopStatus]
    open_streams: int


async def admin_health(call: Call) -> AdminHealth:
    """Everything this node knows about its own parts."""
    services = call.services
    now = services.replica.status()
    return AdminHealth(
        health=liveness(services),
        readiness=readiness(now, services.closing()),
        replica=now,
        agent=services.agent(),
        loops=dict(services.loops()),
        open_streams=services.streams,
    )
