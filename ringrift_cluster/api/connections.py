"""The connections of the HTTP port: how many there may be, how slow, how large before anybody looks at them.

uvicorn parses and answers; what is here only ends what goes beyond a limit, with a problem document where one can
still be sent. Nothing runs per request but a few assignments: one sweep a second looks at all connections.
"""

from __future__ import annotations

import asyncio
import http
import logging
import resource
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, cast

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ringrift_cluster.api import problems
from ringrift_cluster.api.joined import Joined
from ringrift_cluster.api.problems import Problem
from ringrift_cluster.feed.broadcast import OUTLET
from statemachine.errors import Code

log = logging.getLogger(__name__)

SWEEP_S = 1.0
#: a refused sender may go on for so long, so that it reads why before its connection breaks
LINGER_S = 2.0
#: what is read of a body that nobody wants, so that its connection can be used again
DISCARD_BYTES = 16 * 1024 * 1024
#: set on the scope of a request whose handler looks itself whether its body still comes
TRICKLES = "ringrift.trickles"
#: file descriptors that are kept for everything but HTTP connections
SPARE_FILES = 512


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Beyond `connections` the idle one that has waited longest gives way."""

    connections: int = 8192
    url_bytes: int = 8 * 1024
    #: names and values together, and how many
    header_bytes: int = 64 * 1024
    headers: int = 100
    #: a request line and its headers take at most this long, as does a first byte
    head_s: float = 10.0
    idle_s: float = 65.0
    #: after a grace a body brings at least this much a second
    body_bytes_per_s: int = 1024
    body_grace_s: float = 20.0
    #: an answer of which nothing was read for so long is over
    unread_s: float = 30.0
    #: unread answers of all connections together
    unread_bytes: int = 256 * 1024 * 1024
    #: requests sent ahead on one connection
    pipelined: int = 32


def with_room_for_files(limits: ConnectionLimits) -> ConnectionLimits:
    """Raise this process's limit of open files as far as it goes, and keep the connections within it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return limits
    return replace(limits, connections=min(limits.connections, max(hard - SPARE_FILES, hard // 2)))


class Connections:
    """All connections of one server. Runs on its event loop."""

    def __init__(self, limits: ConnectionLimits = ConnectionLimits()) -> None:
        self.limits = limits
        self.refusals: Counter[str] = Counter()
        self.open: dict[Connection, None] = {}
        #: without a request in progress, longest first; those that never made one apart
        self.silent: dict[Connection, None] = {}
        self.idle: dict[Connection, None] = {}
        self._sweep: asyncio.TimerHandle | None = None
        #: the part of an answer that was last written to a stream, and its chunk
        self._part = self._chunk = b""

    def protocol(self) -> type[Connection]:
        """The class that uvicorn makes one of for each connection."""
        return type("Connection", (Connection,), {"all": self})

    def numbers(self) -> dict[str, float]:
        """For the metrics."""
        return {"http_connections": len(self.open), "http_refusals_total": sum(self.refusals.values())}

    def chunk(self, part: bytes) -> bytes:
        """A part of an answer as HTTP has it. Many streams are given the same one, one after the other."""
        if part is not self._part:
            self._part, self._chunk = part, b"%x\r\n%b\r\n" % (len(part), part)
        return self._chunk

    def enter(self, newcomer: Connection) -> None:
        if len(self.open) >= self.limits.connections:
            waiting = self.silent or self.idle
            (next(iter(waiting)) if waiting else newcomer).cut("too_many_connections")
        self.open[newcomer] = None
        self.silent[newcomer] = None
        if self._sweep is None:
            self._sweep = newcomer.loop.call_later(SWEEP_S, self._look, newcomer.loop)

    def leave(self, connection: Connection) -> None:
        for group in (self.open, self.silent, self.idle):
            group.pop(connection, None)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweep = loop.call_later(SWEEP_S, self._look, loop) if self.open else None
        now = loop.time()
        unread: list[tuple[int, Connection]] = []
        for connection in list(self.open):
            size = connection.look(now, self.limits)
            if size:
                unread.append((size, connection))
        total = sum(size for size, _ in unread)
        if total > self.limits.unread_bytes:
            unread.sort(key=lambda one: one[0])
            while total > self.limits.unread_bytes:
                size, connection = unread.pop()
                connection.cut("too_much_unread")
                total -= size


class Connection(HttpToolsProtocol):
    """One connection. `all` is set by `Connections.protocol`."""

    all: Connections

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_since: float | None = None
        self._head_bytes = 0
        self._since = self.loop.time()
        self._body_bytes = 0
        #: read since the parser last made something of it
        self._loose_bytes = 0
        self._discarded_bytes = 0
        self._unread = (0, 0.0)
        self._problem: Problem | None = None
        self._linger_until: float | None = None

    # What asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(Joined(transport, self.loop))  # type: ignore[arg-type]
        self.all.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.all.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._linger_until is not None:
            self._discard(len(data))
            return
        self._unset_keepalive_if_required()
        self._loose_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # An offer that is not taken up: the request has been answered like any other.
            self._loose_bytes = 0
        except httptools.HttpParserError as error:
            self.refuse(self._problem or Problem(Code.INVALID, f"this is no HTTP request: {error}"))
        else:
            if self._loose_bytes > self.all.limits.header_bytes:
                self.refuse(self._too_large())

    # What the parser calls; what is raised here arrives in data_received as a parser's error

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = cast(Any, {OUTLET: self})
        self._head_since = self.loop.time()
        self._head_bytes = self._loose_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._loose_bytes = 0
        self.url += url
        if len(self.url) > self.all.limits.url_bytes:
            self._refused("uri_too_long", f"the path and query are over {self.all.limits.url_bytes} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._loose_bytes = 0
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > self.all.limits.header_bytes or len(self.headers) > self.all.limits.headers:
            self._problem = self._too_large()
            raise ValueError(self._problem.detail)

    def on_headers_complete(self) -> None:
        self._head_since = None
        method = self.parser.get_method()
        bodied = any(k == b"transfer-encoding" or (k == b"content-length" and v != b"0") for k, v in self.headers)
        if bodied and method in (b"GET", b"HEAD"):
            self._refused(Code.INVALID, f"{method.decode()} takes no body; parameters go into the query")
        if self.parser.should_upgrade() and (bodied or method == b"CONNECT"):
            self._refused(Code.INVALID, "this port speaks HTTP/1.1 only; send the request without Upgrade or CONNECT")
        if len(self.pipeline) >= self.all.limits.pipelined:
            self._refused("busy", "too many requests were sent ahead on one connection; wait for the answers")
        self.all.silent.pop(self, None)
        self.all.idle.pop(self, None)
        self._since = self.loop.time()
        self._body_bytes = self._discarded_bytes = 0
        super().on_headers_complete()
        if self.parser.should_upgrade():
            # The parser takes what follows for another protocol.
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._loose_bytes = 0
        self._body_bytes += len(body)
        if self.cycle.response_complete:
            self._discard(len(body))
        super().on_body(body)

    def on_response_complete(self) -> None:
        unread_body = self.cycle.more_body and self.cycle.response_complete
        self._since = self.loop.time()
        self.all.idle[self] = None
        super().on_response_complete()
        if unread_body and self.expect_100_continue and not self._body_bytes:
            # It waits to be told to send the body, which it no longer is: what comes next could be either.
            self._close_slowly()

    # What a stream of many followers asks for, once the head of its answer is out

    def pour(self, body: bytes) -> None:
        self.transport.write(self.all.chunk(body))

    @property
    def full(self) -> bool:
        return self.flow.write_paused

    @property
    def closed(self) -> bool:
        return self.transport.is_closing()

    # The ends

    def shutdown(self) -> None:
        """The node leaves. Under TLS an idle connection is cut: its client would have to say goodbye first."""
        if not self._in_progress() and self.transport.get_extra_info("ssl_object") is not None:
            self.transport.abort()
        else:
            super().shutdown()

    def _too_large(self) -> Problem:
        limits = self.all.limits
        return Problem(
            "headers_too_large", f"at most {limits.headers} headers of {limits.header_bytes} bytes together are taken"
        )

    def _refused(self, code: str, detail: str) -> None:
        self._problem = Problem(code, detail)
        raise ValueError(detail)

    def refuse(self, problem: Problem) -> None:
        """Say why, if nothing has been said yet, and close."""
        if self._in_progress() and (self.cycle.response_started or self.pipeline):
            self.cut(problem.code)
            return
        self.all.refusals[problem.code] += 1
        status = problems.TABLE[problem.code].status
        body = msgspec.json.encode(problems.document(problem, "", None))
        self.transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (status, http.HTTPStatus(status).phrase.encode(), problems.MEDIA_TYPE.encode(), len(body), body)
        )
        if self.cycle is not None:
            # Whoever still reads this request's body learns that there is no more.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._close_slowly()

    def cut(self, reason: str) -> None:
        """End it at once, without a word."""
        self.all.refusals[reason] += 1
        self.all.leave(self)
        self.transport.abort()

    def _close_slowly(self) -> None:
        # Closed with bytes unread, TCP would reset the connection and take the answer back.
        if self._linger_until is None and self.transport.can_write_eof() and not self.transport.is_closing():
            self._linger_until = self.loop.time() + LINGER_S
            self._discarded_bytes = 0
            self.flow.resume_reading()
            self.transport.write_eof()
        else:
            self.transport.close()

    def _discard(self, count: int) -> None:
        self._discarded_bytes += count
        if self._discarded_bytes > DISCARD_BYTES:
            self.cut("too_large")

    def _in_progress(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    # Once a second

    def look(self, now: float, limits: ConnectionLimits) -> int:
        """End it when it is too slow; returns the bytes of answers that the other end has not read."""
        if self.transport.is_closing():
            return 0
        if self._linger_until is not None:
            if now > self._linger_until:
                self.transport.abort()
            return 0
        if self.flow.read_paused:
            # We are the slow ones.
            self._head_since = None if self._head_since is None else now
        if self._head_since is not None and now - self._head_since > limits.head_s:
            self.refuse(Problem("request_timeout", f"the headers took over {limits.head_s:g} s"))
        elif not self._in_progress():
            if now - self._since > (limits.head_s if self in self.all.silent else limits.idle_s):
                self.transport.close()
        elif self.cycle.more_body and not self.flow.read_paused and TRICKLES not in self.cycle.scope:
            late_s = now - self._since - limits.body_grace_s
            if late_s * limits.body_bytes_per_s > self._body_bytes:
                self.refuse(
                    Problem("request_timeout", f"the body came at under {limits.body_bytes_per_s} bytes a second")
                )
        return self._look_at_answer(now, limits)

    def _look_at_answer(self, now: float, limits: ConnectionLimits) -> int:
        size = self.transport.get_write_buffer_size()
        before, since = self._unread
        if not size or size < before or not before:
            self._unread = (size, now)
        elif now - since > limits.unread_s:
            self.cut("unread")
            return 0
        else:
            self._unread = (size, since)
        return size
