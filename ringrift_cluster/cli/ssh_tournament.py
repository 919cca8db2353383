"""Tournaments on hosts without an agent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer
from rich.console import RenderableType
from typer import Argument, Option

from ringrift_cluster.api.ssh_results import SshTournament
from ringrift_cluster.api.ssh_tournaments import SshTournamentCancelled, SshTournamentRun, SshTournamentStarted
from ringrift_cluster.cli.call import Call, asks
from ringrift_cluster.cli.options import Reason
from ringrift_cluster.cli.output import table

app = typer.Typer(no_args_is_help=True, help="Tournaments on hosts with only an SSH server.")


@app.command("run")
@asks
def run(
    call: Call,
    run_id: Annotated[str, Argument(help="Its name; the same run again adds nothing.")],
    board: Annotated[str, Option(help="The board, such as square8.")],
    tiers: Annotated[str, Option(help="Who plays: D1-D6, or names separated by commas.")],
    num_players: Annotated[int, Option(help="Seats in a game.", min=2, max=8)] = 2,
    hosts: Annotated[str, Option(help="Hosts, separated by commas; all when left out.")] = "",
    games_per_matchup: Annotated[int, Option(help="Games of each pair.", min=1)] = 50,
    games_per_shard: Annotated[int, Option(help="Games of one item; 0: a pair is one item.", min=0)] = 0,
    seed: Annotated[int, Option(help="The first item's seed; each has another one.", min=0)] = 1,
    job_timeout_sec: Annotated[float, Option(help="How long an attempt may run.")] = 21_600.0,
    retries: Annotated[int, Option(help="Tries after the first one.", min=0, max=99)] = 3,
    template: Annotated[str, Option(help="How a pair is played on a host.")] = "tournament",
    param: Annotated[list[str] | None, Option("--param", "-p", help="A further parameter: name=value.")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Show the items and add nothing.")] = False,
) -> None:
    """Let every pair of participants play on hosts."""
    given = [one.partition("=") for one in param or ()]
    if any(not equals for _, equals, _ in given):
        raise typer.BadParameter("a parameter is name=value")
    wanted = SshTournamentRun(
        run_id=run_id,
        board=board,
        num_players=num_players,
        tiers=tiers,
        hosts=tuple(name.strip() for name in hosts.split(",") if name.strip()),
        games_per_matchup=games_per_matchup,
        games_per_shard=games_per_shard,
        seed=seed,
        job_timeout_sec=job_timeout_sec,
        retries=retries,
        template=template,
        params={name: value for name, _, value in given},
        dry_run=dry_run,
    )
    with call.client() as client:
        call.emit(client.ssh_tournament_run(wanted), _started)


def _started(value: SshTournamentStarted) -> Iterable[RenderableType]:
    games = sum(item.games for item in value.items)
    yield f"{value.run_id} {value.status}: {value.matchups} pairs, {games} games in {len(value.items)} items"
    yield f"hosts: {', '.join(value.hosts)}"
    if value.status == "planned":
        yield table(["item", "a", "b", "games "], ([i.work_id, i.a, i.b, i.games] for i in value.items))


@app.command("status")
@asks
def status(call: Call, run_id: Annotated[str, Argument(help="The run's name.")]) -> None:
    """Show how far a run is, what its items wait for, and who won."""
    with call.client() as client:
        call.emit(client.ssh_tournament_status(run_id), _told)


def _told(value: SshTournament) -> Iterable[RenderableType]:
    yield (
        f"{value.run_id} is {value.status}: {value.items_done} of {value.items_total} items, "
        f"{value.games_done} of {value.games_total} games"
    )
    yield table(
        ["participant", "points ", "won ", "drawn ", "lost ", "games "],
        ([s.participant, f"{s.points:g}", s.wins, s.draws, s.losses, s.games] for s in value.standings),
    )
    yield table(
        ["item", "pair", "status", "host", "tries ", "reason"],
        ([i.work_id, f"{i.a} {i.b}", i.status, i.host, i.attempts, i.reason] for i in value.items),
    )


@app.command("cancel")
@asks
def cancel(call: Call, run_id: Annotated[str, Argument(help="The run's name.")], reason: Reason = "") -> None:
    """End a run: what waits is cancelled, what runs is told to stop, what was counted stays."""
    with call.client() as client:
        call.emit(client.ssh_tournament_cancel(run_id, reason), _ended)


def _ended(value: SshTournamentCancelled) -> Iterable[RenderableType]:
    ended = f"{value.cancelled} items cancelled, {value.stopping} of them stop on a host"
    yield f"{value.run_id} is {value.status}: {ended}"
