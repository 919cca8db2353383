"""Attempts: what runs where, and what its log says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated
from urllib.parse import quote

import httpx
from msgspec import Meta, Struct
from starlette.responses import StreamingResponse

from executors.logs import Logs, NoLogs, Stream
from ringrift_cluster.api import examples
from ringrift_cluster.api.endpoint import Call, Routes
from ringrift_cluster.api.problems import Problem
from ringrift_cluster.api.streams import admit
from ringrift_cluster.api.views import Cursor, View, look, scan
from statemachine.errors import Code
from statemachine.rows import LIVE_JOB, Job, Work
from statemachine.state import State
from statemachine.values import Scope

route = Routes("jobs", "Attempts of work items: one node, one fence, one end.")

#: set on a request that another node passed on, so that it is not passed on again
RELAYED = b"ringrift-relayed"


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
    """Any node answers: it passes the request on to the node that runs (or ran) the job."""
    admit(call.services)
    try:
        await asyncio.to_thread(call.services.logs.folder, job_id)
        chunks = _kept(call.services.logs, job_id, query)
    except NoLogs:
        chunks = await _relayed(call, job_id, query)
    return StreamingResponse(chunks, media_type="text/plain; charset=utf-8")


async def _kept(logs: Logs, job_id: str, query: LogQuery) -> AsyncIterator[bytes]:
    try:
        if query.follow:
            async for chunk in logs.follow(job_id, query.stream):
                yield chunk
        else:
            text = await asyncio.to_thread(logs.tail, job_id, query.stream, query.tail)
            yield text.encode()
    except NoLogs:
        # Its retention ended between the look and the read.
        return


async def _relayed(call: Call, job_id: str, query: LogQuery) -> AsyncIterator[bytes]:
    peer, address = await look(call, lambda state: _runner(state, job_id))
    if call.header(RELAYED) or peer == call.services.replica.status().node_id:
        raise Problem(Code.NOT_FOUND, f"node {peer!r} keeps no log of job {job_id!r} (any more)")
    client = call.services.http
    if client is None or not address:
        raise Problem("unreachable", f"job {job_id!r} ran on {peer!r}, which this node cannot ask; ask it directly")
    # Asked with this node's own token: the caller's is nothing for another node to see.
    request = client.build_request(
        "GET",
        f"{address}/jobs/{quote(job_id, safe='')}/log",
        params={"tail": query.tail, "follow": "true" if query.follow else "false", "stream": query.stream},
        headers={RELAYED.decode(): "1"},
        timeout=httpx.Timeout(5.0, read=None if query.follow else 30.0),
    )
    try:
        response = await client.send(request, stream=True)
    except httpx.HTTPError as error:
        raise Problem("unreachable", f"{peer!r} at {address} does not answer: {type(error).__name__}") from None
    if response.status_code != 200:
        await response.aclose()
        raise Problem(Code.NOT_FOUND, f"node {peer!r} keeps no log of job {job_id!r} ({response.status_code})")
    return _passed_on(response)


async def _passed_on(response: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.aiter_bytes():
            yield chunk
    except httpx.HTTPError:
        yield b"[the node that has this log stopped answering; ask again]\n"
    finally:
        await response.aclose()


def _runner(state: State, job_id: str) -> tuple[str, str]:
    row = _known(state, job_id)
    peer = state.peers.get(row.peer)
    return row.peer, peer.address if peer else ""


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


def _known(state: State, job_id: str) -> Job:
    row = state.jobs.get(job_id)
    if row is None:
        raise Problem(Code.NOT_FOUND, f"no job {job_id!r} is known; it may be past its retention")
    return row
