"""Artifacts: files by their content, and who holds a verified copy."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from statemachine.commands import (
    AddHolder,
    ChangeSetting,
    ConcludeGauntlet,
    DoubtHolder,
    DrainPeer,
    DropHolder,
    ForgetArtifact,
    PromoteModel,
    RegisterArtifact,
    ReleaseHolder,
    RequestSync,
    RollbackModel,
    StartGauntlet,
)
from statemachine.errors import Code, Done, Rejected
from statemachine.settings import Retention
from statemachine.values import Evidence, Input
from tests.support.law import (
    CONFIG,
    claimed,
    completed,
    digest_of,
    games_file,
    given,
    item,
    model_file,
    node,
    rows_digest,
    setting,
    trained,
)

X = digest_of("x")


def registered(peer: str = "a", size: int = 500) -> RegisterArtifact:
    return RegisterArtifact(digest=X, size_bytes=size, artifact_kind="games", config=CONFIG, peer=peer)


def made(*names: str):
    """Selfplay items that each made one file."""
    steps = []
    for name in names:
        steps += [item(name), claimed(f"c-{name}"), completed(name, outputs=(games_file("x", 10),))]
    return given(*steps)


def test_a_counted_attempt_registers_its_files_with_where_they_came_from():
    model = Input("model", digest_of("champion"))
    cluster = given(item("w1", inputs=(model,)), claimed("c1", "a"), completed("w1", outputs=(games_file("x", 10),)))
    row = cluster.state.artifacts[X]
    assert (row.kind, row.config, row.size_bytes, row.counts) == ("games", CONFIG, 500, {"games": 10})
    assert (row.holders, row.job, row.fence, row.name, row.parent) == (
        ("a",),
        "w1.1",
        1,
        "x.npz",
        digest_of("champion"),
    )


def test_a_model_that_is_brought_is_a_candidate_of_its_config():
    cluster = given(*trained("first"))
    brought = RegisterArtifact(X, 500, "model", CONFIG, "a")
    assert cluster.do(brought) is True
    model = cluster.state.models[X]
    assert (model.status, model.config, model.generation, model.work) == ("candidate", CONFIG, 2, "")
    assert cluster.do(replace(brought, peer="b", config="")) is False
    assert cluster.state.models[X] == model
    assert cluster.state.artifacts[X].holders == ("a", "b")


def test_a_model_that_is_brought_names_the_one_config_it_plays():
    cluster = given(RegisterArtifact(X, 500, "model", CONFIG, "a"))
    cluster.refuses(RegisterArtifact(digest_of("y"), 500, "model", "", "a"), Code.INVALID, "names no config")
    cluster.refuses(RegisterArtifact(X, 500, "model", "hex8_3p", "a"), Code.CONFLICT, "hex8_3p", CONFIG)


def test_a_file_known_as_something_else_does_not_become_a_model():
    cluster = given(registered())
    cluster.refuses(replace(registered(), artifact_kind="model"), Code.CONFLICT, "games")
    assert not cluster.state.models


def test_the_same_bytes_made_twice_are_one_file_with_two_holders():
    cluster = given(item("w1"), claimed("c1", "b"), completed("w1", outputs=(games_file("x", 10),)))
    cluster.do(item("w2"), claimed("c2", "a"), completed("w2", outputs=(games_file("x", 10),)))
    row = cluster.state.artifacts[X]
    assert (row.holders, row.job) == (("a", "b"), "w1.1")


def test_a_file_that_no_job_made_is_registered_once():
    cluster = given()
    assert cluster.do(registered("b")) is True
    assert cluster.do(registered("a")) is False
    assert cluster.state.artifacts[X].holders == ("a", "b")
    assert cluster.events("ArtifactRegistered") == [X]


def test_one_digest_cannot_have_two_lengths():
    given(registered()).refuses(registered(size=501), Code.CONFLICT, X, "500", "501")


def test_holders_come_and_go_one_by_one():
    cluster = given(registered("b"))
    assert cluster.do(AddHolder(X, "a")) is True
    assert cluster.do(AddHolder(X, "a")) is False
    assert cluster.state.artifacts[X].holders == ("a", "b")
    assert cluster.do(DropHolder(X, "b")) is True
    assert cluster.do(DropHolder(X, "b")) is False
    assert cluster.state.artifacts[X].holders == ("a",)


@pytest.mark.parametrize("command", [AddHolder(X, "a"), DropHolder(X, "a")])
def test_nobody_holds_a_file_that_is_not_known(command):
    given().refuses(command, Code.NOT_FOUND, X)


def test_a_file_is_forgotten_once():
    cluster = made("w1")
    assert cluster.do(ForgetArtifact(X, "old")) is True
    before = rows_digest(cluster.state)
    assert cluster.do(ForgetArtifact(X, "old")) is False
    assert rows_digest(cluster.state) == before
    assert cluster.events("ArtifactForgotten") == [X]
    assert cluster.state.index.artifacts == {}


def test_a_file_that_an_open_item_reads_is_kept():
    cluster = made("w1")
    cluster.do(item("t1", "training", inputs=(Input("games", X),)))
    cluster.refuses(ForgetArtifact(X), Code.CONFLICT, X, "1 open")
    cluster.do(claimed("c1"))
    cluster.refuses(ForgetArtifact(X), Code.CONFLICT, X)
    cluster.do(completed("t1", counts={}, outputs=(games_file("y", 1), model_file("m"))))
    cluster.do(ForgetArtifact(X))


def test_a_model_is_kept_until_it_is_rejected():
    cluster = given(*trained("m"), *trained("n"))
    m = digest_of("m")
    cluster.refuses(ForgetArtifact(m), Code.CONFLICT, m, "candidate")
    cluster.do(StartGauntlet("g", CONFIG, m, "random"), ConcludeGauntlet("g", "abandoned", Evidence("gauntlet")))
    cluster.do(ForgetArtifact(m))
    assert m in cluster.state.models


def test_the_latest_former_champions_are_kept_and_one_that_was_forgotten_does_not_return():
    names = ("m1", "m2", "m3", "m4")
    cluster = given(*(step for name in names for step in trained(name)))
    for before, name in zip(("", *names), names, strict=False):
        evidence = Evidence("operator", note="by hand")
        cluster.do(PromoteModel(CONFIG, digest_of(name), digest_of(before) if before else "", evidence))
        cluster.after(1_000)
    cluster.refuses(ForgetArtifact(digest_of("m4")), Code.CONFLICT, "champion")
    cluster.refuses(ForgetArtifact(digest_of("m1")), Code.CONFLICT, "is a model and former")
    cluster.do(setting("retention", Retention(former_models=2)), ForgetArtifact(digest_of("m1")))
    cluster.refuses(ForgetArtifact(digest_of("m2")), Code.CONFLICT, "is a model and former")
    back = RollbackModel(CONFIG, digest_of("m1"), digest_of("m4"), "worse")
    cluster.refuses(back, Code.CONFLICT, "was forgotten")
    cluster.do(replace(back, model=digest_of("m2")))


def stored(*labels_of: tuple[str, str], holders: str = "ab"):
    """Nodes `name` with a label each, and X held by some of them."""
    steps = [node(name, labels=(label,) if label else ()) for name, label in labels_of]
    return given(*steps, *(registered(peer) for peer in holders))


def test_a_copy_is_released_while_another_is_on_a_live_node():
    cluster = stored(("a", ""), ("b", ""))
    assert cluster.do(ReleaseHolder(X, "a")) is True
    assert cluster.state.artifacts[X].holders == ("b",)
    assert cluster.do(ReleaseHolder(X, "a")) is False


def test_of_two_nodes_that_release_the_last_two_copies_at_once_the_log_keeps_one():
    cluster = stored(("a", ""), ("b", ""))
    first, second = cluster.apply(ReleaseHolder(X, "b"), ReleaseHolder(X, "a"))
    assert isinstance(first, Done)
    assert isinstance(second, Rejected)
    assert "last good copy" in second.detail
    assert cluster.state.artifacts[X].holders == ("a",)


def test_a_copy_on_a_dead_a_drained_or_a_doubted_node_is_none_to_rely_on():
    cluster = stored(("a", ""), ("b", ""))
    cluster.do(DoubtHolder(X, "b", "c"))
    cluster.refuses(ReleaseHolder(X, "a"), Code.CONFLICT, X, "a", "last")
    cluster.do(AddHolder(X, "b"), DrainPeer("b", True))
    cluster.refuses(ReleaseHolder(X, "a"), Code.CONFLICT, X)
    cluster.do(DrainPeer("b", False))
    cluster.after(200_000, beating=("a",))
    cluster.refuses(ReleaseHolder(X, "a"), Code.CONFLICT, X)
    cluster.refuses(ReleaseHolder(digest_of("none"), "a"), Code.NOT_FOUND)


def test_a_copy_on_a_node_that_does_not_answer_lets_nobody_delete_another():
    cluster = stored(("a", ""), ("b", ""))
    cluster.after(60_000, beating=("a",))
    assert cluster.state.peers["b"].status == "suspect"
    cluster.refuses(ReleaseHolder(X, "a"), Code.CONFLICT, X, "a", "last")
    cluster.after(2_000, beating=("a", "b"))
    assert cluster.do(ReleaseHolder(X, "a")) is True


def test_a_storage_node_keeps_what_is_wanted_there():
    cluster = stored(("a", "storage"), ("b", "storage"), ("c", ""), holders="ac")
    cluster.refuses(ReleaseHolder(X, "a"), Code.CONFLICT, X, "0 storage nodes", "1 are wanted")
    cluster.do(AddHolder(X, "b"), ReleaseHolder(X, "a"))
    cluster.do(AddHolder(X, "a"), ChangeSetting("artifacts", '{"copies": {"games": 2}}'))
    cluster.refuses(ReleaseHolder(X, "a"), Code.CONFLICT, X, "2 are wanted")


def test_a_copy_in_an_object_store_allows_a_release_and_counts_as_a_lasting_one():
    cluster = stored(("a", ""), holders="a")
    cluster.do(AddHolder(X, "store:bucket"), DoubtHolder(X, "store:bucket", "a"))
    cluster.refuses(ReleaseHolder(X, "a"), Code.CONFLICT, "last good copy")
    cluster.do(AddHolder(X, "store:bucket"), ReleaseHolder(X, "a"))
    cluster = stored(("a", "storage"), holders="a")
    cluster.do(AddHolder(X, "store:bucket"), ReleaseHolder(X, "a"))
    assert cluster.state.artifacts[X].holders == ("store:bucket",)


def test_a_doubt_is_noted_once_and_ends_when_the_holder_has_read_its_copy_again():
    cluster = given(registered("a"), registered("b"))
    assert cluster.do(DoubtHolder(X, "a", "c")) is True
    assert cluster.do(DoubtHolder(X, "a", "d")) is False
    assert cluster.do(DoubtHolder(X, "nobody", "d")) is False
    assert cluster.state.artifacts[X].doubted == ("a",)
    assert cluster.events("ArtifactDoubted") == [X]
    assert cluster.do(AddHolder(X, "a")) is True
    assert (cluster.state.artifacts[X].holders, cluster.state.artifacts[X].doubted) == (("a", "b"), ())
    cluster.do(DoubtHolder(X, "b", "c"), DropHolder(X, "b"))
    assert (cluster.state.artifacts[X].holders, cluster.state.artifacts[X].doubted) == (("a",), ())


def test_all_nodes_see_that_a_look_at_the_files_was_asked_for():
    cluster = given()
    assert [cluster.do(RequestSync("after the move")) for _ in range(2)] == [1, 2]
    assert cluster.state.cluster.syncs == 2
    assert cluster.events("SyncRequested") == ["cluster", "cluster"]
