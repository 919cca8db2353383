"""Ratings: computed at the reader from the results in the log."""

from __future__ import annotations

import asyncio
from typing import Annotated

from msgspec import Meta, Struct

from ringrift_cluster.api import examples
from ringrift_cluster.api.endpoint import Call, Routes
from ringrift_cluster.api.problems import Problem
from ringrift_cluster.api.services import Services
from ringrift_cluster.api.views import View, look
from ringrift_cluster.api.writes import Outcome, carry_out
from statemachine.commands import RecordMatch, VoidMatch
from statemachine.elo import Ranking, Table, rankings, table_of
from statemachine.errors import Code
from statemachine.state import State
from statemachine.values import Id, Scope, Short

route = Routes("elo", "Ratings of models and baselines, from integer results.")


class RankingQuery(View, frozen=True, kw_only=True):
    config: Annotated[str, Meta(max_length=64, description="A game config; all of them when it is left out.")] = ""


class RankingTable(Struct, frozen=True):
    """Best first, by config. The same results give the same table on every node."""

    configs: dict[str, list[Ranking]]


EXAMPLE = RankingTable(
    {
        "hex8_2p": [
            Ranking(
                participant=examples.RESULT.a,
                elo=571.3,
                stderr=84.0,
                games=20,
                wins=14,
                losses=5,
                draws=1,
                anchored=True,
                model=examples.DIGEST,
                generation=4,
                status="candidate",
            )
        ]
    }
)


async def rated(services: Services, table: Table) -> list[Ranking]:
    """The ratings of one config: fitted off the event loop, and kept until its results change."""
    kept = services.ratings.get(table.config)
    if kept is not None and kept[0] == table:
        return kept[1]
    fitted = await asyncio.to_thread(rankings, table)
    services.ratings[table.config] = (table, fitted)
    return fitted


async def table(call: Call, query: RankingQuery) -> RankingTable:
    """Bradley-Terry with pinned baselines; `stderr` comes from the Fisher information."""

    def ask(state: State) -> list[Table]:
        known = sorted({*state.configs(), *state.totals, *(row.config for row in state.standings.values())})
        if query.config and query.config not in known:
            text = f"no game config {query.config!r} is known; known are {', '.join(known) or 'none'}"
            raise Problem(Code.NOT_FOUND, text)
        return [table_of(state, name) for name in ([query.config] if query.config else known)]

    tables = await look(call, ask, query)
    return RankingTable({one.config: await rated(call.services, one) for one in tables})


route("GET", "/elo/rankings", "Ratings, best first", scope=Scope.READ, answer=EXAMPLE, errors=(Code.NOT_FOUND,))(table)
route(
    "GET", "/elo/table", "Another name for `/elo/rankings`", scope=Scope.READ, answer=EXAMPLE, errors=(Code.NOT_FOUND,)
)(table)


@route(
    "POST",
    "/elo/match",
    "Count a match",
    scope=Scope.SUBMIT,
    example=RecordMatch(match="m-1", config="hex8_2p", result=examples.RESULT, peer="arena-1"),
    answer=Outcome({"match": "m-1"}, 1204),
    errors=(Code.INVALID, Code.CONFLICT, Code.NOT_FOUND),
)
async def record(call: Call, body: RecordMatch) -> Outcome:
    """Counted once by its match id; a repeat with the same content is answered like the first."""
    return await carry_out(call, body)


class Voiding(Struct, frozen=True, forbid_unknown_fields=True):
    match_id: Id
    reason: Short


@route(
    "POST",
    "/elo/void",
    "Take a match out of the ratings",
    scope=Scope.ADMIN,
    example=Voiding("m-1", "its engine was broken"),
    answer=Outcome(True, 1204),
    errors=(Code.NOT_FOUND,),
)
async def void(call: Call, body: Voiding) -> Outcome:
    """Exactly its games leave the sums. `result` is false when it was void already."""
    return await carry_out(call, VoidMatch(match=body.match_id, reason=body.reason))
