"""The queue: adding, claiming, ending and looking at work items."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from ringrift_cluster.api import examples
from ringrift_cluster.api.endpoint import Call, Routes
from ringrift_cluster.api.items import NewItems, NewWork, decode_items, to_command
from ringrift_cluster.api.problems import Problem, of_rejection
from ringrift_cluster.api.views import Cursor, Page, View, csv, look, scan
from ringrift_cluster.api.writes import (
    REQUEST_ID,
    Outcome,
    Requested,
    carry_out,
    carry_out_once,
    propose,
    sealed,
)
from statemachine import queries
from statemachine.commands import AddWork, CancelWork, ClaimWork, RetryWork
from statemachine.errors import Code, Rejected
from statemachine.queries import Why
from statemachine.rows import LIVE_WORK, Job, Work, WorkStatus
from statemachine.state import State
from statemachine.values import Id, Scope, Short

route = Routes("work", "The queue of work items: what should be done, in which order, and why it is not done yet.")


class Added(Struct, frozen=True, omit_defaults=True):
    """`status` is added or rejected; a rejected item says its code and why."""

    status: str
    work_id: str
    work_type: str
    priority: int
    config: str = ""
    #: it was there already, with the same content
    repeat: bool = False
    code: str = ""
    detail: str = ""


class AddedItems(Struct, frozen=True):
    """One result for each item, in their order."""

    status: str
    count: int
    rejected: int
    results: list[Added]
    index: int


@route(
    "POST",
    "/work/add",
    "Queue one item or many",
    scope=Scope.SUBMIT,
    example=NewWork(
        work_type="selfplay",
        work_id="sp-1",
        board_type="hex8",
        num_players=2,
        template="selfplay",
        params={"games": 50},
    ),
    answer=Added("added", "sp-1", "selfplay", 50, "hex8_2p"),
    errors=(Code.INVALID, Code.CONFLICT, Code.LIMIT),
    decode=decode_items,
)
async def add(call: Call, body: NewWork | list[NewWork] | NewItems) -> Added | AddedItems:
    """The body is one item, a list of up to 1000, or an object with `items`.

    One item is answered with its result, or a problem when it is refused; many are answered with one result
    each. A made-up id follows the header `Request-Id` when there is one, so a repeated request adds nothing.
    """
    services = call.services
    items = [body] if isinstance(body, NewWork) else body
    assert isinstance(items, list)  # decode_items unwraps the object
    if not 0 < len(items) <= services.limits.items:
        raise Problem(Code.INVALID, f"{len(items)} items were sent; a call takes 1 to {services.limits.items}")
    at_ms = services.wall_ms()
    request = call.header(REQUEST_ID)
    commands = [
        to_command(item, item.work_id or f"{item.work_type}-{_made_up(call, request, n)}", at_ms)
        for n, item in enumerate(items)
    ]
    results = await propose(call, [sealed(call, command) for command in commands])
    if isinstance(body, NewWork):
        (first,) = results
        if isinstance(first, Rejected):
            raise of_rejection(first)
        return added(commands[0], first.value)
    made = [
        rejected(command, result) if isinstance(result, Rejected) else added(command, result.value)
        for command, result in zip(commands, results, strict=True)
    ]
    refused = sum(1 for m in made if m.code)
    return AddedItems("added" if not refused else "partial", len(made) - refused, refused, made, call.index or 0)


def _made_up(call: Call, request: str, number: int) -> str:
    return f"{request}.{number}" if request else call.services.new_id()


def added(command: AddWork, value: dict[str, object]) -> Added:
    return Added("added", command.work, command.work_type, command.priority, command.config, bool(value.get("repeat")))


def rejected(command: AddWork, result: Rejected) -> Added:
    return Added(
        "rejected",
        command.work,
        command.work_type,
        command.priority,
        command.config,
        code=result.code,
        detail=result.detail,
    )


class Claim(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a worker asks for. A repeat of the same `claim_id` is answered with the same items."""

    node_id: Id
    claim_id: Id | None = None
    work_types: tuple[Id, ...] = ()
    #: another name for `work_types`
    capabilities: tuple[Id, ...] = ()
    configs: tuple[Id, ...] = ()
    max_items: Annotated[int, Meta(ge=1, le=256)] = 1


class Grant(Struct, frozen=True):
    """An item bound to the worker, and the fence that every report about it must carry."""

    job: str
    fence: int
    work: str
    work_type: str
    config: str
    params: dict[str, str]
    #: name to digest
    inputs: dict[str, str]
    attempt: int
    lease_ms: int
    timeout_ms: int


class Claimed(Struct, frozen=True):
    """`status` is claimed or no_work_available; `work` is the first of `items`."""

    status: str
    claim_id: str
    work: Grant | None
    items: list[Grant]
    index: int


EXAMPLE_GRANT = Grant("sp-1.1", 12, "sp-1", "selfplay", "hex8_2p", {"games": "50"}, {}, 1, 300_000, 7_200_000)


@route(
    "POST",
    "/work/claim",
    "Take the best pending items",
    scope=Scope.NODE,
    example=Claim(node_id="worker-1", claim_id="c-1", work_types=("selfplay",), max_items=2),
    answer=Claimed("claimed", "c-1", EXAMPLE_GRANT, [EXAMPLE_GRANT], 1204),
    errors=(Code.INELIGIBLE, Code.PAUSED),
)
async def claim(call: Call, body: Claim) -> Claimed:
    """For workers that run items themselves; they renew what they hold with `POST /work/renew`."""
    claim_id = body.claim_id or call.header(REQUEST_ID) or f"claim-{call.services.new_id()}"
    command = ClaimWork(
        claim=claim_id,
        peer=body.node_id,
        work_types=body.work_types or body.capabilities,
        configs=body.configs,
        limit=body.max_items,
    )
    (result,) = await propose(call, [sealed(call, command)])
    if isinstance(result, Rejected):
        raise of_rejection(result)
    items = msgspec.convert(result.value, list[Grant])
    first = items[0] if items else None
    return Claimed("claimed" if items else "no_work_available", claim_id, first, items, call.index or 0)


class Cancel(Struct, frozen=True, forbid_unknown_fields=True):
    work_id: Id
    reason: Short = ""


class Retry(Requested, frozen=True, kw_only=True):
    work_id: Id
    reason: Short = ""


@route(
    "POST",
    "/work/cancel",
    "End an item",
    scope=Scope.SUBMIT,
    example=Cancel("sp-1", "superseded"),
    answer=Outcome("cancelled", 1204),
    errors=(Code.NOT_FOUND, Code.ILLEGAL_TRANSITION),
)
async def cancel(call: Call, body: Cancel) -> Outcome:
    """A running attempt is told to stop, and nothing it still reports counts."""
    return await carry_out(call, CancelWork(work=body.work_id, reason=body.reason))


@route(
    "POST",
    "/work/retry",
    "Give an ended item its attempts back",
    scope=Scope.SUBMIT,
    example=Retry(work_id="sp-1", reason="the disk was replaced", request_id="r-1"),
    answer=Outcome("pending", 1204),
    errors=(Code.NOT_FOUND, Code.ILLEGAL_TRANSITION, Code.CONFLICT),
)
async def retry(call: Call, body: Retry) -> Outcome:
    """For failed, cancelled and expired items."""
    return await carry_out_once(call, RetryWork(work=body.work_id, reason=body.reason), body.request_id)


class PendingPage(Page, frozen=True, kw_only=True):
    work_type: Annotated[str, Meta(max_length=128, description="Only items of this type.")] = ""


class PendingItems(Struct, frozen=True):
    items: list[Work]
    #: pending items altogether
    total: int


@route("GET", "/work/pending", "What waits, best first", scope=Scope.READ, answer=PendingItems([examples.WORK], 1))
async def pending(call: Call, query: PendingPage) -> PendingItems:
    def ask(state: State) -> PendingItems:
        total = state.index.work_by_status[WorkStatus.PENDING]
        return PendingItems(queries.pending(state, query.work_type, query.limit), total)

    return await look(call, ask, query)


class QueueStatus(Struct, frozen=True):
    """Counters, the first pending items and the items that are claimed or running."""

    total_items: int
    by_status: dict[str, int]
    by_type: dict[str, dict[str, int]]
    pending: list[Work]
    running: list[Work]
    paused: bool
    is_leader: bool
    leader_id: str | None


def live_work(state: State, limit: int) -> list[Work]:
    """Items whose job is not over, up to `limit`."""
    found: list[Work] = []
    for held in state.index.live_jobs.values():
        for job in held:
            row = state.work.get(state.jobs[job].work)
            if row is not None and row.status in LIVE_WORK and row.job == job:
                found.append(row)
            if len(found) >= limit:
                return found
    return found


EXAMPLE_QUEUE = QueueStatus(
    12,
    {"pending": 3, "running": 1, "completed": 8},
    {"selfplay": {"pending": 3}},
    [],
    [examples.WORK],
    False,
    True,
    "a",
)


async def queue_status(call: Call, query: View) -> QueueStatus:
    """Counters are kept, not computed; ten pending and up to a hundred live items are shown."""
    replica = call.services.replica.status()

    def ask(state: State) -> QueueStatus:
        view = queries.overview(state)
        return QueueStatus(
            total_items=sum(view.work_by_status.values()),
            by_status=view.work_by_status,
            by_type=view.work_by_type,
            pending=queries.pending(state, limit=10),
            running=live_work(state, 100),
            paused=view.cluster.paused,
            is_leader=replica.role == "leader",
            leader_id=replica.leader_id,
        )

    return await look(call, ask, query)


route("GET", "/work/status", "The queue at a glance", scope=Scope.READ, answer=EXAMPLE_QUEUE)(queue_status)
route("GET", "/work_queue_status", "Another name for `/work/status`", scope=Scope.READ, answer=EXAMPLE_QUEUE)(
    queue_status
)


class WorkFilter(Cursor, frozen=True, kw_only=True):
    status: Annotated[str, Meta(max_length=128, description="One or more statuses, separated by commas.")] = ""
    work_type: Annotated[str, Meta(max_length=128, description="Only items of this type.")] = ""
    config: Annotated[str, Meta(max_length=64, description="Only items of this game config.")] = ""


class WorkItems(Struct, frozen=True):
    """`next` is the cursor of the following page, empty at the end; a page may be short before it."""

    items: list[Work]
    next: str


@route(
    "GET",
    "/work",
    "Items, newest first",
    scope=Scope.READ,
    answer=WorkItems([examples.WORK], ""),
    errors=(Code.INVALID, Code.EXPIRED),
)
async def listing(call: Call, query: WorkFilter) -> WorkItems:
    unknown = set(csv(query.status)) - set(WorkStatus)
    if unknown:
        raise Problem(Code.INVALID, f"no status is called {sorted(unknown)[0]!r}; they are {', '.join(WorkStatus)}")
    statuses = frozenset(csv(query.status)) or frozenset(WorkStatus)

    def keep(row: Work) -> bool:
        spec = row.spec
        return row.status in statuses and query.work_type in ("", spec.work_type) and query.config in ("", spec.config)

    def ask(state: State) -> WorkItems:
        if statuses <= LIVE_WORK and not query.after:
            return WorkItems([row for row in live_work(state, query.limit) if keep(row)], "")
        return WorkItems(*scan(state.work, query, keep))

    return await look(call, ask, query)


#: attempts of an item that are shown with it
SHOWN_JOBS = 20


class WorkView(Struct, frozen=True):
    """An item, why it is where it is, its present or last job, and its last attempts, newest first."""

    work: Work
    why: Why
    job: Job | None
    jobs: list[Job]


@route(
    "GET",
    "/work/{work_id:any}",
    "One item, and why it is where it is",
    scope=Scope.READ,
    answer=WorkView(
        examples.WORK,
        Why("running", "running as job sp-1.1 on gpu-1, which is running"),
        examples.JOB,
        [examples.JOB],
    ),
    errors=(Code.NOT_FOUND,),
)
async def show(call: Call, work_id: str, query: View) -> WorkView:
    def ask(state: State) -> WorkView:
        row = state.work.get(work_id)
        why = queries.why(state, work_id)
        if row is None or why is None:
            raise Problem(Code.NOT_FOUND, f"no work item {work_id!r} is known; it may be past its retention")
        numbers = range(row.grants, max(row.grants - SHOWN_JOBS, 0), -1)
        jobs = [job for n in numbers if (job := state.jobs.get(f"{work_id}.{n}")) is not None]
        return WorkView(row, why, state.jobs.get(row.job), jobs)

    return await look(call, ask, query)
