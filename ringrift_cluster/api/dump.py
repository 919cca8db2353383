"""The whole state as JSON, streamed from one consistent view."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from msgspec import Meta, Struct, structs
from starlette.responses import StreamingResponse

from ringrift_cluster.api.endpoint import Call, Routes
from ringrift_cluster.api.problems import Problem
from ringrift_cluster.api.services import Services
from ringrift_cluster.api.streams import admit
from ringrift_cluster.replica import ReplicaStatus
from statemachine.errors import Code
from statemachine.rows import TABLES, Row
from statemachine.state import State
from statemachine.values import Scope

route = Routes("state", "The replicated rows themselves.")

#: rows encoded between two turns of the event loop
SLICE = 256
#: views taken until one falls on the position that the replica has published
TRIES = 50

Tables = dict[str, dict[str, Row]]


class DumpQuery(Struct, frozen=True, forbid_unknown_fields=True):
    table: Annotated[str, Meta(max_length=32, description="One table; all of them when it is left out.")] = ""


@route(
    "GET",
    "/state/dump",
    "All rows, or those of one table",
    scope=Scope.READ,
    produces={
        "application/json": "`index`, `term`, `digest`, and `tables`: name to key to row. Two nodes at one index "
        "show the same digest."
    },
    errors=(Code.NOT_FOUND, "stale", "too_many_streams"),
    stream=True,
)
async def dump(call: Call, query: DumpQuery) -> StreamingResponse:
    """One consistent view; it is copied at one index and written out while the log goes on."""
    if query.table and query.table not in TABLES:
        raise Problem(Code.NOT_FOUND, f"no table is called {query.table!r}; they are {', '.join(TABLES)}")
    admit(call.services)
    index, tables, status = await _view(call.services, query.table)
    call.index = index
    return StreamingResponse(_written(index, tables, status, call.services.exposure), media_type="application/json")


async def _view(services: Services, table: str) -> tuple[int, Tables, ReplicaStatus]:
    """A copy of the tables together with the digest of the same position."""

    def copy(state: State) -> Tables:
        tables: Tables = {name: dict(rows) for name, rows in state.tables.items() if table in ("", name)}
        if "tokens" in tables:
            # Whoever may read is told who may do what, and nothing that a token could be known or forged by.
            tables["tokens"] = {name: structs.replace(row, sha256="") for name, row in state.tokens.items()}
        return tables

    for _ in range(TRIES):
        read = await services.replica.read(copy)
        status = services.replica.status()
        if status.applied == read.index:
            return read.index, read.value, status
        # An entry was applied between the view and its digest.
        await asyncio.sleep(0.002)
    raise Problem("stale", f"the log moved on during each of {TRIES} views; try again, or ask a quieter node")


async def _written(index: int, tables: Tables, status: ReplicaStatus, exposure: str) -> AsyncIterator[bytes]:
    head = {
        "cluster_id": status.cluster_id,
        "node_id": status.node_id,
        "index": index,
        "term": status.term,
        "digest": status.chain,
        "exposure": exposure,
    }
    yield msgspec.json.encode(head)[:-1] + b',"tables":{'
    for number, (name, rows) in enumerate(tables.items()):
        yield (b"," if number else b"") + msgspec.json.encode(name) + b":{"
        items = list(rows.items())
        for at in range(0, len(items), SLICE):
            part = msgspec.json.encode(dict(items[at : at + SLICE]))[1:-1]
            yield (b"," if at else b"") + part
        yield b"}"
    yield b"}}\n"
