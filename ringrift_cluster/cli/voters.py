"""Who votes: list, add, remove."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Annotated

import typer
from rich.console import RenderableType
from typer import Argument, Option

from ringrift_cluster.api.voters import VoterList, VotersChanged
from ringrift_cluster.cli.call import Call, asks
from ringrift_cluster.cli.output import span, table

app = typer.Typer(no_args_is_help=True, help="Who votes; changed one voter at a time.")

Request = Annotated[str, Option("--request-id", help="Repeat an earlier call under its id; it takes effect once.")]


@app.command("list")
@asks
def list_(call: Call) -> None:
    """The voters, with how far each one is."""
    with call.client() as client:
        call.emit(client.voters(), lines)


def lines(value: VoterList) -> Iterable[RenderableType]:
    yield table(
        ["voter", "role", "state", "match ", "lag ", "answered", "raft", "http", "log", "note"],
        (
            [
                row.node_id,
                row.role,
                row.state,
                row.match or "-",
                row.lag,
                f"{span(row.silent_ms)} ago" if row.state != "unknown" else "-",
                row.raft_address or "-",
                row.address or "-",
                row.log_id[:12] or "-",
                row.detail,
            ]
            for row in value.voters
        ),
    )
    yield f"leader {value.leader_id or 'none known'}; decided by entry {value.index}"


@app.command()
@asks
def add(
    call: Call,
    node_id: Annotated[str, Argument(help="A follower that runs, is caught up and reachable on its raft port.")],
    request_id: Request = "",
) -> None:
    """Make a follower a voter: it catches up first, then it counts. Of a voter that moved, write its address down."""
    with call.client() as client:
        call.emit(client.add_voter(node_id, request_id or uuid.uuid4().hex), changed)


@app.command()
@asks
def remove(
    call: Call,
    node_id: Annotated[str, Argument(help="A voter. A leader hands over first.")],
    request_id: Request = "",
) -> None:
    """Let a voter vote no longer; it goes on as a follower, and its log is set aside."""
    with call.client() as client:
        call.emit(client.remove_voter(node_id, request_id or uuid.uuid4().hex), changed)


def changed(value: VotersChanged) -> Iterable[RenderableType]:
    yield f"voters from entry {value.index} on: {', '.join(value.voters)}"
    if value.warning:
        yield f"! {value.warning}"
