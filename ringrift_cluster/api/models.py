"""Models, their champions, an operator's own choice, and the way back."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from ringrift_cluster.api import examples
from ringrift_cluster.api.endpoint import Call, Routes
from ringrift_cluster.api.problems import Problem
from ringrift_cluster.api.views import Cursor, View, look, scan
from ringrift_cluster.api.writes import Outcome, Requested, carry_out_once
from statemachine.commands import PromoteModel, RollbackModel
from statemachine.errors import Code
from statemachine.rows import Gauntlet, Model, ModelStatus
from statemachine.state import State
from statemachine.values import Digest, Evidence, Id, Scope, Short

route = Routes("models", "Trained networks: candidates, champions, former champions.")


class ModelFilter(Cursor, frozen=True, kw_only=True):
    config: Annotated[str, Meta(max_length=64, description="Only models of this game config.")] = ""
    status: Annotated[str, Meta(max_length=16, description="candidate, champion, former or rejected.")] = ""


class ModelList(Struct, frozen=True):
    models: list[Model]
    #: config to digest
    champions: dict[str, str]
    next: str


@route(
    "GET",
    "/models",
    "Models, newest first",
    scope=Scope.READ,
    answer=ModelList([examples.MODEL], {"hex8_2p": examples.CHAMPION}, ""),
    errors=(Code.INVALID,),
)
async def listing(call: Call, query: ModelFilter) -> ModelList:
    if query.status and query.status not in set(ModelStatus):
        raise Problem(Code.INVALID, f"no status is called {query.status!r}; they are {', '.join(ModelStatus)}")

    def ask(state: State) -> ModelList:
        rows, after = scan(
            state.models,
            query,
            lambda row: query.config in ("", row.config) and query.status in ("", row.status),
        )
        return ModelList(rows, dict(state.index.champions), after)

    return await look(call, ask, query)


class ModelView(Struct, frozen=True):
    """A model and the gauntlets it was the candidate of."""

    model: Model
    gauntlets: list[Gauntlet]


@route(
    "GET",
    "/models/{digest}",
    "One model and its gauntlets",
    scope=Scope.READ,
    answer=ModelView(examples.MODEL, []),
    errors=(Code.NOT_FOUND,),
)
async def show(call: Call, digest: str, query: View) -> ModelView:
    def ask(state: State) -> ModelView:
        row = state.models.get(digest)
        if row is None:
            raise Problem(Code.NOT_FOUND, f"no model {digest!r} is known; give the whole sha256")
        return ModelView(row, [g for g in state.gauntlets.values() if g.spec.candidate == digest])

    return await look(call, ask, query)


class Promotion(Requested, frozen=True, kw_only=True):
    """`model` is a candidate; `previous` guards against a champion that has changed meanwhile."""

    config: Id
    model: Digest
    reason: Short
    #: the present champion, as the caller saw it; looked up when left out
    previous: Digest | None = None


@route(
    "POST",
    "/models/promote",
    "Make a candidate the champion",
    scope=Scope.ADMIN,
    example=Promotion(config="hex8_2p", model=examples.DIGEST, reason="wins in the arena", previous=examples.CHAMPION),
    answer=Outcome({"model": examples.DIGEST, "previous": examples.CHAMPION}, 1204),
    errors=(Code.NOT_FOUND, Code.CONFLICT, Code.ILLEGAL_TRANSITION, Code.EVIDENCE),
)
async def promote(call: Call, body: Promotion) -> Outcome:
    """The reason is kept as the evidence. Without it a candidate is promoted when a gauntlet accepts it."""
    evidence = Evidence(kind="operator", note=body.reason)
    previous = body.previous or await _champion(call, body.config)
    command = PromoteModel(config=body.config, model=body.model, previous=previous, evidence=evidence)
    return await carry_out_once(call, command, body.request_id)


class Rollback(Promotion, frozen=True, kw_only=True):
    """`model` is a former champion; `previous` guards against a champion that has changed meanwhile."""


@route(
    "POST",
    "/models/rollback",
    "Put a former champion back",
    scope=Scope.ADMIN,
    example=Rollback(config="hex8_2p", model=examples.DIGEST, reason="loses to random", previous=examples.CHAMPION),
    answer=Outcome({"model": examples.DIGEST, "previous": examples.CHAMPION}, 1204),
    errors=(Code.NOT_FOUND, Code.CONFLICT, Code.ILLEGAL_TRANSITION),
)
async def rollback(call: Call, body: Rollback) -> Outcome:
    previous = body.previous or await _champion(call, body.config)
    if not previous:
        raise Problem(Code.NOT_FOUND, f"config {body.config!r} has no champion to roll back from")
    command = RollbackModel(config=body.config, model=body.model, previous=previous, reason=body.reason)
    return await carry_out_once(call, command, body.request_id)


async def _champion(call: Call, config: str) -> str:
    """The digest of a config's champion, or an empty text."""
    return await look(call, lambda state: state.index.champions.get(config, ""))
