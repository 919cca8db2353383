"""What happened, in the order of the log: a page of it, the next of it, or all of it as it comes.

No event is buffered for a slow reader: a stream reads the next page of the ring only when the last one has
been taken. A reader that falls behind the ring is told so by an `EventsLost` event with the range.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from starlette.responses import StreamingResponse

from ringrift_cluster.api.endpoint import Call, Reply, Routes
from ringrift_cluster.api.problems import Problem
from ringrift_cluster.api.services import Services
from ringrift_cluster.api.streams import admit
from ringrift_cluster.api.views import csv
from ringrift_cluster.replica import Read, ReplicaError
from statemachine import queries
from statemachine.errors import Code
from statemachine.rows import Event
from statemachine.state import State
from statemachine.values import Scope

route = Routes("events", "What happened, in the past tense.")

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
#: events read at once
PAGE = 500
#: a stream says that it is alive this often, and looks whether the node is leaving at least each second
KEEPALIVE_S = 15.0
#: a busy log wakes a stream at most this often
PAUSE_S = 0.05


class EventQuery(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    since: Annotated[int, Meta(ge=-1, le=2**62, description="Only events with a greater `seq`; -1 is from now on.")] = 0
    index: Annotated[int, Meta(ge=0, le=2**62, description="Only events of entries after this log index.")] = 0
    kinds: Annotated[str, Meta(max_length=1024, description="Kinds of events, separated by commas.")] = ""
    key: Annotated[str, Meta(max_length=160, description="Only events of this thing.")] = ""
    limit: Annotated[int, Meta(ge=1, le=1_000_000, description="End after so many events.")] = 1_000_000
    follow: Annotated[bool, Meta(description="Go on with what happens next (server-sent events always do).")] = False
    wait: Annotated[
        float, Meta(ge=0, le=3600, description="Seconds to wait for a first event; how long to follow at most.")
    ] = 0.0


class Page(Struct, frozen=True):
    """Events after a place, the place after them, and what says how many were lost between."""

    events: list[Event]
    seq: int
    lost: Event | None = None


def page(state: State, since: int) -> Page:
    """The next events of the ring. `seq` is consecutive, so a hole at its start is a loss."""
    last = state.cluster.event_seq
    if since < 0 or since > last:
        return Page([], last)
    found = queries.events_after(state, since, PAGE)
    first = found[0].seq if found else last + 1
    lost = None
    if since and first > since + 1:
        gap = {"from": str(since + 1), "to": str(first - 1)}
        lost = Event(first - 1, found[0].index if found else 0, state.now_ms, "EventsLost", "events", gap)
    return Page(found, found[-1].seq if found else last, lost)


def as_line(event: Event) -> bytes:
    return msgspec.json.encode(event) + b"\n"


def as_message(event: Event) -> bytes:
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (event.seq, event.kind.encode(), msgspec.json.encode(event))


@route(
    "GET",
    "/events",
    "What happened",
    scope=Scope.READ,
    produces={
        NDJSON: "One event a line, oldest first.",
        SSE: "The same as server-sent events (`Accept: text/event-stream`), resumed by `Last-Event-ID`.",
    },
    errors=(Code.INVALID, "too_many_streams"),
    stream=True,
)
async def events(call: Call, query: EventQuery) -> StreamingResponse | Reply:
    """Without `wait` and `follow`: what the ring holds. With `wait` alone: as soon as there is one event.

    With `follow`, or as server-sent events: everything as it happens. Resume with `since` (the last `seq`) or
    `index` (of the last entry); events older than the ring are reported as one `EventsLost`.
    """
    services = call.services
    admit(services)
    sse = SSE in call.header(b"accept")
    since = query.since
    resumed = call.header(b"last-event-id")
    if resumed:
        if not resumed.isdecimal() or len(resumed) > 18:
            raise Problem(Code.INVALID, f"the header Last-Event-ID is a number, not {resumed[:40]!r}")
        since = int(resumed)
    follow = query.follow or sse
    length_s = query.wait or (services.limits.stream_s if follow else 0.0)
    # The first page is read before the head of the answer is out, so that a failure is still a problem.
    first = await services.replica.read(lambda state: page(state, since))
    stream = written(services, query, first, follow=follow, length_s=length_s, sse=sse)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(stream, media_type=SSE if sse else NDJSON, headers=headers)


async def written(
    services: Services, query: EventQuery, read: Read[Page], *, follow: bool, length_s: float, sse: bool
) -> AsyncIterator[bytes]:
    """The bytes of one stream, a page of the ring at a time, beginning with the one that was read."""
    encode = as_message if sse else as_line
    kinds = frozenset(csv(query.kinds))
    replica = services.replica
    now = spoken = services.monotonic_s()
    deadline = now + length_s
    left = query.limit
    while True:
        found = read.value
        chosen = [
            event
            for event in found.events
            if event.index > query.index and (not kinds or event.kind in kinds) and query.key in ("", event.key)
        ][:left]
        left -= len(chosen)
        if found.lost is not None:
            chosen.insert(0, found.lost)
        if chosen:
            spoken = now
            yield b"".join(map(encode, chosen))
        if left <= 0 or services.closing():
            return
        if len(found.events) < PAGE:
            if now >= deadline or (chosen and not follow):
                return
            if now - spoken >= KEEPALIVE_S:
                spoken = now
                yield b": alive\n\n" if sse else b"\n"
            await asyncio.sleep(PAUSE_S)
            await replica.wait_for(read.index + 1, min(1.0, max(deadline - now, PAUSE_S)))
        after = found.seq
        try:
            read = await replica.read(lambda state, after=after: page(state, after))  # type: ignore[misc]
        except ReplicaError as error:
            # The head of the answer is out; the reader resumes elsewhere by its last seq.
            if sse:
                yield b": %b\n\n" % str(error).encode()
            return
        now = services.monotonic_s()
