"""The commands in one application, and what their failures look like."""

from __future__ import annotations

import typer

from ringrift_cluster.cli import serve

app = typer.Typer(
    name="ringrift-node",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="A Raft-replicated control plane for a selfplay and training fleet.",
)
app.command("serve")(serve.serve)
app.command("dev")(serve.dev)


def run() -> None:
    """Run the command line; exits the process."""
    app()
