"""Reaching nodes that nobody can dial: their channels to the voters, and what is asked through them."""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated, Literal

import httpx
import msgspec
from msgspec import Meta, Struct
from starlette.responses import StreamingResponse

from ringrift_cluster.api.connections import TRICKLES
from ringrift_cluster.api.endpoint import Call, Reply, Routes, problem_reply
from ringrift_cluster.api.passing import (
    FRAMES,
    Forward,
    PassedOn,
    Request,
    at_hand,
    in_frames,
    pass_on,
    passed_on,
    voter_addresses,
    within,
)
from ringrift_cluster.api.problems import Problem
from ringrift_cluster.api.services import OwnChannel
from ringrift_cluster.api.streams import admit
from ringrift_cluster.relay.frames import BrokenFrame
from ringrift_cluster.relay.switchboard import Switchboard, TooMany, Unanswered
from statemachine.errors import UNDECODABLE, Code
from statemachine.values import Id, Scope

log = logging.getLogger("ringrift.relay")

route = Routes("relay", "Channels of nodes that nobody can dial, and requests through them.")

STATUS_S = 3.0
#: a look at a node is over by then, however it goes on
LOOK_S = 30.0
#: with it an answer's connection ends: its sender may still have much to say
CLOSE = (b"connection", b"close")


def _board(call: Call) -> Switchboard:
    board = call.services.switchboard
    if board is None:
        raise Problem(Code.NOT_FOUND, "this node does not vote; channels are held by voters")
    return board


class Holder(Struct, frozen=True, forbid_unknown_fields=True):
    #: the node that opens it
    node_id: Id


@route(
    "GET",
    "/relay/channel",
    "A node's channel to this voter",
    scope=Scope.NODE,
    produces={"application/octet-stream": "Frames with one request each, for as long as the node holds it."},
    errors=(Code.NOT_FOUND, "busy", "forbidden"),
    standing=True,
)
async def channel(call: Call, query: Holder) -> StreamingResponse:
    """Opened by every follower. Requests for it come down as frames; it answers each with POST /relay/answers/ID."""
    board = _board(call)
    if call.caller.peer and call.caller.peer != query.node_id:
        raise Problem("forbidden", f"token {call.caller.name!r} opens a channel for {call.caller.peer!r} alone")
    try:
        line = board.enter(query.node_id)
    except TooMany as error:
        raise Problem("busy", str(error)) from None

    async def leave() -> None:
        board.leave(line)

    return PassedOn(board.frames(line), leave, "application/octet-stream")


class Answered(Struct, frozen=True):
    #: whether it was read to its end
    wanted: bool


@route(
    "POST",
    "/relay/answers/{answer_id}",
    "An answer to what came down a channel",
    scope=Scope.NODE,
    answer=Answered(True),
    consumes="application/octet-stream",
    errors=(Code.NOT_FOUND, Code.INVALID),
)
async def answers(call: Call, answer_id: str) -> Reply | Answered:
    """Frames: the head, then the body in pieces, with beats while there is nothing. It ends when nobody reads on."""
    board = _board(call)
    call.scope[TRICKLES] = True
    locks, needs = call.services.locks, Scope.NODE

    def still() -> bool:
        try:
            return locks is None or locks.admit(call, needs, "POST /relay/answers/{answer_id}") is not None
        except Problem:
            return False

    try:
        wanted = await board.take(answer_id, call.caller.peer, call.receive, still)
    except (Unanswered, BrokenFrame) as error:
        made = problem_reply(Problem(Code.INVALID, str(error)), call.services, call.scope["path"])
        return Reply(made.body, made.status, made.media_type, (*made.headers, CLOSE))
    if not wanted:
        made = problem_reply(
            Problem(Code.NOT_FOUND, f"nobody waits for the answer {answer_id!r}"), call.services, call.scope["path"]
        )
        return Reply(made.body, made.status, made.media_type, (*made.headers, CLOSE))
    return Reply(msgspec.json.encode(Answered(True)), headers=(CLOSE,))


@route(
    "POST",
    "/relay/forward",
    "Ask another node",
    scope=Scope.READ,
    example=Forward("a", "/health"),
    produces={
        "application/json": "The node's answer, with its status.",
        "text/plain": "Where it answers with text.",
        FRAMES: "The same in frames, for `framed`.",
    },
    errors=(Code.NOT_FOUND, "unreachable", "no_channel", "busy", "outcome_unknown", "too_many_streams", "forbidden"),
    stream=True,
)
async def forward(call: Call, body: Forward) -> PassedOn:
    """Passed on: logs of jobs, /health, /ready, /status, /metrics and /admin/health; with an admin token also
    /admin/restart, /admin/shutdown and /workload/try. Nothing else, and only to nodes of the cluster."""
    admit(call.services)
    if not body.framed:
        return passed_on(await pass_on(call, body.node_id, body.request))
    found = await at_hand(call, body.node_id, body.request)
    if found is None:
        raise Problem("no_channel", f"{body.node_id!r} holds no channel to this voter")
    return in_frames(found)


class ChannelRow(Struct, frozen=True):
    """One channel, at the voter that has it."""

    node_id: str
    voter: str
    open_for_s: float
    #: requests sent down it, and those under way
    asked: int
    answering: int


class RelayStatus(Struct, frozen=True):
    channels: list[ChannelRow]
    #: voters that did not say which they have
    not_asked: list[str]
    #: the channel of the node that answers, when it does not vote
    own: OwnChannel | None = None


class Whom(Struct, frozen=True, forbid_unknown_fields=True):
    local: Annotated[bool, Meta(description="Only the channels that are held by this node.")] = False


@route(
    "GET",
    "/relay/status",
    "Which node has its channel where",
    scope=Scope.READ,
    answer=RelayStatus([ChannelRow("gpu-1", "a", 3600.0, 12, 1)], []),
)
async def status(call: Call, query: Whom) -> RelayStatus:
    """The channels of all voters, each as its voter sees it."""
    services = call.services
    own = services.replica.status().node_id
    rows = _rows(services.switchboard, own)
    others = {} if query.local else {v: url for v, url in voter_addresses(call).items() if v != own}
    found = await asyncio.gather(*(_asked(call, url) for url in others.values()))
    for held in found:
        rows += held or []
    silent = [voter for voter, held in zip(others, found, strict=True) if held is None]
    rows.sort(key=lambda row: (row.node_id, row.open_for_s))
    return RelayStatus(rows, silent, services.channel() if services.channel is not None else None)


def _rows(board: Switchboard | None, voter: str) -> list[ChannelRow]:
    if board is None:
        return []
    return [
        ChannelRow(line.node, voter, round(board.age_s(line), 1), line.asked, board.open[line.node])
        for line in board.lines.values()
    ]


async def _asked(call: Call, url: str) -> list[ChannelRow] | None:
    if call.services.http is None:
        return None
    given = call.header(b"authorization")
    headers = {"authorization": given} if given else {}
    try:
        answer = await call.services.http.get(
            f"{url}/relay/status", params={"local": "true"}, headers=headers, timeout=STATUS_S
        )
        found = msgspec.json.decode(answer.content, type=RelayStatus) if answer.status_code == httpx.codes.OK else None
    except (httpx.HTTPError, *UNDECODABLE) as error:
        log.info("event=voter_not_asked url=%s reason=%s", url, error)
        return None
    return found.channels if found is not None else None


def _looking_at(what: Literal["health", "ready", "status", "metrics"], summary: str) -> None:
    @route(
        "GET",
        f"/relay/{{node_id:any}}/{what}",
        summary,
        scope=Scope.READ,
        produces={"text/plain" if what == "metrics" else "application/json": f"As GET /{what} of that node."},
        statuses=(200, 503),
        errors=(Code.NOT_FOUND, "unreachable"),
    )
    async def look(call: Call, node_id: str) -> PassedOn:
        """Any node answers for any other, for a monitor that can only ask by path."""
        asked = Request("GET", f"/{what}")
        try:
            async with asyncio.timeout(LOOK_S):
                found = await pass_on(call, node_id, asked)
        except TimeoutError:
            raise Problem("unreachable", f"{node_id!r} did not answer within {LOOK_S:g} s") from None
        return passed_on(within(found, LOOK_S))


_looking_at("health", "Is that node's process alive?")
_looking_at("ready", "May that node get traffic?")
_looking_at("status", "The cluster as that node sees it")
_looking_at("metrics", "That node's numbers for Prometheus")
