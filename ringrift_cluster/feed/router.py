"""The feeding side: an ASGI application for the snapshot and the stream of entries after it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from starlette.responses import FileResponse, Response

from ringrift_cluster import replica as rp
from ringrift_cluster.feed import wire
from ringrift_cluster.feed.broadcast import ADMITTED, OUTLET, Broadcast, Listener, Lost
from ringrift_cluster.feed.source import LogFeed
from ringrift_cluster.problem import Problem
from ringrift_cluster.ranges import admit_range
from statemachine.snapshot import Header, SnapshotDamaged, read_header

#: a follower makes the moment in which entries are held together so much longer, up to the longest one
_EACH_S = 0.0003
_MOMENT_S = 0.1


class _Refusal(Exception):  # noqa: N818 - an answer
    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code


_REPLICA: dict[type[rp.ReplicaError], tuple[int, str]] = {
    rp.NoLeader: (503, "no_leader"),
    rp.Busy: (429, "busy"),
    rp.TooLarge: (413, "too_large"),
    rp.OutcomeUnknown: (504, "outcome_unknown"),
    rp.Stale: (503, "stale"),
    rp.ReadOnly: (503, "read_only"),
    rp.Halted: (503, "halted"),
}


class FeedRouter:
    """Serves GET snapshot, entries and backup from a replica, by the last part of the path.

    The answer to entries is a stream of messages that stays open for as long as it was asked for; see
    `ringrift_cluster.feed.broadcast`. Runs on one event loop.
    """

    def __init__(
        self,
        source: LogFeed,
        *,
        each_s: float = _EACH_S,
        moment_s: float = _MOMENT_S,
        beat_s: float = wire.BEAT_S,
        most: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """At most `most` followers listen here."""
        self._source = source
        self._most = most
        self._clock = clock
        self._broadcast = Broadcast(source, each_s=each_s, moment_s=moment_s, beat_s=beat_s, clock=clock)
        #: streams that are open now
        self.streams = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        try:
            response = await self._answer(scope)
        except _Refusal as refusal:
            response = _problem(refusal.status, refusal.code, str(refusal))
        except Lost as lost:
            response = _problem(503 if lost.code == "halted" else 409, lost.code, str(lost))
        except rp.ReplicaError as error:
            status, code = next(_REPLICA[k] for k in type(error).__mro__ if k in _REPLICA)
            response = _problem(status, code, str(error))
        await response(scope, receive, send)

    async def _answer(self, scope: Any) -> Response:
        method, path = scope["method"], scope["path"]
        match (method, path.rsplit("/", 1)[-1]):
            case ("GET" | "HEAD", "snapshot"):
                return await self._snapshot(scope)
            case ("GET", "backup"):
                # What was acknowledged anywhere before now is in the file.
                await self._source.read(lambda state: None, consistency=rp.Consistency.LINEARIZABLE)
                return await self._snapshot(scope, max_behind=0)
            case ("GET", "entries"):
                return self._entries(dict(parse_qsl(scope["query_string"].decode("latin-1"))), scope)
            case (_, "snapshot" | "entries" | "backup"):
                raise _Refusal(405, "method_not_allowed", f"{method} is not offered here")
        raise _Refusal(404, "not_found", f"the feed has no {path}")

    def close(self) -> None:
        """Let go of the source and end all streams; what is asked from now on gets one message."""
        self._broadcast.close()

    # Snapshot

    async def _snapshot(self, scope: Any, max_behind: int = 5_000) -> Response:
        if not self._source.status().cluster_id:
            # A snapshot names its cluster, and this one has no name before its first leader gave it one.
            raise _Refusal(503, "not_ready", "the cluster has no id yet; ask again in a moment")
        file = await self._source.snapshot_file(max_behind)
        try:
            head = await asyncio.to_thread(_header_of, file.path)
        except (OSError, SnapshotDamaged) as error:
            raise _Refusal(503, "not_ready", f"the snapshot cannot be read: {error}; ask again") from error
        size = file.path.stat().st_size
        headers = {
            # Two nodes may write the same view in different bytes, and a range must continue the same ones.
            "etag": f'"{head.index}-{head.term}-{size}-{self._source.status().node_id}"',
            "ringrift-cluster": head.cluster_id,
            "ringrift-index": str(head.index),
            "ringrift-term": str(head.term),
            "ringrift-chain": head.chain.hex(),
        }
        if not admit_range(scope["headers"], size):
            raise _Refusal(416, "range_not_satisfiable", f"the snapshot has {size} bytes")
        return FileResponse(file.path, headers=headers, media_type="application/octet-stream")

    # Entries

    def _entries(self, query: Mapping[str, str], scope: Any) -> Response:
        """The first message is made before the head of the answer is out, so that a refusal is still a problem."""
        seconds = _number(query.get("seconds", "0"), "seconds", wire.MAX_STREAM_S)
        after = _integer(query.get("after"), "after", 2**62)
        chain = _chain(query.get("chain", ""))
        extensions = scope.get("extensions", {})
        if seconds and self.streams >= self._most:
            raise _Refusal(429, "busy", f"{self._most} followers listen here already; ask another voter")
        ends_at_s = self._clock() + seconds
        admitted = extensions.get(ADMITTED, lambda: True)
        listener = Listener(extensions.get(OUTLET), admitted, ends_at_s, query.get("cluster", ""), after, chain)
        first, _ = self._broadcast.next(listener)
        if not seconds:
            return Response(first, media_type=wire.MSGPACK)
        self._broadcast.open()
        return _Stream(self, listener, first)

    async def stream(self, listener: Listener, first: bytes, send: Any) -> None:
        self.streams += 1
        try:
            await self._broadcast.serve(listener, first, send)
        finally:
            self.streams -= 1


class _Stream(Response):
    """An answer that goes on for as long as its follower listens."""

    def __init__(self, router: FeedRouter, listener: Listener, first: bytes) -> None:
        super().__init__(media_type=wire.MSGPACK)
        del self.headers["content-length"]
        self._router = router
        self._listener = listener
        self._first = first

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await self._router.stream(self._listener, self._first, send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _header_of(path: Path) -> Header:
    with path.open("rb") as source:
        return read_header(source)


def _number(text: str | None, name: str, most: float) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not 0 <= value <= most:
        raise _Refusal(400, "invalid", f"{name} must be a number from 0 to {most:g}")
    return value


def _integer(text: str | None, name: str, most: int) -> int:
    value = int(text) if text and len(text) < 20 and text.isascii() and text.isdigit() else -1
    if not 0 <= value <= most:
        raise _Refusal(400, "invalid", f"{name} must be a whole number from 0 to {most}")
    return value


def _chain(text: str) -> bytes:
    try:
        chain = bytes.fromhex(text)
    except ValueError:
        chain = b""
    if len(chain) != 32:
        raise _Refusal(400, "invalid", "chain must be 64 hexadecimal digits")
    return chain


def _problem(status: int, code: str, detail: str) -> Response:
    body = msgspec.json.encode(Problem(code, detail, status, code.replace("_", " "), f"/problems/{code}"))
    headers = {"retry-after": "1"} if status in (429, 503) else None
    return Response(body, status, headers=headers, media_type="application/problem+json")
