"""Tokens: made, bought, revoked, expired; and the event that says whose token an act came with."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from statemachine import settings as st
from statemachine.commands import (
    ConfigureVoters,
    CreateToken,
    DrainPeer,
    JoinPeer,
    Once,
    PauseCluster,
    RecordAct,
    RedeemToken,
    RemovePeer,
    RevokeToken,
    Signed,
)
from statemachine.errors import Code, Done
from statemachine.tokens import GRANTS
from statemachine.values import Scope, Voter
from tests.support.law import Cluster, claimable, digest_of, given, node, setting

SECRET = digest_of("secret")


def token(name: str = "ops", scope: Scope = Scope.ADMIN, **more) -> CreateToken:
    return CreateToken(name, scope, **{"sha256": digest_of(name), **more})


def join_token(uses: int = 0, **more) -> CreateToken:
    return token("welcome", Scope.JOIN, uses=uses, **more)


def test_a_token_is_found_by_the_hash_of_its_secret():
    cluster = given(token())
    row = cluster.state.index.tokens[digest_of("ops")]
    assert (row.name, row.scope, row.ended, row.created_at_ms) == ("ops", Scope.ADMIN, "", cluster.now_ms)
    assert cluster.events("TokenCreated") == ["ops"]


def test_the_same_token_again_is_no_second_one_and_another_under_its_name_is_refused():
    cluster = given(token(expires_in_ms=60_000))
    first = cluster.state.tokens["ops"]
    cluster.after(4_000)
    assert cluster.do(token(expires_in_ms=60_000)) == {"name": "ops", "expires_at_ms": first.expires_at_ms}
    assert cluster.state.tokens["ops"] == first
    cluster.refuses(token(sha256=SECRET), Code.CONFLICT, "'ops'", "revoke it first")
    cluster.refuses(token("two", sha256=digest_of("ops")), Code.CONFLICT, "'two'", "draw a new one")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (token("root"), ("'root'", "another name")),
        (token("n", Scope.NODE), ("'n'", "bound to a node")),
        (token("n", Scope.READ, peer="a"), ("'n'", "bound to a node")),
        (token("n", Scope.ADMIN, uses=1), ("'n'", "counts its uses")),
    ],
)
def test_a_token_that_means_nothing_is_refused(command: CreateToken, words: tuple[str, ...]):
    given().refuses(command, Code.INVALID, *words)


def test_the_number_of_tokens_is_bounded():
    cluster = given(setting("limits", st.Limits(tokens=1)), token())
    cluster.refuses(token("two"), Code.LIMIT, "limits.tokens")


def test_a_revoked_token_is_over_at_once_and_its_name_is_free_again():
    cluster = given(token())
    assert cluster.do(RevokeToken("ops", "leaked")) is True
    assert cluster.state.tokens["ops"].ended == "revoked: leaked"
    assert cluster.do(RevokeToken("ops")) is False
    assert cluster.events("TokenEnded") == ["ops"]
    cluster.refuses(token(), Code.CONFLICT, "draw a new one")
    cluster.do(token(sha256=SECRET))
    assert list(cluster.state.index.tokens) == [SECRET]
    cluster.refuses(RevokeToken("none"), Code.NOT_FOUND, "'none'")
    cluster.do(RevokeToken("ops"))
    assert cluster.state.tokens["ops"].ended == "revoked"


def test_a_token_expires_by_the_clock_and_is_forgotten_after_the_retention():
    cluster = given(setting("retention", st.Retention(token_ms=5_000)), token(expires_in_ms=10_000), token("for-ever"))
    cluster.after(8_000)
    assert cluster.state.tokens["ops"].ended == ""
    cluster.after(2_000)
    assert (cluster.state.tokens["ops"].ended, cluster.events("TokenEnded")) == ("expired", ["ops"])
    cluster.after(6_000)
    assert list(cluster.state.tokens) == [t.name for t in cluster.state.index.tokens.values()] == ["for-ever"]


def test_a_join_token_buys_a_node_its_own_token_once():
    cluster = given(join_token(uses=1))
    assert cluster.do(RedeemToken("welcome", "gpu-1", SECRET)) == {"name": "node:gpu-1", "expires_at_ms": 0}
    row = cluster.state.index.tokens[SECRET]
    assert (row.scope, row.peer, row.bought_with) == (Scope.NODE, "gpu-1", "welcome")
    assert cluster.do(RedeemToken("welcome", "gpu-1", SECRET)) == {"name": "node:gpu-1", "expires_at_ms": 0}
    assert cluster.state.tokens["welcome"].used == 1
    cluster.refuses(RedeemToken("welcome", "gpu-1", digest_of("x")), Code.CONFLICT, "'node:gpu-1'", "revokes")
    cluster.refuses(RedeemToken("welcome", "gpu-2", digest_of("x")), Code.ILLEGAL_TRANSITION, "'welcome'", "1 nodes")


def test_a_revoked_node_may_join_anew_with_another_secret():
    cluster = given(join_token(), RedeemToken("welcome", "gpu-1", SECRET), RevokeToken("node:gpu-1"))
    cluster.refuses(RedeemToken("welcome", "gpu-1", SECRET), Code.CONFLICT, "draw a new one")
    cluster.do(RedeemToken("welcome", "gpu-1", digest_of("fresh")))
    assert cluster.state.tokens["node:gpu-1"].ended == ""


def test_only_a_good_join_token_lets_a_node_in():
    cluster = given(token(), join_token(), RevokeToken("welcome", "enough"))
    cluster.refuses(RedeemToken("ops", "gpu-1", SECRET), Code.ILLEGAL_TRANSITION, "'ops'", "no join token")
    cluster.refuses(RedeemToken("welcome", "gpu-1", SECRET), Code.ILLEGAL_TRANSITION, "'welcome'", "enough")
    cluster.refuses(RedeemToken("none", "gpu-1", SECRET), Code.NOT_FOUND, "'none'")


def test_no_join_token_makes_somebody_a_voter():
    voter: JoinPeer = replace(node("v1"), role="voter")
    cluster = given(join_token(), voter, node("f1"))
    cluster.refuses(RedeemToken("welcome", "v1", SECRET), Code.CONFLICT, "'v1'", "voter")
    cluster.apply(ConfigureVoters((Voter("v2", "10.0.0.2:8771"),), "r"))
    cluster.refuses(RedeemToken("welcome", "v2", SECRET), Code.CONFLICT, "'v2'", "voter")
    cluster.do(RedeemToken("welcome", "f1", SECRET))


def test_a_removed_node_is_shut_out_with_its_tokens_and_a_forgotten_one_is_not():
    bound = [token(name, Scope.NODE, peer=peer) for name, peer in (("x", "a"), ("y", "a"), ("z", "b"), ("w", "c"))]
    cluster = given(node("a"), node("b"), *bound, token(), RevokeToken("y"))
    cluster.do(DrainPeer("a", True))
    cluster.after(cluster.state.timing.suspect_after_ms)
    cluster.do(RemovePeer("a"))
    tokens = cluster.state.tokens
    assert (tokens["x"].ended, tokens["y"].ended) == ("node a was removed", "revoked")
    assert [tokens[name].ended for name in ("z", "w", "ops")] == ["", "", ""]


# --- whose token it was -----------------------------------------------------------------------------


def acts(cluster: Cluster) -> list[tuple[str, dict[str, str]]]:
    return [(e.key, e.detail) for e in cluster.state.events.values() if e.kind == "OperatorActed"]


def test_a_signed_command_leaves_its_event_in_the_same_step():
    cluster = given(node("a"), Signed("ops", DrainPeer("a", True, "new disk")))
    assert cluster.state.peers["a"].draining
    assert acts(cluster) == [("ops", {"act": "peer.drain", "target": "a"})]


def test_a_refused_command_leaves_no_such_event():
    cluster = given()
    cluster.refuses(Signed("ops", DrainPeer("none", True)), Code.NOT_FOUND, "'none'")
    assert acts(cluster) == []


def test_a_signed_command_under_a_request_id_is_noted_once():
    cluster = given()
    once = Signed("ops", Once("r1", cluster.now_ms + 9_000, PauseCluster(True)))
    cluster.do(once)
    cluster.do(once)
    assert cluster.last == Done(True)
    assert acts(cluster) == [("ops", {"act": "cluster.pause", "target": "True"})]


def test_an_unsigned_command_is_nobodys_act():
    assert acts(given(node("a"), DrainPeer("a", True), Signed("", claimable("w")))) == []


def test_an_act_that_is_no_command_is_noted():
    cluster = given(RecordAct("ops", "shutdown", "a"))
    assert acts(cluster) == [("ops", {"act": "shutdown", "target": "a"})]


def test_admin_is_everything_and_join_nothing_else():
    assert GRANTS[Scope.ADMIN] == set(Scope)
    assert [scope for scope in Scope if Scope.READ in GRANTS[scope]] == ["read", "submit", "node", "admin"]
    assert [scope for scope in Scope if Scope.JOIN in GRANTS[scope]] == ["admin", "join"]
    assert not GRANTS[Scope.NODE] & {Scope.SUBMIT, Scope.ADMIN}
