"""The commands in one application, and what their failures look like."""

from __future__ import annotations

from typing import Annotated

import typer

from ringrift_cluster import __version__
from ringrift_cluster.cli import (
    artifacts,
    backup,
    certs,
    cluster,
    drains,
    gpus,
    learning,
    raft,
    serve,
    ssh_tournament,
    state,
    tokens,
    voters,
    work,
    workload,
)
from ringrift_cluster.cli.options import EXIT_CODES

app = typer.Typer(
    name="ringrift-node",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="A Raft-replicated control plane for a selfplay and training fleet.",
    epilog=EXIT_CODES,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ringrift-cluster {__version__}")
        raise typer.Exit


@app.callback()
def _any(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the release and exit.")
    ] = False,
) -> None:
    """What stands before a command."""


app.command("serve")(serve.serve)
app.command("dev")(serve.dev)
app.command("backup")(backup.backup)
app.command("restore")(backup.restore)
for command in (
    cluster.status,
    cluster.peers,
    cluster.leader,
    drains.drain,
    drains.undrain,
    drains.retire,
    cluster.pause,
    cluster.resume,
    cluster.shutdown,
    cluster.restart,
    cluster.channels,
    cluster.events,
    work.jobs,
    work.logs,
    learning.elo,
):
    app.command(command.__name__)(command)
app.add_typer(work.app, name="work")
app.add_typer(workload.app, name="workload")
app.add_typer(learning.models_app, name="models")
app.add_typer(learning.matches_app, name="matches")
app.add_typer(learning.gauntlet_app, name="gauntlet")
app.add_typer(ssh_tournament.app, name="ssh-tournament")
app.add_typer(cluster.settings_app, name="settings")
app.add_typer(tokens.app, name="token")
app.add_typer(certs.app, name="certs")
app.add_typer(state.app, name="state")
app.add_typer(raft.app, name="raft")
app.add_typer(voters.app, name="voters")
app.add_typer(gpus.app, name="gpus")
app.add_typer(artifacts.app, name="artifacts")


def run() -> None:
    """Run the command line; exits the process."""
    app()
