"""What has been learnt: ratings, models, gauntlets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer
from rich.console import RenderableType
from typer import Argument, Option

from ringrift_cluster.api.elo import RankingQuery, RankingTable
from ringrift_cluster.api.gauntlets import GauntletFilter, GauntletList, GauntletRun, Thoroughness
from ringrift_cluster.api.models import ModelFilter, ModelList
from ringrift_cluster.cli.call import Call, asks
from ringrift_cluster.cli.cluster import said
from ringrift_cluster.cli.options import Config, Limit, OfConfig, Reason
from ringrift_cluster.cli.output import short, table
from statemachine.rows import Gauntlet

models_app = typer.Typer(help="Trained networks; promote one, or go back.")
matches_app = typer.Typer(no_args_is_help=True, help="Counted matches.")
gauntlet_app = typer.Typer(no_args_is_help=True, help="Tests of a candidate against its champion.")


@asks
def elo(
    call: Call,
    config: Annotated[str, Argument(help="A game config; all of them when left out.")] = "",
) -> None:
    """Ratings, best first."""
    with call.client() as client:
        call.emit(client.elo(RankingQuery(config=config)), _rated)


def _rated(value: RankingTable) -> Iterable[RenderableType]:
    if not value.configs:
        yield "no game config is known yet"
    for config, rows in sorted(value.configs.items()):
        yield config
        yield table(
            ["elo ", "+/- ", "games ", "won ", "lost ", "drawn ", "player", "generation ", "status"],
            (
                [
                    f"{row.elo:.0f}",
                    f"{row.stderr:.0f}",
                    row.games,
                    row.wins,
                    row.losses,
                    row.draws,
                    short(row.participant),
                    row.generation if row.model else "",
                    row.status if row.anchored else f"{row.status} not comparable".strip(),
                ]
                for row in rows
            ),
        )


@models_app.callback(invoke_without_command=True)
@asks
def models(
    call: Call,
    context: typer.Context,
    config: OfConfig = "",
    status: Annotated[str, Option(help="candidate, champion, former or rejected.")] = "",
    limit: Limit = 50,
) -> None:
    """Trained networks, newest first."""
    if context.invoked_subcommand is not None:
        return
    with call.client() as client:
        call.emit(client.models(ModelFilter(config=config, status=status, limit=limit)), _modelled)


def _modelled(value: ModelList) -> Iterable[RenderableType]:
    yield table(
        ["model", "config", "generation ", "status", "parent", "evidence"],
        (
            [
                row.digest,
                row.config,
                row.generation,
                row.status,
                short(row.parent),
                f"{row.evidence.kind} {row.evidence.gauntlet} {row.evidence.games} games" if row.evidence else "",
            ]
            for row in value.models
        ),
    )


@models_app.command("promote")
@asks
def promote(
    call: Call,
    config: Config,
    model: Annotated[str, Argument(help="A candidate: its whole sha256.")],
    reason: Reason,
) -> None:
    """Make a candidate the champion without waiting for a gauntlet."""
    with call.client() as client:
        call.emit(client.promote(config, model, reason), said(f"{short(model)} is the champion of {config}"))


@models_app.command("rollback")
@asks
def rollback(
    call: Call,
    config: Config,
    model: Annotated[str, Argument(help="A former champion: its whole sha256.")],
    reason: Reason,
) -> None:
    """Make a former champion the champion again."""
    with call.client() as client:
        call.emit(client.rollback(config, model, reason), said(f"{short(model)} is the champion of {config}"))


@matches_app.callback()
def _matches() -> None:
    """Keeps `matches void` two words."""


@matches_app.command("void")
@asks
def void(call: Call, match: Annotated[str, Argument(help="The match's id.")], reason: Reason) -> None:
    """Take a match out of the ratings; voiding it again changes nothing."""
    with call.client() as client:
        call.emit(client.void_match(match, reason), said(f"match {match} is out of the ratings"))


@gauntlet_app.command("run")
@asks
def run(
    call: Call,
    config: Config,
    mode: Annotated[
        Thoroughness, Option(help="At most 20, 50 or 100 games; the config's floor if more.")
    ] = Thoroughness.STANDARD,
    model: Annotated[str | None, Option(help="The candidate's digest; else the newest that waits.")] = None,
    opponent: Annotated[str | None, Option(help="Another opponent than the champion.")] = None,
    gauntlet_id: Annotated[str | None, Option("--id", help="Its id; running it again starts no second.")] = None,
) -> None:
    """Test a candidate against the champion."""
    wanted = GauntletRun(config=config, mode=mode, model=model, opponent=opponent, gauntlet_id=gauntlet_id)
    with call.client() as client:
        call.emit(client.gauntlet_run(wanted), said(f"a gauntlet of {config} is on"))


@gauntlet_app.command("results")
@asks
def results(
    call: Call,
    config: OfConfig = "",
    status: Annotated[str, Option(help="running, accepted, rejected, inconclusive or abandoned.")] = "",
    limit: Limit = 50,
) -> None:
    """Gauntlets, newest first."""
    with call.client() as client:
        call.emit(client.gauntlet_results(GauntletFilter(config=config, status=status, limit=limit)), _judged)


def _judged(value: GauntletList) -> Iterable[RenderableType]:
    yield table(
        ["gauntlet", "config", "status", "candidate", "opponent", "games ", "won-drawn-lost", "llr "],
        (
            [
                row.spec.gauntlet,
                row.spec.config,
                row.status,
                short(row.spec.candidate),
                short(row.spec.opponent),
                sum(t.games for t in row.tally),
                _score(row),
                f"{row.evidence.llr_milli / 1000:.2f}" if row.evidence else "",
            ]
            for row in value.gauntlets
        ),
    )


def _score(row: Gauntlet) -> str:
    won, drawn, lost = (sum(getattr(t, name) for t in row.tally) for name in ("wins_a", "draws", "wins_b"))
    return f"{won}-{drawn}-{lost}"
