"""Tokens: make, list, revoke."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import RenderableType
from typer import Argument, Option

from ringrift_cluster.api.tokens import Made, NewToken, TokenList
from ringrift_cluster.cli.call import Call, asks
from ringrift_cluster.cli.cluster import said
from ringrift_cluster.cli.options import EXIT_USAGE, Reason, fail
from ringrift_cluster.cli.output import span, table
from statemachine.values import Scope

app = typer.Typer(no_args_is_help=True, help="Who may do what. Needs a token of scope admin, or the configured one.")


@app.command("create")
@asks
def create(
    call: Call,
    name: Annotated[str, Argument(help="What it is called in lists and in the events of its acts.")],
    scope: Annotated[
        Scope,
        Option(
            help="read: every question. submit: and the queue. node: what one node sends. admin: everything. "
            "join: buying a node's token, nothing else."
        ),
    ] = Scope.READ,
    node: Annotated[str, Option("--node", help="With --scope node: the node it speaks for.")] = "",
    expires_s: Annotated[float, Option(help="Seconds until it expires; 0 is never.", min=0)] = 0,
    uses: Annotated[int, Option(help="With --scope join: how many nodes it lets in; 0 is any number.", min=0)] = 0,
    out: Annotated[
        Path | None, Option("--out", help="Write the secret into this new file, for its owner alone.")
    ] = None,
) -> None:
    """Make a token and show its secret, this once."""
    wanted = NewToken(name=name, scope=scope, node_id=node, expires_seconds=expires_s, uses=uses)
    with call.client() as client:
        if out is None:
            call.emit(client.token_create(wanted), _made_lines)
            return
        try:
            file = os.open(out.expanduser(), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise fail(f"{out} cannot be made ({error.strerror}); give --out a new file.", EXIT_USAGE) from error
        made = None
        try:
            made = client.token_create(wanted)
            os.write(file, f"{made.secret}\n".encode())
        finally:
            os.close(file)
            if made is None:
                out.expanduser().unlink()
        call.emit(msgspec.structs.replace(made, secret=""), lambda value: [*_about(value), f"its secret is in {out}"])


def _about(value: Made) -> Iterable[str]:
    yield f"token {value.name} of scope {value.scope} is made (entry {value.index})"


def _made_lines(value: Made) -> Iterable[RenderableType]:
    yield from _about(value)
    yield "its secret, shown this once:"
    yield value.secret


@app.command("list")
@asks
def listing(call: Call) -> None:
    """All tokens; those that are over stay for a week."""
    with call.client() as client:
        call.emit(client.tokens(), _token_lines)


def _token_lines(value: TokenList) -> Iterable[RenderableType]:
    def left(expires_at_ms: int) -> str:
        return span(expires_at_ms - value.clock_ms) if expires_at_ms else "never"

    yield table(
        ["token", "scope", "node", "expires in ", "uses ", "bought with", "over"],
        (
            [
                row.name,
                row.scope,
                row.node_id,
                "-" if row.ended else left(row.expires_at_ms),
                f"{row.used} of {row.uses or 'any'}" if row.scope == Scope.JOIN else "",
                row.bought_with,
                row.ended,
            ]
            for row in value.tokens
        ),
    )
    yield f"{value.total} tokens"


@app.command("revoke")
@asks
def revoke(
    call: Call,
    name: Annotated[str, Argument(help="The token; a node's own is called node:ID.")],
    reason: Reason = "",
) -> None:
    """End a token at once."""
    with call.client() as client:
        outcome = client.token_revoke(name, reason)
        call.emit(outcome, said(f"token {name} is over"))
        if call.as_json:
            return
        rows = {row.name: row for row in client.tokens().tokens}
        bought = rows[name].bought_with if name in rows else ""
        if bought in rows and not rows[bought].ended:
            # A node that still has the join token would be let in again with it.
            typer.echo(
                f"it was bought with {bought}, which is still good: revoke {bought} too, or its holder comes back"
            )
