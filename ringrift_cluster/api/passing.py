"""Requests for another node: through its channel, which is here or at another voter, or to the voter that it is.

    any node  -- POST /relay/forward, framed -->  the voter that has the channel, or is the target  -->  the target

A caller's token goes to voters alone; the target is told by the voter whose request it is. What a target refuses is
said again by this node, in its own words: a client sends its token where a refusal says that the leader is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl

import httpx
import msgspec
from msgspec import Meta, Struct
from starlette.responses import StreamingResponse

from ringrift_cluster.api.endpoint import BrokenOff, Call
from ringrift_cluster.api.problems import TABLE, Problem
from ringrift_cluster.api.writes import noted
from ringrift_cluster.members import urls_of
from ringrift_cluster.problem import read_problem
from ringrift_cluster.relay.frames import (
    MAX_BODY_BYTES,
    MAX_QUERY_CHARS,
    Ask,
    BrokenFrame,
    Frames,
    Head,
    Vouched,
    framed,
    head_of,
    packed,
)
from ringrift_cluster.relay.inside import Broken, Inside
from ringrift_cluster.relay.passages import Passage, passage
from ringrift_cluster.relay.switchboard import NoChannel, TooMany, Unanswered
from statemachine.errors import UNDECODABLE, Code
from statemachine.tokens import GRANTS
from statemachine.values import Id, Scope

log = logging.getLogger("ringrift.relay")

FRAMES = "application/vnd.ringrift.frames"
FORWARD = "/relay/forward"
CONNECT_S = 2.0
#: a voter waits for the head of an answer itself, and says when there is none
HEAD_S = 15.0
#: a node whose channel is just moving is waited for
PATIENCE_S, PAUSE_S = 4.0, 0.3
#: a read of another node waits for its index at most so long; well below what its head is waited for
MOST_WAIT_S = 5.0
#: what is read of a refusal, and for how long
REFUSAL_BYTES, REFUSAL_S, DETAIL_CHARS = 64 * 1024, 5.0, 1000
#: refusals of a voter that has sent nothing on: another one may
NOTHING_SENT = frozenset({"no_channel", "not_ready", "too_many_streams", "too_many_waits", "stale", "halted"})
#: they say with a 503 what a monitor wants to read
PROBES = frozenset({"/health", "/ready"})


@dataclass(frozen=True, slots=True)
class Request:
    """What a node is asked. `path` is decoded, `query` as in a URL, `body` a JSON object or nothing."""

    method: Literal["GET", "POST"]
    path: str
    query: str = ""
    body: bytes = b""


class NothingSent(Problem):
    """A voter did not take the request, or does not answer a read: another may be asked, or the same again."""


@dataclass(frozen=True, slots=True)
class Through:
    """An answer on its way through this node. `pieces` raises BrokenOff; empty ones are signs of life.

    Whoever has it calls `leave`, at its end or before it.
    """

    head: Head
    pieces: AsyncGenerator[bytes, None]
    leave: Callable[[], Awaitable[None]]


class PassedOn(StreamingResponse):
    """The answer of another node as this one's. `leave` is awaited however it ends."""

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        leave: Callable[[], Awaitable[None]],
        media_type: str,
        status: int = 200,
    ) -> None:
        super().__init__(pieces, status, media_type=media_type)
        self._leave = leave

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._leave()


def passed_on(through: Through) -> PassedOn:
    return PassedOn(through.pieces, through.leave, through.head.media_type, through.head.status)


def within(through: Through, seconds: float) -> Through:
    """The same, broken off when it has not ended by then: signs of life alone keep nothing open."""
    clock = asyncio.get_running_loop().time
    until_s = clock() + seconds

    async def pieces() -> AsyncGenerator[bytes, None]:
        async with aclosing(through.pieces) as parts:
            while True:
                try:
                    async with asyncio.timeout_at(until_s):
                        piece = await anext(parts, None)
                except TimeoutError:
                    piece = b""
                if piece is None:
                    return
                if clock() >= until_s:
                    raise BrokenOff(f"it did not end within {seconds:g} s")
                yield piece

    return replace(through, pieces=pieces())


def in_frames(through: Through) -> PassedOn:
    """The same for a node that passes it on itself: it learns when the answer broke off or fell silent."""

    async def frames() -> AsyncGenerator[bytes, None]:
        yield packed(through.head)
        async with aclosing(through.pieces) as pieces:
            async for piece in pieces:
                yield framed(piece)

    return PassedOn(frames(), through.leave, FRAMES)


class Forward(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /relay/forward."""

    node_id: Id
    path: Annotated[str, Meta(max_length=1024)]
    method: Literal["GET", "POST"] = "GET"
    query: Annotated[str, Meta(max_length=MAX_QUERY_CHARS)] = ""
    #: for a POST
    body: dict[str, Any] | None = None
    #: asked by a node that passes it on itself: the answer comes in frames, and no further node is asked
    framed: bool = False

    @property
    def request(self) -> Request:
        return Request(self.method, self.path, self.query, b"" if self.body is None else msgspec.json.encode(self.body))


def elsewhere(call: Call, node: str | None) -> bool:
    """Whether a request that names a node is for another one than this."""
    return bool(node) and node != call.services.replica.status().node_id


async def order_node(call: Call, node: str | None, path: str, body: Struct) -> PassedOn:
    """The answer of another node to a POST. Raises Problem."""
    return passed_on(await pass_on(call, node or "", Request("POST", path, body=msgspec.json.encode(body))))


async def pass_on(call: Call, node: str, asked: Request) -> Through:
    """Ask a node, wherever it is. Raises Problem."""
    passing(call, asked)
    services = call.services
    state = services.replica.live_state()
    known = not elsewhere(call, node) or node in voter_addresses(call)
    if state is not None and node not in state.peers and not known:
        raise Problem(Code.NOT_FOUND, f"no node {node!r} is known; GET /peers lists them")
    until_s = services.monotonic_s() + PATIENCE_S
    while True:
        try:
            found = await at_hand(call, node, asked) or await _at_a_voter(call, node, asked)
        except NothingSent as problem:
            if services.monotonic_s() > until_s:
                raise Problem(problem.code, problem.detail) from None
        else:
            return found if found.head.status < 300 else await _refused(node, asked, found)
        await asyncio.sleep(PAUSE_S)


async def _refused(node: str, asked: Request, found: Through) -> Through:
    """A probe's 503 without anything that a client takes for the leader's address. Raises Problem for all else."""
    try:
        body = await _beginning(found)
    finally:
        await found.leave()
    status, kind = found.head.status, found.head.media_type
    if asked.path in PROBES and status == 503 and kind.startswith("application/json"):
        try:
            said = msgspec.json.decode(body, type=dict[str, Any])
        except UNDECODABLE:
            raise Problem("unreachable", f"the answer of {node!r} cannot be read") from None
        said.pop("leader", None)
        return Through(found.head, _one(msgspec.json.encode(said)), _nothing)
    problem = read_problem(body)
    detail = problem.detail[:DETAIL_CHARS] or f"{node!r} answered {status}"
    raise Problem(problem.code, detail) if problem.code in TABLE else _unanswered(asked, detail)


async def _beginning(found: Through) -> bytes:
    """As much of a body as a refusal has."""
    body = b""
    try:
        async with asyncio.timeout(REFUSAL_S), aclosing(found.pieces) as pieces:
            async for piece in pieces:
                body += piece
                if len(body) > REFUSAL_BYTES:
                    break
    except (TimeoutError, BrokenOff) as error:
        log.info("event=refusal_not_read reason=%s", error)
    return body


async def _one(piece: bytes) -> AsyncGenerator[bytes, None]:
    yield piece


async def _nothing() -> None:
    return


def passing(call: Call, asked: Request) -> Passage:
    """The passage of a request. Raises Problem when there is none, or the caller's token is not good for it."""
    found = passage(asked.method, asked.path)
    if found is None:
        raise Problem(
            "forbidden", f"{asked.method} {asked.path} is not passed on to other nodes; see POST {FORWARD} for what is"
        )
    if found.needs not in GRANTS[call.caller.scope]:
        raise Problem("forbidden", f"token {call.caller.name!r} is not good for this; it needs {found.needs}")
    if len(asked.body) > MAX_BODY_BYTES or len(asked.query) > MAX_QUERY_CHARS:
        raise Problem("too_large", f"a request to another node has at most {MAX_BODY_BYTES} bytes of body")
    if _waits_long(asked.query):
        raise Problem(Code.INVALID, f"the query: a request to another node has a `wait` of at most {MOST_WAIT_S:g} s")
    return found


def _waits_long(query: str) -> bool:
    try:
        return any(not float(value) <= MOST_WAIT_S for name, value in parse_qsl(query) if name == "wait")
    except ValueError:
        return False  # no number: the node says so itself


async def at_hand(call: Call, node: str, asked: Request) -> Through | None:
    """The answer of this node itself, or of one whose channel is here; None: it is neither. Raises Problem."""
    services = call.services
    own = services.replica.status().node_id
    board, face = services.switchboard, services.face
    caller = Vouched(call.caller.name, call.caller.scope, call.caller.peer)
    ask = Ask("0", asked.method, asked.path, asked.query, asked.body, caller)
    mine = node == own and face is not None
    if not mine and (board is None or node not in board.lines):
        return None
    if passing(call, asked).needs is Scope.ADMIN:
        # A target that does not vote could not record it: it knows the caller by our word alone.
        await noted(call, f"relay {asked.method} {asked.path}", node)
    if mine and face is not None:
        inside = Inside(face, ask)
        await inside.__aenter__()
        try:
            return Through(await inside.head(), _unbroken(inside.pieces()), inside.close)
        except BaseException:
            await inside.close()
            raise
    assert board is not None
    try:
        answer = await board.ask(node, ask)
    except NoChannel:
        return None
    except TooMany as error:
        raise Problem("busy", str(error)) from None
    except Unanswered as error:
        raise _unanswered(asked, str(error)) from None

    async def leave() -> None:
        answer.leave()

    return Through(answer.head, _unbroken(answer.pieces), leave)


async def _unbroken(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Raises BrokenOff."""
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece
    except (Broken, Unanswered, BrokenFrame, httpx.HTTPError) as error:
        raise BrokenOff(str(error) or type(error).__name__) from error


def _unanswered(asked: Request, sentence: str) -> Problem:
    return Problem("unreachable" if asked.method == "GET" else "outcome_unknown", sentence)


def voter_addresses(call: Call) -> dict[str, str]:
    """The HTTP addresses of the voters, this one's too."""
    return urls_of(call.services.replica.live_state()) or dict(call.services.voters)


async def _at_a_voter(call: Call, node: str, asked: Request) -> Through:
    """The answer through another voter. Raises Problem, NothingSent when none that answers has the node's channel."""
    services, voters = call.services, voter_addresses(call)
    own, heard = services.replica.status().node_id, services.replica.status().voters_heard
    if services.http is None:
        raise Problem("unreachable", "this node asks no others")
    if node in voters:
        order = [node]
    else:
        order = sorted(
            (v for v in voters if v != own), key=lambda v: (v != services.routes.get(node), v not in heard, v)
        )
    last = NothingSent(
        "unreachable", f"{node!r} holds no channel to a voter that answers; is it up? see GET /relay/status"
    )
    for voter in order:
        try:
            found = await _forwarded(call, services.http, voters[voter], node, asked)
        except NothingSent as problem:
            last = problem if problem.code != "no_channel" else last
            continue
        services.routes[node] = voter
        return found
    services.routes.pop(node, None)
    raise last


async def _forwarded(call: Call, http: httpx.AsyncClient, url: str, node: str, asked: Request) -> Through:
    """Raises Problem."""
    body = msgspec.json.decode(asked.body) if asked.body else None
    order = Forward(node, asked.path, asked.method, asked.query, body, framed=True)
    headers = {"content-type": "application/json", "accept-encoding": "identity"}
    if given := call.header(b"authorization"):
        headers["authorization"] = given
    request = http.build_request(
        "POST",
        url + FORWARD,
        content=msgspec.json.encode(order),
        headers=headers,
        timeout=httpx.Timeout(HEAD_S, connect=CONNECT_S),
    )
    try:
        response = await http.send(request, stream=True)
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        log.info("event=voter_not_asked url=%s to=%s reason=%s", url, node, error)
        raise NothingSent("no_channel", f"the voter at {url} cannot be reached") from None
    except httpx.HTTPError as error:
        if asked.method == "GET":
            raise NothingSent("no_channel", f"the voter at {url} does not answer") from None
        raise _unanswered(asked, f"the voter that passes it on to {node} did not answer: {error!r}") from None
    try:
        if response.status_code != httpx.codes.OK:
            said = read_problem(await anext(response.aiter_raw(64 * 1024), b""))
            await response.aclose()
            if said.code in NOTHING_SENT:
                raise NothingSent(said.code, said.detail)
            raise Problem(said.code if said.code in TABLE else "unreachable", said.detail)
        pieces = _unframed(response)
        return Through(head_of(await anext(pieces, b"")), _unbroken(pieces), response.aclose)
    except (httpx.HTTPError, BrokenFrame) as error:
        await response.aclose()
        raise _unanswered(asked, f"the answer of {node} broke off: {str(error) or type(error).__name__}") from None
    except asyncio.CancelledError:
        await response.aclose()
        raise


async def _unframed(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The payloads of a framed answer. Raises HTTPError, BrokenFrame."""
    frames = Frames()
    async for data in response.aiter_raw():
        for payload in frames.feed(data):
            yield payload
    if frames.unfinished:
        raise BrokenFrame("the answer ends within a frame")
