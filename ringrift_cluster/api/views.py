"""Reads: which view of the state a request wants, and taking it from the replica."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Annotated, TypeVar

from msgspec import Meta, Struct

from ringrift_cluster.api.endpoint import Call
from ringrift_cluster.api.problems import Problem
from ringrift_cluster.replica import Consistency
from statemachine.errors import Code
from statemachine.state import State

T = TypeVar("T")
R = TypeVar("R", bound=Struct)

#: rows that one read looks at beyond its cursor, so that it stays short on the thread that applies
SCAN_ROWS = 5_000


class View(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Query parameters that every read takes."""

    consistency: Annotated[
        Consistency,
        Meta(
            description="`local`: what this node has applied; `fresh`: not older than a few seconds; "
            "`linearizable`: after everything acknowledged before the read."
        ),
    ] = Consistency.LOCAL
    index: Annotated[int, Meta(ge=0, le=2**62, description="Answer from a view at this applied index or later.")] = 0
    wait: Annotated[
        float, Meta(ge=0, le=60, description="Seconds to wait for `index` before answering 503 `stale`.")
    ] = 0.0


class Page(View, frozen=True, kw_only=True):
    """A read that lists rows."""

    limit: Annotated[int, Meta(ge=1, le=1000, description="Rows in one answer.")] = 100


async def look(call: Call, query: Callable[[State], T], view: View = View()) -> T:
    """Run a short pure query on the view that the request asked for.

    It may run on the thread that applies entries. A Problem that it raises is raised here.
    """
    services = call.services
    waits = view.wait > 0 and view.index > services.replica.status().applied
    if waits and services.waits >= services.limits.waits:
        raise Problem("too_many_waits", f"{services.waits} reads wait here; ask another node or come back")
    services.waits += waits
    try:
        read = await services.replica.read(query, consistency=view.consistency, at_least=view.index, wait_s=view.wait)
    finally:
        services.waits -= waits
    call.index = read.index
    return read.value


def csv(text: str) -> tuple[str, ...]:
    """A comma-separated query parameter."""
    return tuple(part for part in (p.strip() for p in text.split(",")) if part)


class Cursor(Page, frozen=True, kw_only=True):
    """A read that goes through a table, newest rows first."""

    after: Annotated[str, Meta(max_length=160, description="`next` of the page before.")] = ""


def scan(rows: dict[str, R], cursor: Cursor, keep: Callable[[R], bool]) -> tuple[list[R], str]:
    """A page of the rows that `keep` takes, newest first, and the cursor of the next page (empty at the end).

    A page may be short, or empty, while there is more: it ends after `SCAN_ROWS` rows whatever it found.
    """
    if cursor.after and cursor.after not in rows:
        raise Problem(Code.EXPIRED, f"the row {cursor.after!r} of the cursor is no longer kept; start again")
    newest_first = reversed(rows)
    if cursor.after:
        # Runs through the keys without coming back to the interpreter for each.
        operator.indexOf(newest_first, cursor.after)
    found: list[R] = []
    for looked, key in enumerate(newest_first, 1):
        row = rows[key]
        if keep(row):
            found.append(row)
        if len(found) >= cursor.limit or looked >= SCAN_ROWS:
            return found, key
    return found, ""
