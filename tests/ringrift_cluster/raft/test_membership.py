"""G14: who is let near the log, and an empty log that keeps quiet."""

from __future__ import annotations

import pytest

from ringrift_cluster.raft.errors import DiskLost, MembersContradict
from ringrift_cluster.raft.messages import AppendEntries, AppendReply, Hello, PreVote, RequestVote, Vote, Welcome
from tests.ringrift_cluster.raft.alone import VOTERS, Guarded, Stock, entries
from tests.simulation.disk import Disk


def hello(
    peer: str, *, log: str = "", cluster: str = "", voters: tuple[str, ...] = VOTERS, admitted: bool = True
) -> Hello:
    return Hello(1, peer, cluster, log or f"log-of-{peer}", admitted, list(voters), b"")


class TestAnEmptyLog:
    def test_stock_votes_with_it(self):
        stock = Stock()
        stock.get("b", {"type": "request_vote", "term": 9, "last_log_index": 1, "last_log_term": 0})
        assert stock.take("response_vote")

    def test_it_neither_votes_nor_acknowledges_nor_campaigns(self, tmp_path):
        voter = Guarded(tmp_path, join=False)
        voter.greet("b", cluster_id="x1")
        voter.get("b", RequestVote(9, 9, 1), AppendEntries(9, 1, 1, 0, entries(2, 2, 9)))
        voter.wait(3.0)
        assert not voter.sent
        assert voter.node.journal.last_index == 1

    def test_a_bootstrap_needs_a_majority_that_knows_no_cluster(self, tmp_path):
        voter = Guarded(tmp_path, join=False)
        voter.wait(2.0)
        assert not voter.take(PreVote)
        voter.greet("b")
        voter.wait(2.0)
        assert voter.take(PreVote)

    def test_a_late_first_start_is_recorded_by_more_than_half_of_the_others(self, tmp_path):
        voter = Guarded(tmp_path, join=False)
        voter.greet("b", cluster_id="x1")
        voter.turn()
        assert not voter.node.membership.admitted
        voter.greet("c", cluster_id="x1")
        voter.get("b", AppendEntries(1, 1, 1, 0, entries(2, 2, 1)))
        assert voter.take(AppendReply)

    def test_one_acceptance_of_five_is_not_enough(self, tmp_path):
        voter = Guarded(tmp_path, join=False, voters=("a", "b", "c", "d", "e"))
        for peer, admitted in (("b", False), ("c", False), ("d", True)):
            voter.greet(peer, cluster_id="x1")
            assert voter.node.membership.admitted is admitted

    def test_admission_survives_a_restart(self, tmp_path):
        voter = Guarded(tmp_path)
        again = Guarded(tmp_path, disk=voter.disk, join=False)
        assert again.node.membership.admitted


class TestALostDisk:
    def test_others_recognise_the_new_log(self, tmp_path):
        voter = Guarded(tmp_path)
        again = Guarded(tmp_path, disk=voter.disk, join=False)
        answer = again.node.judge(hello("b", log="another"))
        assert answer.reason == "other_log"
        assert "`ringrift-node voters remove b`" in answer.detail
        assert "`ringrift-node voters add b`" in answer.detail

    def test_a_log_that_never_got_in_gives_way_to_the_one_that_did(self, tmp_path):
        voter = Guarded(tmp_path, join=False)
        assert not voter.node.judge(hello("b", log="wiped", admitted=False)).reason
        assert voter.node.judge(hello("b", log="wiped again", admitted=False)).reason == "other_log"
        assert not voter.node.judge(hello("b", log="restored")).reason
        assert voter.node.judge(hello("b", log="wiped", admitted=False)).reason == "other_log"

    def test_the_voter_that_lost_it_stops_with_their_sentence(self, tmp_path):
        voter = Guarded(tmp_path, join=False)
        with pytest.raises(DiskLost, match="by another log"):
            voter.node.welcomed(hello("b", cluster="x1"), Welcome("other_log", "b knows voter a by another log"))


class TestGreetings:
    def test_a_stranger_is_refused(self, tmp_path):
        voter = Guarded(tmp_path)
        assert voter.node.judge(hello("z")).reason == "not_a_voter"
        assert voter.node.judge(hello("a")).reason == "not_a_voter"

    def test_another_voter_list_is_refused(self, tmp_path):
        voter = Guarded(tmp_path)
        assert voter.node.judge(hello("b", voters=("a", "b"))).reason == "other_voters"

    def test_another_cluster_is_refused(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.node.membership.learn_cluster_id("x1")
        assert voter.node.judge(hello("b", cluster="x2")).reason == "other_cluster"
        assert not voter.node.judge(hello("b", cluster="x1")).reason

    def test_messages_of_non_members_are_dropped(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.node.deliver("z", RequestVote(9, 9, 1))
        voter.turn()
        assert not voter.take(Vote)
        assert voter.node.counters.refusals["not_a_voter"] == 1


class TestTheMemberList:
    def test_no_flag_changes_the_list_that_a_log_has_counted_by(self, tmp_path):
        voter = Guarded(tmp_path)
        again = Guarded(tmp_path, disk=voter.disk, voters=("a", "b", "d"))
        assert again.node.membership.voters == ("a", "b", "c")

    def test_a_list_that_nobody_counted_by_yet_may_be_corrected(self, tmp_path):
        voter = Guarded(tmp_path, join=False)
        again = Guarded(tmp_path, disk=voter.disk, voters=("a", "b", "d"), join=False)
        assert again.node.membership.voters == ("a", "b", "d")

    def test_another_voters_directory_refuses_to_start(self, tmp_path):
        voter = Guarded(tmp_path)
        with pytest.raises(MembersContradict, match="belongs to voter a"):
            Guarded(tmp_path, disk=voter.disk, node_id="b")


class TestTheClusterId:
    def test_the_first_leaders_choice_is_everyones_once_committed(self, tmp_path):
        leader = Guarded(tmp_path / "a")
        leader.lead()
        (first,) = leader.node.journal[1:2]
        assert not leader.node.membership.cluster_id
        leader.acknowledge("b", 2)
        other = Guarded(tmp_path / "c", node_id="c", disk=Disk("c"))
        other.get("a", AppendEntries(1, 1, 1, 0, [first]))
        assert not other.node.membership.cluster_id
        other.get("a", AppendEntries(1, 2, 2, 1, []))
        assert other.node.membership.cluster_id == leader.node.membership.cluster_id != ""
