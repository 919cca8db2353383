"""Which copies are missing where."""

from __future__ import annotations

from msgspec.structs import replace

from statemachine import copies
from statemachine.commands import AddHolder, ChangeSetting, DoubtHolder, DrainPeer, RegisterArtifact
from tests.support.law import CONFIG, Cluster, digest_of, given, node

X, Y, Z = digest_of("x"), digest_of("y"), digest_of("z")


def file(digest: str, peer: str, kind: str = "games") -> RegisterArtifact:
    return RegisterArtifact(digest, 500, kind, CONFIG, peer)


def fleet(*storage: str, others: str = "w") -> Cluster:
    return given(*(node(name, labels=("storage",)) for name in storage), *(node(name) for name in others))


def planned(cluster: Cluster) -> list[tuple[str, str]]:
    return [(copy.digest, copy.target) for copy in copies.plan_copies(cluster.state).copies]


def test_a_file_that_no_storage_node_has_is_copied_to_as_many_as_are_wanted():
    cluster = fleet("s1", "s2", "s3")
    cluster.do(file(X, "w"), file(Y, "w", "model"))
    plan = copies.plan_copies(cluster.state)
    assert [copy.digest for copy in plan.copies] == [X, Y, Y]
    assert len({(c.digest, c.target) for c in plan.copies}) == 3
    assert all(c.target in ("s1", "s2", "s3") and c.address == f"http://{c.target}:8770" for c in plan.copies)
    assert all(c.sources == (("w", "http://w:8770"),) and c.size_bytes == 500 for c in plan.copies)
    cluster.do(*(AddHolder(c.digest, c.target) for c in plan.copies))
    assert planned(cluster) == []


def test_files_are_spread_over_the_storage_nodes_and_stay_where_they_are_when_another_comes():
    cluster = fleet("s1", "s2", "s3")
    cluster.do(*(file(digest_of(str(n)), "w") for n in range(60)))
    before = dict(planned(cluster))
    assert {"s1", "s2", "s3"} == set(before.values())
    cluster.do(node("s4", labels=("storage",)))
    after = dict(planned(cluster))
    moved = [digest for digest in before if before[digest] != after[digest]]
    assert 0 < len(moved) < 35
    assert all(after[digest] == "s4" for digest in moved)


def test_without_storage_nodes_the_voters_are_those():
    cluster = given(node("w"), replace(node("v"), role="voter"), file(X, "w"))
    assert planned(cluster) == [(X, "v")]
    cluster.do(node("s", labels=("storage",)))
    assert planned(cluster) == [(X, "s")]


def test_a_doubted_copy_counts_for_nothing_and_is_the_last_that_is_asked():
    cluster = fleet("s1", "s2")
    cluster.do(file(X, "s1"), AddHolder(X, "w"))
    assert planned(cluster) == []
    cluster.do(DoubtHolder(X, "s1", "w"))
    (copy,) = copies.plan_copies(cluster.state).copies
    assert (copy.target, [name for name, _ in copy.sources]) == ("s2", ["w", "s1"])


def test_a_node_that_drains_or_has_no_room_gets_nothing():
    cluster = given(node("s1", labels=("storage",), not_ready="low disk"), node("s2", labels=("storage",)), node("w"))
    cluster.do(file(X, "w"))
    assert planned(cluster) == [(X, "s2")]
    cluster.do(DrainPeer("s2", True))
    assert planned(cluster) == []


def test_a_file_that_nobody_alive_holds_is_named():
    cluster = fleet("s1")
    cluster.do(file(X, "gone"))
    plan = copies.plan_copies(cluster.state)
    assert (plan.copies, plan.lost) == ((), (X,))


def test_a_long_table_is_planned_in_pieces():
    cluster = fleet("s1")
    cluster.do(file(X, "w"), file(Y, "w"), file(Z, "w"))
    first = copies.plan_copies(cluster.state, 0, 2)
    assert ([c.digest for c in first.copies], first.next) == ([X, Y], 2)
    second = copies.plan_copies(cluster.state, first.next, 2)
    assert ([c.digest for c in second.copies], second.next) == ([Z], 0)


def test_a_kind_may_want_no_copies_at_all():
    cluster = fleet("s1")
    cluster.do(file(X, "w"), ChangeSetting("artifacts", '{"copies": {"games": 0}}'))
    assert planned(cluster) == []
    assert cluster.state.spreading.wanted("anything") == 1


# --- object stores ----------------------------------------------------------------------------------


S3 = "store:bucket/ours"


def carried(cluster: Cluster) -> list[tuple[str, str, str]]:
    return [(copy.digest, copy.target, copy.via) for copy in copies.plan_copies(cluster.state).copies]


def test_a_file_goes_into_the_store_by_a_node_with_access_that_holds_it():
    cluster = given(node("s1", labels=("storage", S3)), node("s2", labels=(S3,)), node("w"), file(X, "s2"))
    assert carried(cluster) == [(X, "s1", ""), (X, S3, "s2")]
    cluster.do(DrainPeer("s2", True))
    assert carried(cluster) == [(X, "s1", ""), (X, S3, "s1")]
    cluster.do(DrainPeer("s1", True))
    assert carried(cluster) == [], "nobody with access stays"


def test_a_copy_in_the_store_counts_like_one_on_a_storage_node():
    cluster = given(node("s1", labels=("storage", S3)), node("w"), file(X, "w"), file(Y, "w", "model"))
    cluster.do(AddHolder(X, S3), AddHolder(Y, S3))
    assert carried(cluster) == [(Y, "s1", "")]
    cluster.do(AddHolder(Y, "s1"))
    assert carried(cluster) == []
    cluster.do(DoubtHolder(X, S3, "w"))
    assert carried(cluster) == [(X, "s1", ""), (X, S3, "s1")]


def test_a_file_that_only_the_store_has_is_fetched_through_a_node_with_access():
    cluster = given(
        node("s1", labels=("storage",)), node("g", labels=(S3,)), file(X, "gone", "model"), AddHolder(X, S3)
    )
    (copy,) = copies.plan_copies(cluster.state).copies
    assert (copy.target, copy.sources, copy.gates) == ("s1", (), (("g", "http://g:8770"),))
    cluster.do(DrainPeer("g", True))
    assert copies.plan_copies(cluster.state).lost == (), "a node that drains still serves"


def test_a_kind_that_wants_no_copies_is_not_put_into_the_store():
    cluster = given(node("g", labels=(S3,)), file(X, "g"), ChangeSetting("artifacts", '{"copies": {"games": 0}}'))
    assert carried(cluster) == []


def test_which_nodes_have_access_follows_their_labels():
    cluster = given(node("a", labels=(S3,)), node("b", labels=(S3, "store:other")))
    assert cluster.state.index.gates == {S3: {"a", "b"}, "store:other": {"b"}}
    cluster.do(node("b", incarnation=2), node("a", incarnation=2, labels=("store:other",)))
    assert cluster.state.index.gates == {"store:other": {"a"}}


def test_a_node_whose_quota_is_used_up_is_the_last_that_gets_a_file():
    cluster = given(node("s1", labels=("storage",), store_bytes=600), node("s2", labels=("storage",)), node("w"))
    cluster.do(file(Z, "s1"), *(file(digest_of(str(n)), "w") for n in range(8)))
    assert {target for _, target in planned(cluster)} == {"s2"}
    cluster.do(DrainPeer("s2", True))
    assert {target for _, target in planned(cluster)} == {"s1"}
