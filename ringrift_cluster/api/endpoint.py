"""One declaration a route: the handler's signature is its contract, its OpenAPI operation and its decoder.

    route = Routes("work", "The queue of work items")

    @route("POST", "/work/cancel", "End an item", scope=Scope.SUBMIT, answer=Outcome(True, 7))
    async def cancel(call: Call, body: Cancel) -> Outcome: ...

Parameters after `call`: `query` (a Struct of query parameters), `body` (what the JSON or msgpack body is
decoded to), and any other name is a path parameter. `scope` is what a token must be good for, None on probes
alone. Bodies go from the raw bytes straight into msgspec Structs, answers straight back into bytes; nothing
between them validates a second time.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial, reduce
from operator import or_
from types import UnionType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints
from urllib.parse import parse_qsl

import msgspec
from msgspec import Struct
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.responses import Response, StreamingResponse

from ringrift_cluster.api import problems
from ringrift_cluster.api.locks import ANYBODY, Caller
from ringrift_cluster.api.meter import Meter
from ringrift_cluster.api.problems import LeaderHint, Problem
from ringrift_cluster.api.services import Services
from ringrift_cluster.replica import ReplicaError, on_behalf
from statemachine.errors import UNDECODABLE, Code, Refused
from statemachine.values import Scope

log = logging.getLogger("ringrift.api")

Handler = Callable[..., Awaitable[object]]
Header = tuple[bytes, bytes]

MSGPACK = b"application/msgpack"
#: how often the token of a stream that goes on is looked at again
LOOK_S = 1.0

_encode = msgspec.json.Encoder().encode


class _Any(PathConvertor):
    """The rest of a path, with line breaks in it too: what is wrong with a name is said by whoever knows names."""

    regex = "(?s:.*)"


register_url_convertor("any", _Any())


class Disconnected(Exception):  # noqa: N818 - nobody is left to be told
    """The client went away before its body was complete."""


class BrokenOff(Exception):  # noqa: N818 - the client sees it by the connection's end
    """A stream cannot be brought to its end: it must not look as if it had one."""


class Call:
    """One request, as its handler sees it."""

    __slots__ = ("admitted", "caller", "headers", "index", "receive", "scope", "services")

    def __init__(self, services: Services, scope: dict[str, Any], receive: Any) -> None:
        self.services = services
        self.scope = scope
        self.receive = receive
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        #: the applied index the answer was computed at; None is this replica's present one
        self.index: int | None = None
        #: whose token the request carries
        self.caller: Caller = ANYBODY
        #: whether the token is still good, for answers that go on for a while
        self.admitted: Callable[[], bool] = lambda: True

    def header(self, name: bytes) -> str:
        """One request header (lower-case name), or an empty text."""
        return self.headers.get(name, b"").decode("latin-1")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that is not simply a Struct with status 200."""

    body: bytes
    status: int = 200
    media_type: str = "application/json"
    headers: tuple[Header, ...] = ()


def reply(value: Struct, *, status: int = 200) -> Reply:
    """A Struct with another status than 200."""
    return Reply(_encode(value), status)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What the table knows about one (method, path)."""

    method: str
    path: str
    tag: str
    summary: str
    #: what a token must be good for; None: none is asked for
    scope: Scope | None
    handler: Handler
    description: str
    path_arguments: tuple[str, ...]
    query: type[Struct] | None
    bodies: tuple[Any, ...]
    answers: tuple[Any, ...]
    #: reads the raw JSON body when its type depends on its shape
    decode: Callable[[bytes], object] | None
    example: object
    answer: object
    #: media types of answers that are not JSON, with a sentence each
    produces: dict[str, str]
    #: media type of a body that the handler reads itself
    consumes: str
    errors: tuple[str, ...]
    #: the statuses an answer may have
    statuses: tuple[int, ...]
    stream: bool
    #: a stream that a node keeps open for as long as it lives; the bound on streams is not for those
    standing: bool

    @property
    def template(self) -> str:
        """The path as OpenAPI writes it."""
        return self.path.replace(":any}", "}")


class Routes:
    """The endpoints of one noun, in the order in which they are matched."""

    def __init__(self, tag: str, about: str) -> None:
        self.tag = tag
        self.about = about
        self.endpoints: list[Endpoint] = []

    def __call__(
        self,
        method: str,
        path: str,
        summary: str,
        *,
        scope: Scope | None,
        example: object = None,
        answer: object = None,
        errors: tuple[str, ...] = (),
        statuses: tuple[int, ...] = (200,),
        produces: dict[str, str] | None = None,
        consumes: str = "",
        decode: Callable[[bytes], object] | None = None,
        stream: bool = False,
        standing: bool = False,
    ) -> Callable[[Handler], Handler]:
        def register(handler: Handler) -> Handler:
            hints = get_type_hints(handler, include_extras=True)
            answers = _members(hints.pop("return"))
            hints.pop("call", None)
            query = hints.pop("query", None)
            body = hints.pop("body", None)
            self.endpoints.append(
                Endpoint(
                    method=method,
                    path=path,
                    tag=self.tag,
                    summary=summary,
                    scope=scope,
                    handler=handler,
                    description=(handler.__doc__ or "").strip(),
                    path_arguments=tuple(hints),
                    query=query,
                    bodies=_members(body) if body is not None else (),
                    answers=tuple(a for a in answers if a is not Reply and not _is_response(a)),
                    decode=decode,
                    example=example,
                    answer=answer,
                    produces=produces or {},
                    consumes=consumes,
                    errors=errors,
                    statuses=statuses,
                    stream=stream,
                    standing=standing,
                )
            )
            return handler

        return register


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _is_response(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Response)


class Bound:
    """An endpoint with its services: the ASGI application behind one route."""

    def __init__(self, endpoint: Endpoint, services: Services) -> None:
        self.endpoint = endpoint
        self.meter = Meter(endpoint.method, endpoint.template)
        services.meters.append(self.meter)
        self._services = services
        self._handler = endpoint.handler
        self._paths = endpoint.path_arguments
        self._query = endpoint.query
        self._takes_body = bool(endpoint.bodies)
        self._locks = services.locks if endpoint.scope is not None else None
        self._needs = endpoint.scope or Scope.READ
        self._name = f"{endpoint.method} {endpoint.template}"
        self._header_bytes = services.limits.header_bytes
        kind = reduce(or_, endpoint.bodies) if endpoint.bodies and not endpoint.decode else Any
        self._decode_json = endpoint.decode or msgspec.json.Decoder(kind).decode
        self._decode_msgpack = msgspec.msgpack.Decoder(kind).decode

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        services = self._services
        started = services.monotonic_s()
        call = Call(services, scope, receive)
        status = 500
        try:
            try:
                answer = await self._answer(call)
            except (Problem, Refused, ReplicaError) as error:
                answer = problem_reply(problems.of(error), services, scope["path"])
            if isinstance(answer, Response):
                status = answer.status_code
                await self._respond(call, answer, send)
            else:
                made = answer if isinstance(answer, Reply) else Reply(_encode(answer))
                status = made.status
                await send_reply(made, scope, send, position(services, call.index))
        except Disconnected:
            status = 499
        except BrokenOff as broken:
            # Returning without the answer's end closes its connection.
            status = 502
            log.info("event=answer_broke_off path=%s reason=%s", scope["path"], broken)
        finally:
            self.meter.count(status, services.monotonic_s() - started)

    async def _answer(self, call: Call) -> object:
        scope = call.scope
        if sum([len(k) + len(v) for k, v in scope["headers"]]) > self._header_bytes:
            raise Problem("headers_too_large", f"the headers are over {self._header_bytes} bytes together")
        if self._locks is not None:
            call.caller = self._locks.admit(call, self._needs, self._name)
            call.admitted = partial(self._admits, call)
            on_behalf.set(call.header(b"authorization"))
        arguments: dict[str, Any] = {name: scope["path_params"][name] for name in self._paths}
        if self._query is not None:
            arguments["query"] = parse_query(scope["query_string"], self._query)
        if self._takes_body:
            arguments["body"] = self._body(call, await read_body(call, self._services.limits.body_bytes))
        return await self._handler(call, **arguments)

    def _body(self, call: Call, raw: bytes) -> object:
        packed = call.headers.get(b"content-type") == MSGPACK
        if not raw and not packed:
            # Nothing is an object that leaves everything out, so `curl -X POST` needs no body.
            raw = b"{}"
        try:
            return self._decode_msgpack(raw) if packed and not self.endpoint.decode else self._decode_json(raw)
        except UNDECODABLE as error:
            raise Problem(Code.INVALID, f"the body: {problems.in_words(error)}") from None

    async def _while_admitted(self, call: Call, parts: AsyncGenerator[Any, None]) -> AsyncIterator[Any]:
        """The parts of a stream, until the token that it was opened with is good no longer."""
        looked_s = call.services.monotonic_s()
        async with aclosing(parts):
            async for part in parts:
                now_s = call.services.monotonic_s()
                if now_s - looked_s >= LOOK_S:
                    looked_s = now_s
                    if not call.admitted():
                        return  # the answer's head is out, so it can only end
                yield part

    def _admits(self, call: Call) -> bool:
        """Whether the caller would be let in now; a refusal is counted and logged by the locks."""
        try:
            if self._locks is not None:
                self._locks.admit(call, self._needs, self._name)
        except Problem:
            return False
        return True

    async def _respond(self, call: Call, answer: Response, send: Any) -> None:
        services = self._services
        answer.raw_headers.extend(position(services, call.index))
        if not self.endpoint.stream and not self.endpoint.standing:
            await answer(call.scope, call.receive, send)
            return
        services.streams += self.endpoint.stream
        if isinstance(answer, StreamingResponse):
            answer.body_iterator = self._while_admitted(call, cast(AsyncGenerator[Any, None], answer.body_iterator))
        try:
            await answer(call.scope, call.receive, send)
        finally:
            services.streams -= self.endpoint.stream


def parse_query(raw: bytes, kind: type[Struct]) -> Struct:
    """Query parameters as a Struct; a bad or unknown one is named in the problem."""
    try:
        given = parse_qsl(raw.decode("latin-1"), keep_blank_values=True, max_num_fields=64)
        pairs = dict(given)
        if len(pairs) < len(given):
            raise ValueError("a parameter is given twice")
        return msgspec.convert(pairs, kind, strict=False)
    except ValueError as error:  # msgspec's ValidationError is one
        raise Problem(Code.INVALID, f"the query: {problems.in_words(error)}") from None


async def read_body(call: Call, limit_bytes: int) -> bytes:
    """The whole body; raises Problem when it is over the limit and Disconnected when it never ends."""
    announced = call.headers.get(b"content-length", b"0")
    if announced.isdigit() and int(announced) > limit_bytes:
        raise Problem("too_large", f"the body is {int(announced)} bytes; at most {limit_bytes} are taken")
    message = await call.receive()
    if message["type"] == "http.disconnect":
        raise Disconnected
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False) and len(body) <= limit_bytes:
        return body
    return await _gathered(call, message, limit_bytes)


async def _gathered(call: Call, message: Any, limit_bytes: int) -> bytes:
    """A body that comes in parts. All of them together are bounded, however slowly each one comes."""
    services = call.services
    parts: list[bytes] = []
    size = 0
    try:
        while True:
            part = message.get("body", b"")
            parts.append(part)
            size += len(part)
            services.gathered_bytes += len(part)
            if size > limit_bytes:
                raise Problem("too_large", f"the body is over {limit_bytes} bytes; send it in smaller parts")
            if services.gathered_bytes > services.limits.bodies_bytes:
                raise Problem("busy", "too many large bodies are being received here; come back or ask another node")
            if not message.get("more_body", False):
                return b"".join(parts)
            message = await call.receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
    finally:
        services.gathered_bytes -= size


def position(services: Services, index: int | None = None) -> list[Header]:
    """The headers that say where in the log an answer stands, and who leads."""
    status = services.replica.status()
    headers = [(b"ringrift-index", b"%d" % (status.applied if index is None else index))]
    if status.leader_id:
        headers.append((b"ringrift-leader", status.leader_id.encode("latin-1", "replace")))
    return headers


def problem_reply(problem: Problem, services: Services, instance: str) -> Reply:
    kind = problems.TABLE[problem.code]
    leader = services.replica.status().leader_id
    hint = LeaderHint(leader, services.leader_address()) if leader else None
    headers: list[Header] = []
    if kind.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % kind.retry_after_s))
    if kind.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return Reply(_encode(problems.document(problem, instance, hint)), kind.status, problems.MEDIA_TYPE, tuple(headers))


async def send_reply(made: Reply, scope: Any, send: Any, extra: list[Header]) -> None:
    body = made.body
    await send(
        {
            "type": "http.response.start",
            "status": made.status,
            "headers": [
                (b"content-type", made.media_type.encode("latin-1")),
                (b"content-length", b"%d" % len(body)),
                *extra,
                *made.headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
