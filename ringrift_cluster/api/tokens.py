"""Tokens: made, listed, revoked; and the one way in for a new node."""

from __future__ import annotations

import hashlib
import secrets
from typing import Annotated

from msgspec import Meta, Struct

from ringrift_cluster.api import examples
from ringrift_cluster.api.endpoint import Call, Routes
from ringrift_cluster.api.problems import Problem
from ringrift_cluster.api.views import Page, look
from ringrift_cluster.api.writes import Outcome, carry_out
from statemachine.commands import CreateToken, RedeemToken, RevokeToken
from statemachine.errors import Code
from statemachine.rows import Token
from statemachine.state import State
from statemachine.tokens import name_of
from statemachine.values import Count, Digest, Id, Scope, Short, TokenName

route = Routes("tokens", "Who may do what. A token's secret is shown once; the log knows its hash.")

#: makes a secret recognisable where it was pasted by mistake
PREFIX = "rrt_"


def fresh_secret() -> str:
    """256 random bits as text."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class TokenView(Struct, frozen=True):
    """A token without anything of its secret. `ended` says why it is over; times are of the cluster clock."""

    name: str
    scope: Scope
    node_id: str
    created_at_ms: int
    expires_at_ms: int
    bought_with: str
    uses: int
    used: int
    ended: str


class TokenList(Struct, frozen=True):
    tokens: list[TokenView]
    total: int
    clock_ms: int


def view_of(row: Token) -> TokenView:
    return TokenView(
        row.name,
        row.scope,
        row.peer,
        row.created_at_ms,
        row.expires_at_ms,
        row.bought_with,
        row.uses,
        row.used,
        row.ended,
    )


EXAMPLE = TokenView("grafana", Scope.READ, "", 61_000, 0, "", 0, 0, "")


@route("GET", "/tokens", "All tokens", scope=Scope.ADMIN, answer=TokenList([EXAMPLE], 1, 61_000))
async def listing(call: Call, query: Page) -> TokenList:
    """Those that are over stay for a week. The configured token, which is the root of all, is not among them."""

    def ask(state: State) -> TokenList:
        rows = [row for _, row in sorted(state.tokens.items())]
        return TokenList([view_of(row) for row in rows[: query.limit]], len(rows), state.now_ms)

    return await look(call, ask, query)


class NewToken(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: TokenName
    scope: Scope
    #: the node that a token of scope node speaks for
    node_id: Annotated[str, Meta(max_length=128)] = ""
    #: 0 is for ever
    expires_seconds: Annotated[float, Meta(ge=0, le=10**9)] = 0.0
    #: how many nodes a join token may let in; 0 is any number
    uses: Count = 0
    #: of a secret that the client drew itself (256 random bits at least); without it one is drawn here
    sha256: Digest | None = None


class Made(Struct, frozen=True):
    """`secret` is shown this once; it is empty when the client drew it."""

    name: str
    scope: Scope
    secret: str
    expires_at_ms: int
    index: int


@route(
    "POST",
    "/tokens",
    "Make a token",
    scope=Scope.ADMIN,
    example=NewToken(name="grafana", scope=Scope.READ),
    answer=Made("grafana", Scope.READ, "", 0, 1204),
    errors=(Code.INVALID, Code.CONFLICT, Code.LIMIT),
)
async def make(call: Call, body: NewToken) -> Made:
    """The secret of the answer is in no log. An answer that was lost is lost: revoke the token, make another."""
    secret = "" if body.sha256 else fresh_secret()
    command = CreateToken(
        name=body.name,
        scope=body.scope,
        sha256=body.sha256 or hash_of(secret),
        peer=body.node_id,
        expires_in_ms=round(body.expires_seconds * 1000),
        uses=body.uses,
    )
    outcome = await carry_out(call, command)
    return Made(body.name, body.scope, secret, int(outcome.result["expires_at_ms"]), outcome.index)


class Revocation(Struct, frozen=True, forbid_unknown_fields=True):
    name: TokenName
    reason: Short = ""


@route(
    "POST",
    "/tokens/revoke",
    "End a token at once",
    scope=Scope.ADMIN,
    example=Revocation("grafana", "it was in a screenshot"),
    answer=Outcome(True, 1204),
    errors=(Code.NOT_FOUND,),
)
async def revoke(call: Call, body: Revocation) -> Outcome:
    """Every node refuses it as soon as it has applied the answer's index. False: it was over already."""
    return await carry_out(call, RevokeToken(name=body.name, reason=body.reason))


class Joining(Struct, frozen=True, forbid_unknown_fields=True):
    """`sha256` is of the secret that the node drew and keeps: it never leaves the node but as its token."""

    node_id: Id
    sha256: Digest


class Joined(Struct, frozen=True):
    name: str
    index: int


@route(
    "POST",
    "/tokens/join",
    "Trade a join token for a node's own",
    scope=Scope.JOIN,
    example=Joining("gpu-1", examples.DIGEST),
    answer=Joined("node:gpu-1", 1204),
    errors=(Code.NOT_FOUND, Code.CONFLICT, Code.ILLEGAL_TRANSITION, Code.INVALID, Code.LIMIT),
)
async def join(call: Call, body: Joining) -> Joined:
    """Sent to a voter, with the join token as the bearer. A repeat with the same hash takes no second use."""
    if call.caller.scope is not Scope.JOIN:
        said = f"token {call.caller.name!r} is none" if call.caller.name else "no token is asked for here"
        raise Problem(Code.INVALID, f"a node joins with a join token, and {said}")
    outcome = await carry_out(call, RedeemToken(join=call.caller.name, peer=body.node_id, sha256=body.sha256))
    return Joined(name_of(body.node_id), outcome.index)
