"""Artifacts: files by their content, and who holds a verified copy."""

from __future__ import annotations

import pytest

from statemachine.commands import (
    AddHolder,
    ConcludeGauntlet,
    DropHolder,
    ForgetArtifact,
    RegisterArtifact,
    StartGauntlet,
)
from statemachine.errors import Code
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
    rows_digest,
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
