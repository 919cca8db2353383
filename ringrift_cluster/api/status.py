"""The page that operators read first."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from ringrift_cluster.api.endpoint import Call, Routes
from ringrift_cluster.api.problems import TABLE, Problem, ProblemKind
from ringrift_cluster.api.services import LoopStatus, Services
from ringrift_cluster.api.views import View, look
from ringrift_cluster.replica import ReplicaStatus
from statemachine import queries
from statemachine.alarms import Alarm, alarms
from statemachine.errors import Code
from statemachine.queries import Overview, Why
from statemachine.rows import PeerStatus, Totals, WorkStatus
from statemachine.state import State
from statemachine.values import Scope

route = Routes("status", "What this node is, and what the cluster is doing.")


class Banner(Struct, frozen=True):
    service: str
    version: str
    node_id: str
    role: str
    leader_id: str | None
    documentation: str = "/openapi.json"


@route("GET", "/", "Who answers here", scope=Scope.READ, answer=Banner("ringrift-cluster", "0.1.0", "a", "leader", "a"))
async def banner(call: Call) -> Banner:
    now = call.services.replica.status()
    return Banner("ringrift-cluster", call.services.version, now.node_id, now.role, now.leader_id)


class Queue(Struct, frozen=True):
    total: int
    by_status: dict[str, int]
    #: open items by type and status
    by_type: dict[str, dict[str, int]]


class JobsHealth(Struct, frozen=True):
    healthy: bool
    jobs_active: int
    #: wall time in seconds
    last_pass: float
    not_ready: str = ""


class SyncHealth(Struct, frozen=True):
    healthy: bool
    artifacts: int
    #: wall time in seconds of this node's last look at its files
    last_sync: float
    last_error: str = ""


class SchedulerHealth(Struct, frozen=True):
    healthy: bool
    configs_weighted: int


class Managers(Struct, frozen=True):
    """Health of the parts that work beside the log, under the names operators know."""

    job_manager: JobsHealth
    sync_planner: SyncHealth
    selfplay_scheduler: SchedulerHealth


class Subscriptions(Struct, frozen=True):
    """Whether the views that act on the log are fed by it: the executor, the ratings, the controllers."""

    daemon_events: bool
    feedback_signals: bool
    manager_events: bool
    all_healthy: bool
    critical_failed: list[str]


class Status(Struct, frozen=True):
    """Everything here is a kept counter or a published value; a scan of a table is not among them."""

    node_id: str
    cluster_id: str
    version: str
    role: str
    is_leader: bool
    leader_id: str | None
    leader_address: str | None
    alive_peers: int
    total_peers: int
    known_peers: int
    uptime_seconds: float
    selfplay_jobs: int
    training_jobs: int
    jobs: dict[str, int]
    work_queue: Queue
    managers: Managers
    loops: dict[str, LoopStatus]
    event_subscription_status: Subscriptions
    voters: tuple[str, ...]
    voters_heard: tuple[str, ...]
    voter_quorum_ok: bool
    ready: bool
    term: int
    commit: int
    applied: int
    #: applied index of the view that the counters come from
    index: int
    #: running digest at `applied`; two nodes at one index show the same one
    digest: str
    #: the cluster clock, in milliseconds
    clock_ms: int
    #: entries committed but not applied here
    lag: int
    contact_age_ms: int
    feature_level: int
    paused: bool
    pause_reason: str
    halted: str | None
    read_only: str | None
    #: voters that were turned away, or excluded because their disk lost data, and why
    refused: Mapping[str, str]
    #: what is open to the network because of --insecure, in a sentence
    exposure: str
    #: what is wrong on this node's machine and wants its operator, in sentences
    complaints: tuple[str, ...]
    totals: dict[str, Totals]
    champions: dict[str, str]
    #: why nothing runs although items wait
    stalled: Why | None
    #: kinds of work that wait for minutes while none of them runs, and items that failed for good
    alarms: tuple[Alarm, ...]


#: the loop that makes selfplay work
SCHEDULER = "population"


def _healthy(loop: LoopStatus) -> bool:
    return not loop.enabled or not loop.last_error


def _subscriptions(services: Services, now: ReplicaStatus, loops: dict[str, LoopStatus]) -> Subscriptions:
    follows_log = now.halted is None and now.ready
    flags = {
        "daemon_events": services.agent().healthy,
        "feedback_signals": follows_log,
        "manager_events": follows_log and all(map(_healthy, loops.values())),
    }
    failed = [name for name, healthy in flags.items() if not healthy]
    return Subscriptions(**flags, all_healthy=not failed, critical_failed=failed)


def compose(services: Services, view: Overview, stalled: Why | None, worries: tuple[Alarm, ...], index: int) -> Status:
    """The page from a counted view and the published values of this node."""
    now = services.replica.status()
    loops = dict(services.loops())
    agent = services.agent()
    storage = services.storage()
    scheduler_healthy = SCHEDULER not in loops or _healthy(loops[SCHEDULER])
    return Status(
        node_id=now.node_id,
        cluster_id=now.cluster_id,
        version=services.version,
        role=now.role,
        is_leader=now.role == "leader",
        leader_id=now.leader_id,
        leader_address=services.leader_address(),
        alive_peers=view.peers_by_status.get(PeerStatus.ALIVE, 0),
        total_peers=view.peers_total,
        known_peers=view.peers_total,
        uptime_seconds=round(services.monotonic_s() - services.started_s, 3),
        selfplay_jobs=view.live_jobs_by_type.get("selfplay", 0),
        training_jobs=view.live_jobs_by_type.get("training", 0),
        jobs=view.live_jobs_by_type,
        work_queue=Queue(sum(view.work_by_status.values()), view.work_by_status, view.work_by_type),
        managers=Managers(
            JobsHealth(agent.healthy, agent.jobs_active, agent.last_pass_at_ms / 1000, agent.not_ready),
            SyncHealth(
                storage is None or not storage.last_error,
                view.artifacts,
                storage.listed_at_ms / 1000 if storage else 0.0,
                storage.last_error if storage else "",
            ),
            SchedulerHealth(scheduler_healthy, len(view.totals)),
        ),
        loops=loops,
        event_subscription_status=_subscriptions(services, now, loops),
        voters=now.voters,
        voters_heard=now.voters_heard,
        voter_quorum_ok=now.leader_id is not None and now.halted is None,
        ready=now.ready,
        term=now.term,
        commit=now.commit,
        applied=now.applied,
        index=index,
        digest=now.chain,
        clock_ms=view.cluster.clock_ms,
        lag=max(now.commit - now.applied, 0),
        contact_age_ms=now.contact_age_ms,
        feature_level=view.cluster.feature_level,
        paused=view.cluster.paused,
        pause_reason=view.cluster.pause_reason,
        halted=now.halted,
        read_only=now.read_only,
        refused=now.refused,
        exposure=services.exposure,
        complaints=services.complaints(),
        totals=view.totals,
        champions=view.champions,
        stalled=stalled,
        alarms=worries,
    )


async def page(call: Call, query: View) -> Status:
    """Answered from counters that are kept in step with every entry, whatever the size of the tables."""

    def ask(state: State) -> tuple[Overview, Why | None, tuple[Alarm, ...]]:
        return queries.overview(state), queries.stalled(state), alarms(state)

    view, stalled, worries = await look(call, ask, query)
    return compose(call.services, view, stalled, worries, call.index or 0)


EXAMPLE = Status(
    node_id="a",
    cluster_id="demo",
    version="0.1.0",
    role="leader",
    is_leader=True,
    leader_id="a",
    leader_address="http://10.0.0.1:8770",
    alive_peers=4,
    total_peers=5,
    known_peers=5,
    uptime_seconds=3600.0,
    selfplay_jobs=12,
    training_jobs=1,
    jobs={"selfplay": 12, "training": 1},
    work_queue=Queue(21, {"pending": 8, "running": 13}, {"selfplay": {"pending": 8, "running": 12}}),
    managers=Managers(JobsHealth(True, 3, 1.7e9), SyncHealth(True, 40, 1.7e9), SchedulerHealth(True, 12)),
    loops={"placement": LoopStatus(enabled=True, running=True, last_run=1.7e9)},
    event_subscription_status=Subscriptions(True, True, True, True, []),
    voters=("a", "b", "c"),
    voters_heard=("a", "b", "c"),
    voter_quorum_ok=True,
    ready=True,
    term=4,
    commit=1204,
    applied=1204,
    index=1204,
    digest="00" * 32,
    clock_ms=61_000,
    lag=0,
    contact_age_ms=0,
    feature_level=1,
    paused=False,
    pause_reason="",
    halted=None,
    read_only=None,
    refused={},
    exposure="",
    complaints=(),
    totals={"hex8_2p": Totals("hex8_2p", games=1_000)},
    champions={},
    stalled=None,
    alarms=(),
)
route("GET", "/status", "The whole cluster on one page", scope=Scope.READ, answer=EXAMPLE)(page)


class Progress(Struct, frozen=True):
    """Games, trainings and promotions of each config, and what is in the queue."""

    totals: dict[str, Totals]
    champions: dict[str, str]
    pending: int
    running: int
    clock_ms: int


@route(
    "GET",
    "/progress",
    "How far the improvement loop is",
    scope=Scope.READ,
    answer=Progress({"hex8_2p": Totals("hex8_2p", games=1_000)}, {}, 8, 13, 61_000),
)
async def progress(call: Call, query: View) -> Progress:
    def ask(state: State) -> Progress:
        view = queries.overview(state)
        counts = view.work_by_status
        return Progress(
            totals=view.totals,
            champions=view.champions,
            pending=counts.get(WorkStatus.PENDING, 0),
            running=counts.get(WorkStatus.RUNNING, 0),
            clock_ms=view.cluster.clock_ms,
        )

    return await look(call, ask, query)


class ProblemKinds(Struct, frozen=True):
    problems: list[ProblemKind]


def _kind(code: str) -> ProblemKind:
    kind = TABLE[code]
    return ProblemKind(str(code), kind.status, kind.title, kind.retry_after_s)


@route(
    "GET", "/problems", "Everything that can go wrong", scope=Scope.READ, answer=ProblemKinds([_kind(Code.STALE_FENCE)])
)
async def problem_kinds(call: Call) -> ProblemKinds:
    """The table from error code to status; `type` in a problem document points into it."""
    return ProblemKinds([_kind(code) for code in TABLE])


@route(
    "GET",
    "/problems/{code}",
    "One error code",
    scope=Scope.READ,
    answer=_kind(Code.STALE_FENCE),
    errors=(Code.NOT_FOUND,),
)
async def problem_kind(call: Call, code: str) -> ProblemKind:
    if code not in TABLE:
        raise Problem(Code.NOT_FOUND, f"no error code is called {code!r}; see /problems")
    return _kind(code)
