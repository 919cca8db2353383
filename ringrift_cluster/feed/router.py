"""The feeding side: an ASGI application for the snapshot and the entries after it."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from msgspec import Raw
from starlette.responses import FileResponse, Response, StreamingResponse

from ringrift_cluster import replica as rp
from ringrift_cluster.feed import wire
from ringrift_cluster.feed.source import FeedEntry, LogFeed
from ringrift_cluster.feed.wire import Frame, Problem, Standing
from ringrift_cluster.ranges import admit_range
from statemachine.snapshot import Header, SnapshotDamaged, read_header

#: a poll costs a fifth of this, so that polls never take more than that share of the loop, up to the longest moment
_EACH_S = 0.0008
_MOMENT_S = 0.3
#: polls that are let go together, more where the longest moment would not do; and the time until the next ones
_AT_ONCE = 16
_PACE_S = _AT_ONCE * _EACH_S
#: encoded runs of frames that are kept for the next follower at the same position
_KEPT = 32
_KEPT_BYTES = 32 * 1024 * 1024
#: a large batch leaves in pieces, each once the one before it was read: nobody who reads slowly holds more than that
_PIECE_BYTES = 256 * 1024


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

    An entry after a quiet moment leaves at once; those of the next moment are held together and leave as one
    batch. The moment is `coalesce_s`, and longer where so many wait that answering them takes longer: what they
    cost together has a bound. Runs on one event loop.
    """

    def __init__(
        self,
        source: LogFeed,
        *,
        coalesce_s: float = 0.05,
        max_waiting: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._coalesce_s = coalesce_s
        self._max_waiting = max_waiting
        self._clock = clock
        #: polls that wait, in the order in which they came
        self._parked: dict[asyncio.Future[None], None] = {}
        self._released_s = -math.inf
        #: polls that the present release still lets go, and when the next ones of them
        self._owed = 0
        self._together = _AT_ONCE
        self._pace: asyncio.TimerHandle | None = None
        self._release: asyncio.TimerHandle | None = None
        self._ticket: int | None = None
        self._encoded: OrderedDict[tuple[int, int, bytes], Raw] = OrderedDict()
        self._encoded_bytes = 0
        self._closed = False
        self.waiting = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        try:
            response = await self._answer(scope)
        except _Refusal as refusal:
            response = _problem(refusal.status, refusal.code, str(refusal))
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
                return await self._entries(dict(parse_qsl(scope["query_string"].decode("latin-1"))))
            case (_, "snapshot" | "entries" | "backup"):
                raise _Refusal(405, "method_not_allowed", f"{method} is not offered here")
        raise _Refusal(404, "not_found", f"the feed has no {path}")

    def close(self) -> None:
        """Let go of the source and of everyone who waits; polls are answered at once from now on."""
        self._closed = True
        if self._ticket is not None:
            self._source.unsubscribe(self._ticket)
            self._ticket = None
        for timer in (self._release, self._pace):
            if timer is not None:
                timer.cancel()
        # Whoever waits finds the flag set and subscribes to nothing any more.
        for parked in self._parked:
            _let_go(parked)

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

    async def _entries(self, query: Mapping[str, str]) -> Response:
        after = _integer(query.get("after"), "after", 2**62)
        wait_s = _number(query.get("wait", "0"), "wait", wire.MAX_WAIT_S)
        max_bytes = _integer(query.get("max_bytes", str(1 << 20)), "max_bytes", wire.MAX_BATCH_BYTES)
        chain = _chain(query.get("chain", ""))
        cluster = query.get("cluster", "")
        started = self._clock()
        while True:
            held_s = self._clock() - started
            status = self._source.status()
            if status.halted:
                raise _Refusal(503, "halted", status.halted)
            if cluster and status.cluster_id and cluster != status.cluster_id:
                raise _Refusal(409, wire.OTHER_CLUSTER, f"this is cluster {status.cluster_id}, not {cluster}")
            frames, complete = self._read(after, chain, max_bytes)
            if frames or held_s >= wait_s or self._closed:
                break
            await self._wait(wait_s - held_s)
        last = frames[-1].index if frames else after
        standing = Standing(
            cluster_id=status.cluster_id,
            node_id=status.node_id,
            leader_id=status.leader_id,
            term=status.term,
            commit=status.commit,
            through=max(last, status.applied) if complete and status.applied >= after else last,
            voters=status.voters,
            contact_age_ms=status.contact_age_ms,
            held_ms=int(held_s * 1000),
        )
        encoded = self._encode(frames)
        body = wire.encode(wire.EncodedBatch(standing, encoded if len(encoded) <= _PIECE_BYTES else Raw(b"")))
        if len(encoded) <= _PIECE_BYTES:
            return Response(body, media_type=wire.MSGPACK)
        length = {"content-length": str(len(body) + len(encoded))}
        return StreamingResponse(_pieces(body, encoded), headers=length, media_type=wire.MSGPACK)

    def _read(self, after: int, chain: bytes, max_bytes: int) -> tuple[Sequence[FeedEntry], bool]:
        """Entries after the position and whether they reach the end; refuses a position of another history."""
        found = self._source.feed_since(after - 1) if after > 0 else None
        if found and found[0].index == after:
            if found[0].chain != chain:
                raise _Refusal(409, wire.OTHER_HISTORY, f"entry {after} left another digest here; take a snapshot")
            found = found[1:] or self._source.feed_since(after)
        else:
            found = self._source.feed_since(after)
        if found is None:
            raise _Refusal(409, wire.FELL_OUT, f"what came after entry {after} is no longer kept; take a snapshot")
        size = 0
        for count, entry in enumerate(found):
            size += len(entry.entry)
            if count and size > max_bytes:
                return found[:count], False
        return found, not found or not self._source.feed_since(found[-1].index, 1)

    def _encode(self, frames: Sequence[FeedEntry]) -> Raw:
        if not frames:
            return Raw(b"\x90")
        key = (frames[0].index, frames[-1].index, frames[-1].chain)
        known = self._encoded.pop(key, None)
        if known is not None:
            self._encoded_bytes -= len(known)
        else:
            known = Raw(wire.encode([Frame(f.index, f.term, f.entry, f.chain) for f in frames]))
        self._encoded[key] = known
        self._encoded_bytes += len(known)
        while len(self._encoded) > _KEPT or (self._encoded_bytes > _KEPT_BYTES and len(self._encoded) > 1):
            _, dropped = self._encoded.popitem(last=False)
            self._encoded_bytes -= len(dropped)
        return known

    async def _wait(self, seconds: float) -> None:
        if self.waiting >= self._max_waiting:
            raise _Refusal(429, "busy", f"{self._max_waiting} followers wait here already; ask another voter")
        loop = asyncio.get_running_loop()
        if self._ticket is None:
            self._ticket = self._source.subscribe(lambda: _post(loop, self._applied))
            return
        parked: asyncio.Future[None] = loop.create_future()
        self._parked[parked] = None
        timer = loop.call_later(seconds, _let_go, parked)
        self.waiting += 1
        try:
            await parked
        finally:
            timer.cancel()
            self._parked.pop(parked, None)
            self.waiting -= 1

    def _applied(self) -> None:
        """Let waiting polls go: at once after a quiet moment, else when the present moment is over."""
        if self._release is None and not self._closed:
            moment_s = max(self._coalesce_s, min(self.waiting * _EACH_S, _MOMENT_S))
            pause_s = max(self._released_s + moment_s - self._clock(), 0.0)
            self._release = asyncio.get_running_loop().call_later(pause_s, self._wake)

    def _wake(self) -> None:
        self._release = None
        self._released_s = self._clock()
        self._owed = len(self._parked)
        self._together = max(_AT_ONCE, math.ceil(self._owed * _PACE_S / _MOMENT_S))
        if self._pace is None:
            self._release_some()

    def _release_some(self) -> None:
        """Let those that waited longest go, and the others after a pause: requests of others come in between."""
        count = min(self._owed, self._together)
        self._owed -= count
        for parked in list(islice(self._parked, count)):
            del self._parked[parked]
            _let_go(parked)
        self._pace = None
        if self._owed and self._parked:
            self._pace = asyncio.get_running_loop().call_later(_PACE_S, self._release_some)


def _let_go(parked: asyncio.Future[None]) -> None:
    if not parked.done():
        parked.set_result(None)


async def _pieces(head: bytes, frames: Raw) -> AsyncIterator[bytes]:
    """The frames are one block of memory, however many followers are at it."""
    yield head
    view = memoryview(frames)
    for start in range(0, len(view), _PIECE_BYTES):
        yield bytes(view[start : start + _PIECE_BYTES])


def _post(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    """Run `call` on the loop; wakes come from the applying thread and may outlive the loop."""
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:
        return  # the loop is closed: nobody waits any more


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
