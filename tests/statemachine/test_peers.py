"""Peers: membership is explicit, liveness is one timeout table on the replicated clock."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from statemachine.commands import (
    AddHolder,
    ConfigureVoters,
    DrainPeer,
    RecordHeartbeats,
    RegisterArtifact,
    RemovePeer,
    StopJob,
    VouchForPeer,
)
from statemachine.errors import Code
from statemachine.rows import Actual, Desired, PeerStatus
from statemachine.settings import Limits, Retention
from statemachine.values import Beat, Voter
from tests.support.law import (
    beat,
    bound,
    claimed,
    completed,
    digest_of,
    facts,
    failed,
    games_file,
    given,
    item,
    node,
    setting,
    started,
)


def test_a_node_joins_with_its_facts_and_is_alive():
    cluster = given(replace(node("a", slots=8), at_ms=1_700_000_000_000))
    row = cluster.state.peers["a"]
    assert (row.status, row.facts.cpu_slots, row.joined_at_ms, row.heard_at_ms) == ("alive", 8, 1_000, 1_000)
    assert row.wall_joined_at_ms == 1_700_000_000_000
    assert cluster.last.value == {"incarnation": 1, "clock_ms": 1_000}
    assert cluster.events("PeerJoined") == ["a"]


def test_joining_again_is_no_second_join():
    cluster = given(node("a")).after(5_000).when(node("a", slots=2))
    row = cluster.state.peers["a"]
    assert (row.joined_at_ms, row.heard_at_ms, row.facts.cpu_slots) == (1_000, 6_000, 2)
    assert cluster.events("PeerJoined") == ["a"]


def test_a_newer_process_of_a_node_takes_over_and_the_older_one_must_stop():
    cluster = given(node("a"), node("a", incarnation=2))
    assert cluster.events("PeerJoined") == ["a", "a"]
    cluster.refuses(node("a", incarnation=1), Code.STALE_INCARNATION, "'a'", "must stop")


def test_a_restarted_node_process_adopts_its_jobs():
    cluster = given(node("a"), item("w1"), bound("w1", "a"), started("w1"), node("a", incarnation=2))
    assert cluster.status("w1") == "running"
    assert cluster.state.index.live_jobs_of("a") == ["w1.1"]


def test_a_rebooted_machine_has_lost_its_jobs_at_once_and_nobody_is_to_blame():
    cluster = given(node("a"), item("w1"), item("w2"), bound("w1", "a"), started("w1"), bound("w2", "a"))
    cluster.do(node("a", incarnation=2, boot="boot2"))
    assert (cluster.status("w1"), cluster.status("w2")) == ("pending", "pending")
    assert "no process survived" in cluster.state.jobs["w1.1"].reason
    assert cluster.state.work["w1"].attempts == 0
    assert cluster.state.peers["a"].failures == 0
    cluster.do(bound("w1", "a"))


def test_two_machines_with_one_name_do_not_throw_each_other_out():
    cluster = given(node("a"))
    other = node("a", incarnation=9, boot="other", address="http://elsewhere:8770")
    cluster.refuses(other, Code.CONFLICT, "'a'", "http://a:8770", "--node-id")
    cluster.after(46_000).do(other)


def test_the_number_of_peers_is_bounded():
    cluster = given(setting("limits", Limits(peers=1)), node("a"))
    cluster.refuses(node("b"), Code.LIMIT, "1 peers")
    cluster.do(node("a", incarnation=2))


# --- heartbeats -------------------------------------------------------------------------------------


def test_heartbeats_keep_a_peer_alive_and_may_bring_new_facts():
    cluster = given(node("a")).after(600_000, beating=("a",))
    assert cluster.state.peers["a"].status is PeerStatus.ALIVE
    cluster.do(RecordHeartbeats((Beat("a", 1, facts=facts(slots=9)),)))
    assert cluster.state.peers["a"].facts.cpu_slots == 9
    cluster.do(beat("a"))
    assert cluster.state.peers["a"].facts.cpu_slots == 9


def test_heartbeats_of_strangers_and_of_replaced_processes_are_named_in_the_answer():
    cluster = given(node("a", incarnation=3), node("b"))
    answer = cluster.do(RecordHeartbeats((Beat("a", 2), Beat("b", 1), Beat("c", 1))))
    assert answer == {"a": "stale_incarnation", "c": "not_found"}


def test_a_silent_peer_is_suspected_then_dead_then_forgotten():
    cluster = given(setting("retention", Retention(dead_peer_ms=300_000)), node("a"))
    seen = []
    for ms in (44_000, 2_000, 132_000, 2_000, 118_000):
        cluster.after(ms)
        seen.append(cluster.state.peers["a"].status)
    assert seen == ["alive", "suspect", "suspect", "dead", "dead"]
    cluster.after(2_000)
    assert cluster.state.peers == {}
    assert cluster.events() == ["SettingChanged", "PeerJoined", "PeerSuspected", "PeerDied", "PeerRemoved"]
    assert list(cluster.state.index.peers_by_status.values()) == [0, 0, 0]


@pytest.mark.parametrize("silence", [60_000, 200_000])
def test_a_heartbeat_brings_a_suspect_or_a_dead_peer_back(silence):
    cluster = given(node("a")).after(silence).when(beat("a"))
    assert cluster.state.peers["a"].status is PeerStatus.ALIVE
    assert cluster.events("PeerRecovered") == ["a"]


def test_a_busy_node_whose_heartbeats_stop_keeps_its_work_until_the_lease_is_over():
    cluster = given(node("a"), item("w1"), bound("w1", "a"), started("w1")).after(200_000)
    assert cluster.state.peers["a"].status is PeerStatus.DEAD
    assert cluster.status("w1") == "running"
    cluster.do(completed("w1"))
    assert cluster.status("w1") == "completed"


def test_a_dead_peers_jobs_are_lost_when_their_leases_lapse():
    cluster = given(node("a"), item("w1"), bound("w1", "a"), started("w1")).after(302_000)
    assert cluster.status("w1") == "pending"
    assert cluster.state.jobs["w1.1"].actual is Actual.LOST


# --- vouching ---------------------------------------------------------------------------------------


def test_a_vouched_suspect_is_not_dead_but_its_leases_still_lapse():
    cluster = given(node("a"), item("w1"), bound("w1", "a"), started("w1")).after(100_000)
    for _ in range(3):
        assert cluster.do(VouchForPeer("a", 1, "b")) is True
        cluster.after(100_000)
    assert cluster.state.peers["a"].status is PeerStatus.SUSPECT
    assert cluster.status("w1") == "pending"
    cluster.after(82_000)
    assert cluster.state.peers["a"].status is PeerStatus.DEAD


def test_only_a_suspect_of_this_incarnation_is_vouched_for():
    cluster = given(node("a", incarnation=2))
    assert cluster.do(VouchForPeer("a", 2, "b")) is False
    cluster.refuses(VouchForPeer("a", 1, "b"), Code.STALE_INCARNATION, "'a'", "2", "1")
    cluster.refuses(VouchForPeer("z", 1, "b"), Code.NOT_FOUND, "'z'")


# --- draining ---------------------------------------------------------------------------------------


def test_draining_takes_a_peer_out_of_placement_and_back_in():
    cluster = given(node("a"), DrainPeer("a", True, "new kernel"), DrainPeer("a", True, "new kernel"))
    assert cluster.state.peers["a"].drain_reason == "new kernel"
    cluster.do(DrainPeer("a", False))
    row = cluster.state.peers["a"]
    assert (row.draining, row.drain_reason, row.drain_deadline_ms) == (False, "", 0)
    assert cluster.events()[1:] == ["PeerDrained", "PeerUndrained"]
    cluster.refuses(DrainPeer("z", True), Code.NOT_FOUND, "'z'")


def test_jobs_of_a_draining_peer_run_on_until_the_deadline_and_are_told_to_stop_then():
    cluster = given(node("a"), item("w1"), item("w2"), bound("w1", "a"), bound("w2", "a"))
    cluster.do(StopJob("w2.1", 2, "preempted"), DrainPeer("a", True, "move", deadline_ms=10_000))
    cluster.after(9_000, beating=("a",))
    assert cluster.job("w1").desired is Desired.RUN
    cluster.after(1_000, beating=("a",))
    assert (cluster.job("w1").desired, cluster.job("w1").reason) == (Desired.STOP, "the node is being drained")
    assert cluster.job("w2").reason == "preempted"
    assert cluster.state.peers["a"].drain_deadline_ms == 0
    assert cluster.state.peers["a"].draining


def test_a_drain_deadline_comes_before_a_silence():
    cluster = given(node("a"), DrainPeer("a", True, deadline_ms=45_000)).after(45_000)
    assert cluster.state.peers["a"].drain_deadline_ms == 0
    cluster.after(1_000)
    assert cluster.state.peers["a"].status is PeerStatus.SUSPECT


# --- removing ---------------------------------------------------------------------------------------


def test_a_peer_that_takes_work_is_not_removed():
    given(node("a")).refuses(RemovePeer("a"), Code.ILLEGAL_TRANSITION, "'a'", "drain it")
    given().refuses(RemovePeer("z"), Code.NOT_FOUND, "'z'")


def test_a_dead_voter_is_not_removed_while_it_counts():
    cluster = given(node("a"), ConfigureVoters((Voter("a", "a:8771", "http://a:8770", "l1"),), "r1")).after(182_000)
    cluster.refuses(RemovePeer("a"), Code.ILLEGAL_TRANSITION, "'a' is a voter", "voters remove a")
    cluster.do(ConfigureVoters((Voter("b", "b:8771", "http://b:8770", "l2"),), "r2"), RemovePeer("a"))
    assert not cluster.state.peers


def test_a_drained_node_that_still_runs_is_not_removed_because_it_would_join_again_undrained():
    cluster = given(node("a")).when(DrainPeer("a", True))
    cluster.refuses(RemovePeer("a"), Code.ILLEGAL_TRANSITION, "'a'", "end its process")


def test_a_removed_peer_leaves_no_jobs_and_no_files_behind():
    cluster = given(node("a"), node("b"), item("w1"), item("w2"), bound("w1", "a"), bound("w2", "a"))
    cluster.do(completed("w1", outputs=(games_file("x", 1), games_file("y", 1))))
    cluster.do(AddHolder(digest_of("x"), "b"), RegisterArtifact(digest_of("z"), 1, "games", "", "b"))
    cluster.do(DrainPeer("a", True))
    cluster.after(50_000, beating=("b",))
    cluster.do(RemovePeer("a", "sold"))
    assert list(cluster.state.peers) == ["b"]
    assert cluster.status("w2") == "pending"
    assert cluster.state.jobs["w2.1"].actual is Actual.LOST
    assert cluster.state.artifacts[digest_of("x")].holders == ("b",)
    assert cluster.state.artifacts[digest_of("y")].holders == ()
    assert cluster.state.artifacts[digest_of("z")].holders == ("b",)
    assert cluster.events("PeerRemoved") == ["a"]


def test_a_dead_peer_is_removed_without_a_drain_and_may_join_again():
    cluster = given(node("a")).after(182_000).when(RemovePeer("a"))
    assert cluster.do(beat("a")) == {}
    cluster.do(node("a"))
    assert cluster.state.peers["a"].status is PeerStatus.ALIVE


def test_a_failure_of_a_worker_that_is_no_peer_blames_nobody():
    cluster = given(item("w1"), claimed("c1", "stranger"), failed("w1"))
    assert cluster.state.peers == {}
