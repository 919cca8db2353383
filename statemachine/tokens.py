"""Tokens: who may do what, until when. Secrets are made by whoever keeps them; the law knows their sha256.

    good -> over       revoked by an operator, expired by the clock, or its node was removed
    over -> forgotten  after the retention; until then its use is refused with the reason

A secret is 256 random bits, so the plain hash tells nothing that could be guessed from it, and needs no salt.
"""

from __future__ import annotations

from statemachine.commands import CreateToken, RedeemToken, RevokeToken
from statemachine.errors import Code, Refused
from statemachine.rows import Token
from statemachine.state import Txn
from statemachine.values import Scope

#: the configured token, which is not a row
ROOT = "root"
#: what a token of each scope is good for
GRANTS: dict[Scope, frozenset[Scope]] = {
    Scope.READ: frozenset({Scope.READ}),
    Scope.SUBMIT: frozenset({Scope.READ, Scope.SUBMIT}),
    Scope.NODE: frozenset({Scope.READ, Scope.NODE}),
    Scope.ADMIN: frozenset(Scope),
    Scope.JOIN: frozenset({Scope.JOIN}),
}


def name_of(peer: str) -> str:
    """What the token of a node is called."""
    return f"node:{peer}"


def create(txn: Txn, cmd: CreateToken) -> dict[str, str | int]:
    """Make a token; the same one again is no second one, and its expiry stays."""
    if cmd.name == ROOT:
        raise Refused(Code.INVALID, f"{ROOT!r} is the token of the nodes' own settings; choose another name")
    if (cmd.scope is Scope.NODE) != bool(cmd.peer):
        raise Refused(Code.INVALID, f"token {cmd.name!r}: a token of scope node, and no other, is bound to a node")
    if cmd.uses and cmd.scope is not Scope.JOIN:
        raise Refused(Code.INVALID, f"token {cmd.name!r}: only a token of scope join counts its uses")
    expires = txn.now_ms + cmd.expires_in_ms if cmd.expires_in_ms else 0
    row = Token(cmd.name, cmd.scope, cmd.sha256, txn.now_ms, expires, cmd.peer, uses=cmd.uses)
    return _put(txn, row)


def _put(txn: Txn, row: Token) -> dict[str, str | int]:
    """Write a new token, unless it is there already. Raises Refused."""
    old = txn.tokens.get(row.name)
    if old is not None and not old.ended:
        asked = (row.scope, row.sha256, row.peer, row.uses, row.bought_with)
        if (old.scope, old.sha256, old.peer, old.uses, old.bought_with) != asked:
            raise Refused(Code.CONFLICT, f"a token {row.name!r} exists; revoke it first, or choose another name")
        return {"name": old.name, "expires_at_ms": old.expires_at_ms}
    if row.sha256 in txn.state.index.tokens:
        raise Refused(Code.CONFLICT, f"the secret of token {row.name!r} is that of another token; draw a new one")
    if len(txn.tokens) >= txn.state.limits.tokens:
        raise Refused(Code.LIMIT, f"{len(txn.tokens)} tokens are kept; revoke some, or raise limits.tokens")
    txn.tokens.put(row.name, row)
    txn.emit("TokenCreated", row.name, scope=row.scope, peer=row.peer, bought_with=row.bought_with)
    return {"name": row.name, "expires_at_ms": row.expires_at_ms}


def revoke(txn: Txn, cmd: RevokeToken) -> bool:
    """End a token; False when it was over already."""
    row = txn.tokens.require(cmd.name)
    if row.ended:
        return False
    _end(txn, row, f"revoked: {cmd.reason}" if cmd.reason else "revoked")
    return True


def redeem(txn: Txn, cmd: RedeemToken) -> dict[str, str | int]:
    """Let a node in: one use of the join token becomes the node's own token. A repeat takes no second use."""
    join = txn.tokens.require(cmd.join)
    if join.scope is not Scope.JOIN or join.ended:
        raise Refused(
            Code.ILLEGAL_TRANSITION, f"token {cmd.join!r} lets no node in: {join.ended or 'it is no join token'}"
        )
    name = name_of(cmd.peer)
    own = txn.tokens.get(name)
    if own is not None and not own.ended:
        if (own.sha256, own.bought_with) == (cmd.sha256, cmd.join):
            return {"name": name, "expires_at_ms": own.expires_at_ms}
        raise Refused(
            Code.CONFLICT,
            f"node {cmd.peer!r} has a token already; an operator revokes {name!r} before it may join anew",
        )
    peer = txn.peers.get(cmd.peer)
    votes = any(voter.node == cmd.peer for voter in txn.state.voters.voters)
    if votes or (peer is not None and peer.role == "voter"):
        raise Refused(Code.CONFLICT, f"{cmd.peer!r} is a voter, which no join token lets in; choose another node id")
    if join.uses and join.used >= join.uses:
        raise Refused(
            Code.ILLEGAL_TRANSITION, f"join token {cmd.join!r} has let in {join.used} nodes, as many as it may"
        )
    txn.tokens.change(join.name, used=join.used + 1)
    return _put(txn, Token(name, Scope.NODE, cmd.sha256, txn.now_ms, 0, cmd.peer, bought_with=cmd.join))


def end_of(txn: Txn, peer: str, reason: str) -> None:
    """End every token that speaks for a node."""
    for name, known in txn.state.tokens.items():
        if known.peer == peer and not known.ended:
            _end(txn, txn.tokens.require(name), reason)


def _end(txn: Txn, row: Token, reason: str) -> None:
    txn.tokens.change(row.name, ended=reason, ended_at_ms=txn.now_ms)
    txn.emit("TokenEnded", row.name, scope=row.scope, peer=row.peer, reason=reason)


def on_due(txn: Txn, row: Token) -> None:
    """Expire a token, or forget one that is over."""
    if row.ended:
        txn.tokens.delete(row.name)
    else:
        _end(txn, row, "expired")
