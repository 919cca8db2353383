"""What each node holds, told from kept counters, and champions that nobody can deliver."""

from __future__ import annotations

from statemachine import queries
from statemachine.alarms import alarms
from statemachine.commands import (
    AddHolder,
    DoubtHolder,
    DropHolder,
    ForgetArtifact,
    JoinPeer,
    PromoteModel,
    RegisterArtifact,
)
from statemachine.errors import Code
from statemachine.manifest import File, Manifest, Share, file_of, manifests
from statemachine.rows import STORE
from statemachine.values import Evidence, Input, PeerFacts
from tests.support.law import CONFIG, claimed, completed, digest_of, games_file, given, item, node, template, trained

X, Y, M = digest_of("x"), digest_of("y"), digest_of("m")
S3 = f"{STORE}bucket/ours"


def file(digest: str, peer: str, size: int = 500, kind: str = "games") -> RegisterArtifact:
    return RegisterArtifact(digest, size, kind, CONFIG, peer)


def test_a_manifest_counts_what_a_node_holds_by_kind_and_config():
    cluster = given(node("a", store_bytes=9_000), node("b"), file(X, "a"), file(Y, "a", 70), file(M, "a", 5, "model"))
    cluster.do(AddHolder(X, "b"), AddHolder(X, S3), DoubtHolder(X, "b", "a"), AddHolder(Y, "worker"))
    games = Share("games", CONFIG, 1, 500)
    rows, after = manifests(cluster.state, "", 10)
    assert rows == [
        Manifest("a", "alive", 3, 575, 9_000, 0, (Share("games", CONFIG, 2, 570), Share("model", CONFIG, 1, 5))),
        Manifest("b", "alive", 1, 500, 0, 1, (games,)),
        Manifest(S3, "store", 1, 500, 0, 0, (games,)),
        Manifest("worker", "unknown", 1, 70, 0, 0, (Share("games", CONFIG, 1, 70),)),
    ]
    assert after == ""
    cluster.do(DropHolder(X, "b"), ForgetArtifact(Y))
    assert [(row.files, row.size_bytes) for row in manifests(cluster.state, "", 10)[0]] == [(2, 505), (0, 0), (1, 500)]
    assert set(cluster.state.index.held) == {"a", S3}


def test_a_manifest_is_read_in_pages_by_name():
    cluster = given(*(node(name) for name in "cab"))
    first, after = manifests(cluster.state, "", 2)
    assert ([row.node_id for row in first], after) == (["a", "b"], "b")
    second, after = manifests(cluster.state, after, 2)
    assert ([row.node_id for row in second], after) == (["c"], "")


def test_a_file_of_a_manifest_says_what_its_config_and_counts_say():
    cluster = given(item("w1"), claimed("c1", "a"), completed("w1", outputs=(games_file("x", 10),)))
    row = cluster.state.artifacts[X]
    assert file_of(row, "a") == File("x.npz", X, 500, "games", CONFIG, "square8", 2, 10, row.created_at_ms, False)
    cluster.do(DoubtHolder(X, "a", "b"), RegisterArtifact(Y, 3, "file", "notes", "a"))
    assert file_of(cluster.state.artifacts[X], "a").doubted
    brought = file_of(cluster.state.artifacts[Y], "a")
    assert (brought.path, brought.board, brought.players, brought.game_count) == (Y, "", 0, 0)


def test_a_champion_that_no_live_node_can_deliver_is_named_and_items_that_read_it_say_so():
    cluster = given(template(), node("a"), node("b"), *trained("m"), PromoteModel(CONFIG, M, "", Evidence("initial")))
    cluster.do(*(DropHolder(M, holder) for holder in cluster.state.artifacts[M].holders))
    cluster.do(AddHolder(M, "a"))
    cluster.do(item("w1", inputs=(Input("model", M), Input("notes", digest_of("of nobody")))))
    assert alarms(cluster.state) == ()
    assert queries.why(cluster.state, "w1").sentence.startswith("2 peers can take it")
    cluster.after(200_000, beating=("b",))
    (lost,) = alarms(cluster.state)
    assert (lost.kind, lost.count) == ("unserved_champion", 1)
    for word in (M[:12], CONFIG, "holders (a)", "promote another model"):
        assert word in lost.sentence
    why = queries.why(cluster.state, "w1")
    assert why.reasons[0].code == "input_unserved"
    assert M[:12] in why.sentence
    cluster.do(DropHolder(M, "a"))
    assert "it has no holder" in alarms(cluster.state)[0].sentence
    cluster.do(AddHolder(M, S3))
    assert alarms(cluster.state), "nobody who is there has access to the store"
    cluster.do(node("c", labels=(S3,)))
    assert alarms(cluster.state) == ()
    assert queries.resolve(cluster.state, "model", M).gates == (("c", "http://c:8770"),)


def test_the_alarm_of_a_lost_champion_names_the_last_one_that_can_be_had():
    names = ("first", "second", "third", "lost")
    cluster = given(node("a"))
    for number, name in enumerate(names):
        before = digest_of(names[number - 1]) if number else ""
        cluster.do(*trained(name), PromoteModel(CONFIG, digest_of(name), before, Evidence("operator", note="by hand")))
        cluster.after(1_000, beating=("a",))
    cluster.do(AddHolder(digest_of("first"), "a"), AddHolder(digest_of("second"), "a"))
    (alarm,) = alarms(cluster.state)
    assert f"ringrift-node models rollback {CONFIG} {digest_of('second')} --reason lost" in alarm.sentence


def test_no_node_may_have_the_name_of_an_object_store():
    given().refuses(JoinPeer(S3, 1, "boot", "follower", "http://c:1", PeerFacts()), Code.INVALID, S3)
