"""Reputation: failures and returns from silence count against a peer, fade, and hold it back for a while only."""

from __future__ import annotations

import pytest

from statemachine import reputation
from statemachine.commands import ClaimWork, CompleteJob, DrainPeer, FailJob, LeavePeer, RemovePeer, StopJob
from statemachine.errors import Code
from statemachine.queries import why
from statemachine.rows import Actual, PeerStatus
from statemachine.settings import Limits, Timing
from tests.support.law import (
    beat,
    bound,
    claimed,
    completed,
    failed,
    games_file,
    given,
    item,
    node,
    setting,
    started,
)


@pytest.mark.parametrize(
    ("count", "half_lives", "left"), [(8, 0, 8), (8, 0.9, 8), (8, 1, 4), (8, 2.5, 2), (8, 4, 0), (8, 10**9, 0)]
)
def test_a_count_halves_with_each_half_life(count, half_lives, left):
    timing = Timing(failure_half_life_ms=1_000)
    assert reputation.faded(count, 5_000, 5_000 + int(half_lives * 1_000), timing) == left


def test_a_success_forgives_half_of_the_failures():
    cluster = given(node("a"))
    for n in range(4):
        cluster.do(item(f"w{n}"), bound(f"w{n}", "a"), failed(f"w{n}"))
    cluster.do(item("w9"), bound("w9", "a"), completed("w9"))
    assert cluster.state.peers["a"].failures == 2


def test_a_peer_on_which_everything_fails_is_held_back_and_tries_again_when_the_hold_is_over():
    cluster = given(setting("limits", Limits(failures_before_hold=3)), node("a"))
    for n in range(3):
        cluster.do(item(f"w{n}", max_attempts=1), bound(f"w{n}", "a"), failed(f"w{n}"))
    assert cluster.events("PeerHeld") == ["a"]
    cluster.do(item("next"))
    cluster.refuses(bound("next", "a"), Code.INELIGIBLE, "held back", "3 attempts failed")
    explained = why(cluster.state, "next")
    assert explained is not None
    assert [(r.code, r.count) for r in explained.reasons] == [("held", 1)]
    cluster.refuses(ClaimWork("c1", "a"), Code.INELIGIBLE, "held back")
    cluster.after(360_000, beating=("a",))
    assert (cluster.state.peers["a"].held_until_ms, cluster.events("PeerUnheld")) == (0, ["a"])
    cluster.do(bound("next", "a"))


def test_a_broken_template_dead_letters_its_items_and_holds_no_node_back():
    peers = ("a", "b", "c")
    cluster = given(setting("limits", Limits(failures_before_hold=4)), *(node(peer) for peer in peers))
    items = [f"w{n}" for n in range(30)]
    cluster.do(*(item(work) for work in items))
    for turn in range(3):
        for n, work in enumerate(items):
            cluster.do(bound(work, peers[(n + turn) % 3]), failed(work, "user" if n % 2 else "no_output"))
        cluster.after(120_000, beating=peers)
    assert {cluster.status(work) for work in items} == {"failed"}
    assert cluster.events("PeerHeld") == []


def test_both_of_two_nodes_may_fail_at_a_program_but_one_alone_is_held_back():
    cluster = given(setting("limits", Limits(failures_before_hold=3)), node("a"), node("b"))
    cluster.do(item("b0"), bound("b0", "b"), failed("b0", "user"))
    for n in range(3):
        cluster.do(item(f"a{n}"), bound(f"a{n}", "a"), failed(f"a{n}", "user"))
    assert (cluster.state.peers["a"].failures, cluster.state.peers["b"].failures) == (0, 1)
    for n in range(3):
        # Of another config nothing has failed on b.
        cluster.do(item(f"c{n}", config="hex8_3p"), bound(f"c{n}", "a"), failed(f"c{n}", "user"))
    assert cluster.events("PeerHeld") == ["a"]


def test_a_failure_of_the_machine_counts_wherever_else_it_happens():
    cluster = given(setting("limits", Limits(failures_before_hold=2)), node("a"), node("b"))
    for work, peer in (("a0", "a"), ("b0", "b"), ("a1", "a"), ("b1", "b")):
        cluster.do(item(work), bound(work, peer), failed(work, "cuda"))
    assert cluster.events("PeerHeld") == ["a", "b"]


def test_a_job_of_which_no_process_was_found_speaks_against_nobody():
    cluster = given(node("a"), item("w1"), bound("w1", "a"), started("w1"), failed("w1", "lost"))
    assert (cluster.state.peers["a"].failures, cluster.state.work["w1"].attempts) == (0, 0)
    assert cluster.status("w1") == "pending"


def test_a_node_that_flaps_is_held_back_and_an_operator_may_lift_it():
    cluster = given(setting("limits", Limits(flaps_before_hold=2)), node("a"), item("w1"))
    for _ in range(2):
        assert cluster.state.peers["a"].held_until_ms == 0
        cluster.after(50_000).do(beat("a"))
    assert "came back 2 times" in cluster.state.peers["a"].held_reason
    cluster.refuses(bound("w1", "a"), Code.INELIGIBLE, "fell silent")
    cluster.do(DrainPeer("a", False), bound("w1", "a"))
    assert cluster.events("PeerUnheld") == ["a"]


def test_returns_that_lie_far_apart_hold_nobody_back():
    timing = Timing(failure_half_life_ms=100_000)
    cluster = given(setting("timing", timing), setting("limits", Limits(flaps_before_hold=2)), node("a"))
    for _ in range(4):
        cluster.after(50_000).do(beat("a"))
        cluster.after(150_000, beating=("a",))
    assert cluster.events("PeerHeld") == []


def test_a_worker_that_is_no_peer_is_neither_blamed_nor_credited():
    cluster = given(item("w1"), claimed("c1", "stranger"), completed("w1"))
    assert cluster.state.peers == {}


# --- saying goodbye -----------------------------------------------------------------------------------


def test_a_node_that_leaves_gives_its_work_back_at_once_and_is_expected_no_more():
    cluster = given(node("a"), item("w1"), bound("w1", "a"), started("w1"))
    cluster.do(LeavePeer("a", 1, "the provider takes it back"), LeavePeer("a", 1))
    assert cluster.status("w1") == "pending"
    assert cluster.state.work["w1"].attempts == 0
    row = cluster.state.peers["a"]
    assert (row.status, row.left) == (PeerStatus.DEAD, "the provider takes it back")
    assert cluster.events("PeerLeft") == ["a"]
    cluster.refuses(bound("w1", "a"), Code.INELIGIBLE, "has left", "takes it back")
    assert cluster.do(beat("a")) == {"a": "not_found"}
    cluster.do(RemovePeer("a", "sold"))


def test_a_node_that_left_comes_back_by_joining():
    cluster = given(node("a"), LeavePeer("a", 1), node("a", incarnation=2))
    row = cluster.state.peers["a"]
    assert (row.status, row.left, row.flaps) == (PeerStatus.ALIVE, "", 0)


def test_only_the_present_process_of_a_node_says_goodbye_for_it():
    cluster = given(node("a", incarnation=2))
    cluster.refuses(LeavePeer("a", 1), Code.STALE_INCARNATION, "'a'", "2", "1")
    cluster.refuses(LeavePeer("z", 1), Code.NOT_FOUND, "'z'")


# --- stopped because it failed ------------------------------------------------------------------------


def test_a_job_that_is_stopped_because_it_hangs_ends_as_a_failure_with_the_evidence():
    cluster = given(node("a"), item("w1"), bound("w1", "a"), started("w1"))
    cluster.do(StopJob("w1.1", 1, "it made no progress for 900 s", "hung"), failed("w1", "stopped", "SIGTERM"))
    job = cluster.state.jobs["w1.1"]
    assert (job.actual, job.error_class) == (Actual.FAILED, "hung")
    assert job.error == "it made no progress for 900 s; SIGTERM"
    assert cluster.state.peers["a"].failures == 1
    assert cluster.state.work["w1"].failed_on == ("a",)
    assert cluster.do(FailJob("w1.1", 1, "stopped", "SIGTERM")) == "pending"


def test_what_a_hung_job_had_made_counts_and_its_node_is_blamed_all_the_same():
    cluster = given(node("a"), item("w1"), bound("w1", "a"), started("w1"))
    cluster.do(StopJob("w1.1", 1, "no progress", "hung"))
    cluster.do(CompleteJob("w1.1", 1, counts={"games": 3}, outputs=(games_file("x", 3),), stopped=True))
    assert cluster.status("w1") == "completed"
    assert cluster.state.work["w1"].reason == "stopped early (no progress), its part counts"
    assert cluster.state.peers["a"].failures == 1
