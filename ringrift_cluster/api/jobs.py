"""Attempts: what runs where, and what its log says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Annotated
from urllib.parse import urlencode

from msgspec import Meta, Struct
from starlette.responses import StreamingResponse

from executors.logs import Logs, NoLogs, Stream
from ringrift_cluster.api import examples
from ringrift_cluster.api.endpoint import BrokenOff, Call, Routes
from ringrift_cluster.api.passing import NOTHING_SENT, PassedOn, Request, Through, pass_on, passed_on
from ringrift_cluster.api.problems import Problem
from ringrift_cluster.api.streams import admit
from ringrift_cluster.api.views import Cursor, View, look, scan
from ringrift_cluster.relay.inside import VOUCHED
from statemachine.errors import Code
from statemachine.rows import LIVE_JOB, Job, Work
from statemachine.state import State
from statemachine.values import Scope

route = Routes("jobs", "Attempts of work items: one node, one fence, one end.")

#: a followed log whose node is gone is taken up again for so long
RESUME_S, AGAIN_S = 60.0, 0.5
#: refusals that pass when the node has found another voter
COMES_BACK = NOTHING_SENT | {"unreachable", "busy"}


class JobFilter(Cursor, frozen=True, kw_only=True):
    ended: Annotated[bool, Meta(description="Also page through jobs that are over.")] = False
    peer: Annotated[str, Meta(max_length=128, description="Only jobs of this node.")] = ""
    work_type: Annotated[str, Meta(max_length=128, description="Only jobs of this type.")] = ""
    config: Annotated[str, Meta(max_length=64, description="Only jobs of this game config.")] = ""


class JobList(Struct, frozen=True):
    """`active_jobs` are live; `ended_jobs` is filled when asked for, newest first."""

    active_jobs: list[Job]
    active_total: int
    ended_jobs: list[Job]
    next: str


@route("GET", "/jobs", "What runs", scope=Scope.READ, answer=JobList([examples.JOB], 1, [], ""))
async def listing(call: Call, query: JobFilter) -> JobList:
    def keep(row: Job) -> bool:
        return (
            query.peer in ("", row.peer) and query.work_type in ("", row.work_type) and query.config in ("", row.config)
        )

    def ask(state: State) -> JobList:
        held = state.index.live_jobs
        names = held.get(query.peer, {}) if query.peer else (name for jobs in held.values() for name in jobs)
        active: list[Job] = []
        for name in () if query.after else names:
            row = state.jobs[name]
            if keep(row):
                active.append(row)
            if len(active) >= query.limit:
                break
        total = state.index.live_total
        if not query.ended:
            return JobList(active, total, [], "")
        ended, after = scan(state.jobs, query, lambda row: row.actual not in LIVE_JOB and keep(row))
        return JobList(active, total, ended, after)

    return await look(call, ask, query)


class LogQuery(Struct, frozen=True, forbid_unknown_fields=True):
    tail: Annotated[int, Meta(ge=0, le=100_000, description="How many of the last lines.")] = 200
    follow: Annotated[bool, Meta(description="The whole file, then what is added to it until the attempt is over.")] = (
        False
    )
    offset: Annotated[int, Meta(ge=0, le=2**53, description="With `follow`: bytes that were read already.")] = 0
    stream: Annotated[Stream, Meta(description="What the program printed, or its keeper's own lines.")] = "stdout"


@route(
    "GET",
    "/jobs/{job_id:any}/log",
    "A job's log",
    scope=Scope.READ,
    produces={"text/plain": "Lines of the log, oldest first."},
    errors=(Code.NOT_FOUND, "unreachable", "too_many_streams"),
    stream=True,
)
async def log(call: Call, job_id: str, query: LogQuery) -> StreamingResponse:
    """Any node answers: it asks the node that runs (or ran) the job, which may be one that nobody can dial."""
    admit(call.services)
    try:
        await asyncio.to_thread(call.services.logs.folder, job_id)
    except NoLogs:
        return await _elsewhere(call, job_id, query)
    chunks = _kept(call.services.logs, job_id, query)
    return StreamingResponse(chunks, media_type="text/plain; charset=utf-8")


async def _kept(logs: Logs, job_id: str, query: LogQuery) -> AsyncIterator[bytes]:
    try:
        if query.follow:
            async for chunk in logs.follow(job_id, query.stream, offset=query.offset):
                yield chunk
        else:
            text = await asyncio.to_thread(logs.tail, job_id, query.stream, query.tail)
            yield text.encode()
    except NoLogs:
        # Its retention ended between the look and the read.
        return


async def _elsewhere(call: Call, job_id: str, query: LogQuery) -> PassedOn:
    """The log from the node that ran the job; one that is followed goes on when its node finds another voter."""
    peer = await look(call, lambda state: _keeper(state, _known(state, job_id).peer))
    if VOUCHED in call.scope or peer == call.services.replica.status().node_id:
        raise Problem(Code.NOT_FOUND, f"node {peer!r} keeps no log of job {job_id!r} (any more)")

    async def ask(offset: int) -> Through:
        asked = {"stream": query.stream, "tail": query.tail, "follow": "true" if query.follow else "false"}
        return await pass_on(call, peer, Request("GET", f"/jobs/{job_id}/log", urlencode({**asked, "offset": offset})))

    present = await ask(query.offset)
    if not query.follow or present.head.status != 200:
        return passed_on(present)

    async def pieces() -> AsyncGenerator[bytes, None]:
        nonlocal present
        had = query.offset
        while True:
            try:
                async with aclosing(present.pieces) as parts:
                    async for part in parts:
                        had += len(part)
                        yield part
                return
            except BrokenOff as broken:
                await present.leave()
                present = await _again(call, ask, had, broken)

    async def leave() -> None:
        await present.leave()

    return PassedOn(pieces(), leave, present.head.media_type)


async def _again(call: Call, ask: Callable[[int], Awaitable[Through]], had: int, broken: BrokenOff) -> Through:
    """The rest of a log that broke off. Raises BrokenOff when its node does not come back."""
    until_s = call.services.monotonic_s() + RESUME_S
    while call.services.monotonic_s() < until_s and not call.services.closing():
        try:
            found = await ask(had)
        except Problem as problem:
            broken = BrokenOff(problem.detail)
            if problem.code not in COMES_BACK:
                break
        else:
            if found.head.status == 200:
                return found
            await found.leave()
            broken = BrokenOff(f"its node answers {found.head.status}")
        await asyncio.sleep(AGAIN_S)
    raise broken


class JobView(Struct, frozen=True):
    job: Job
    work: Work | None


@route(
    "GET",
    "/jobs/{job_id:any}",
    "One attempt",
    scope=Scope.READ,
    answer=JobView(examples.JOB, examples.WORK),
    errors=(Code.NOT_FOUND,),
)
async def show(call: Call, job_id: str, query: View) -> JobView:
    def ask(state: State) -> JobView:
        row = _known(state, job_id)
        return JobView(row, state.work.get(row.work))

    return await look(call, ask, query)


def _keeper(state: State, peer: str) -> str:
    """The node that has the logs of a peer's jobs: a host without an agent has none, its gateway has them."""
    host = state.host(peer)
    return peer if host is None else host.gateway


def _known(state: State, job_id: str) -> Job:
    row = state.jobs.get(job_id)
    if row is None:
        raise Problem(Code.NOT_FOUND, f"no job {job_id!r} is known; it may be past its retention")
    return row
