"""Evaluations of a candidate against its champion."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from ringrift_cluster.api import examples
from ringrift_cluster.api.endpoint import Call, Routes
from ringrift_cluster.api.problems import Problem
from ringrift_cluster.api.views import Cursor, look, scan
from ringrift_cluster.api.writes import Outcome, carry_out
from statemachine import queries
from statemachine.commands import StartGauntlet
from statemachine.errors import Code
from statemachine.rows import Gauntlet, GauntletStatus
from statemachine.settings import Gate
from statemachine.state import State
from statemachine.values import Digest, GauntletId, Id, Scope

route = Routes("gauntlets", "Sequential tests that decide promotions.")


class Thoroughness(StrEnum):
    #: at most 20 games, fast feedback
    QUICK = "quick"
    #: at most 50 games
    STANDARD = "standard"
    #: at most 100 games
    THOROUGH = "thorough"


CAP_GAMES = {Thoroughness.QUICK: 20, Thoroughness.STANDARD: 50, Thoroughness.THOROUGH: 100}


class GauntletRun(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is left out comes from the config's gate: the newest candidate, the champion, the bounds."""

    config: Id
    gauntlet_id: GauntletId | None = None
    mode: Thoroughness = Thoroughness.STANDARD
    model: Digest | None = None
    #: a participant: "<sha256>@<harness>", or a baseline such as "random"
    opponent: Id | None = None
    #: instead of the mode's cap; raised to the config's `floor_games` where it is below
    cap_games: Annotated[int, Meta(ge=2, le=10**6)] | None = None


def to_command(state: State, body: GauntletRun, name: str) -> StartGauntlet:
    """The test that `body` asks for, completed from the settings, or what is missing."""
    config = state.config(body.config)
    if config is None:
        raise Problem(Code.NOT_FOUND, f"no setting config/{body.config} exists; add it before running gauntlets")
    gate: Gate = config.gate
    waiting = queries.candidates(state, body.config)
    model = body.model or (waiting[-1] if waiting else None)
    if model is None:
        raise Problem(Code.NOT_FOUND, f"config {body.config} has no candidate that waits for a verdict; name a model")
    champion = queries.champion(state, body.config)
    opponent = body.opponent or (f"{champion}@{gate.harness}" if champion else "")
    if not opponent:
        raise Problem(Code.CONFLICT, f"config {body.config} has no champion; name an opponent")
    # A shorter test would promote on less evidence than the config asks for.
    cap = max(body.cap_games or CAP_GAMES[body.mode], gate.floor_games)
    return StartGauntlet(
        gauntlet=name,
        config=body.config,
        candidate=model,
        opponent=opponent,
        baselines=gate.baselines,
        elo0=gate.elo0,
        elo1=gate.elo1,
        alpha_milli=gate.alpha_milli,
        beta_milli=gate.beta_milli,
        floor_games=gate.floor_games,
        cap_games=cap,
        baseline_games=min(gate.baseline_games, cap),
    )


@route(
    "POST",
    "/gauntlet/run",
    "Test a candidate",
    scope=Scope.SUBMIT,
    example=GauntletRun(config="hex8_2p", mode=Thoroughness.STANDARD, gauntlet_id="g-2"),
    answer=Outcome({"gauntlet": "g-2", "status": "running"}, 1204),
    errors=(Code.NOT_FOUND, Code.CONFLICT, Code.INVALID),
)
async def run(call: Call, body: GauntletRun) -> Outcome:
    """`quick` plays at most 20 games, `standard` 50, `thorough` 100, but never fewer than the config's floor allows.

    The test may end sooner, from `gate.floor_games` games on.
    """
    name = body.gauntlet_id or call.header(b"request-id") or f"gauntlet-{call.services.new_id()}"
    return await carry_out(call, await look(call, lambda state: to_command(state, body, name)))


class GauntletFilter(Cursor, frozen=True, kw_only=True):
    config: Annotated[str, Meta(max_length=64, description="Only gauntlets of this game config.")] = ""
    status: Annotated[
        str, Meta(max_length=16, description="running, accepted, rejected, inconclusive or abandoned.")
    ] = ""


class GauntletList(Struct, frozen=True):
    gauntlets: list[Gauntlet]
    next: str


@route(
    "GET",
    "/gauntlet/results",
    "Gauntlets, newest first",
    scope=Scope.READ,
    answer=GauntletList([examples.GAUNTLET], ""),
    errors=(Code.INVALID,),
)
async def results(call: Call, query: GauntletFilter) -> GauntletList:
    if query.status and query.status not in set(GauntletStatus):
        raise Problem(Code.INVALID, f"no status is called {query.status!r}; they are {', '.join(GauntletStatus)}")

    def ask(state: State) -> GauntletList:
        return GauntletList(
            *scan(
                state.gauntlets,
                query,
                lambda row: query.config in ("", row.spec.config) and query.status in ("", row.status),
            )
        )

    return await look(call, ask, query)
