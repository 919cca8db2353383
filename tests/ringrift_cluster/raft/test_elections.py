"""G9 and G15: who may disturb whom, and how leadership is handed over."""

from __future__ import annotations

import pytest

from ringrift_cluster.raft import seams
from ringrift_cluster.raft.messages import (
    AppendEntries,
    AppendReply,
    HandOver,
    PreVote,
    PreVoteReply,
    RequestVote,
    TimeoutNow,
    Vote,
)
from ringrift_cluster.replica import Proposed
from tests.ringrift_cluster.raft.alone import Guarded, Stock, entries


class TestAVoterThatWasAwayDisturbsNobody:
    """G9"""

    def test_stock_raises_its_term_at_every_timeout(self):
        stock = Stock()
        for _ in range(100):
            stock.time.now += 0.1
            stock.doTick()
        assert stock.inside.term >= 5

    def test_a_passed_deadline_asks_first_and_changes_nothing(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=3, last=4)
        voter.wait(5.0)
        questions = voter.take(PreVote)
        assert questions
        assert questions[0] == ("b", PreVote(questions[0][1].round, 4, 4, 3))
        assert voter.inside.term == 3
        assert not voter.take(RequestVote)

    def test_a_majority_of_grants_starts_the_election(self, tmp_path):
        voter = Guarded(tmp_path)
        assert voter.lead() == 1

    def test_a_grant_of_an_earlier_round_does_not_count(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.wait(1.1)
        first = voter.take(PreVote)[0][1]
        voter.wait(1.1)
        voter.get("b", PreVoteReply(first.round, 0, True))
        assert voter.inside.term == 0

    def test_a_grant_for_a_term_in_which_it_voted_for_another_does_not_count(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.wait(1.1)
        question = voter.take(PreVote)[-1][1]
        voter.get("b", RequestVote(question.term, 1, 0))
        assert voter.take(Vote) == [("b", Vote(question.term))]
        # It was on its way when b won the election.
        voter.get("c", PreVoteReply(question.round, 0, True))
        voter.turn()
        assert (voter.inside.term, voter.take(RequestVote)) == (question.term, [])

    def test_grants_in_hand_do_not_outlive_a_vote_for_another(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.wait(1.1)
        question = voter.take(PreVote)[-1][1]
        voter.get("c", PreVoteReply(question.round, 0, True), RequestVote(question.term, 1, 0))
        voter.take(PreVote)
        voter.wait(1.1)
        assert (voter.inside.term, voter.take(RequestVote)) == (question.term, [])
        assert voter.take(PreVote)[0][1].term == question.term + 1

    def test_a_leader_that_speaks_ends_the_round(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.wait(1.1)
        question = voter.take(PreVote)[-1][1]
        voter.get("c", AppendEntries(1, 1, 1, 0, []), PreVoteReply(question.round, 0, True))
        assert voter.inside.leader_id == "c"
        assert voter.inside.term == 1

    @pytest.mark.parametrize("changes", [{}, {"voters": (), "node_id": "d", "join": False}], ids=["voter", "joins"])
    def test_a_deadline_that_passes_after_we_looked_begins_no_election(self, tmp_path, changes):
        """The library reads the clock itself: a turn may be held up for any time in between."""
        voter = Guarded(tmp_path, **changes)
        if not voter.node.membership.others:
            voter.greet("b", configured=3)
            voter.turn()
        seams.outside.clock = lambda: voter.time.now + 60.0
        for _ in range(3):
            voter.turn()
        assert not voter.take(RequestVote)
        assert voter.inside.term == 0
        assert voter.node.status.role in ("voter", "learner")

    def test_it_is_refused_while_the_leader_is_heard(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=1, last=2)
        voter.get("c", PreVote(1, 2, 9, 1))
        assert voter.take(PreVoteReply) == [("c", PreVoteReply(1, 1, False))]

    def test_it_is_granted_once_the_leader_was_silent(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=1, last=2)
        voter.time.now += 0.6
        voter.get("c", PreVote(1, 2, 9, 1))
        assert voter.take(PreVoteReply) == [("c", PreVoteReply(1, 1, True))]

    def test_it_is_granted_at_once_when_the_leaders_connection_broke(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=1, last=2)
        voter.node.disconnected("b")
        voter.get("c", PreVote(1, 2, 9, 1))
        assert voter.take(PreVoteReply)[0][1].granted

    def test_a_broken_connection_to_the_leader_brings_the_election_near(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=1, last=2)
        voter.node.disconnected("b")
        voter.turn()
        assert 0.05 <= voter.inside.deadline - voter.time.now <= 0.25

    def test_it_is_refused_to_a_log_that_is_behind(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=2, last=5)
        voter.time.now += 2
        voter.get("c", PreVote(1, 3, 9, 1), PreVote(2, 3, 4, 2), PreVote(3, 3, 5, 2))
        assert [m.granted for _, m in voter.take(PreVoteReply)] == [False, False, True]

    def test_a_leader_that_a_quorum_answers_refuses(self, tmp_path):
        voter = Guarded(tmp_path)
        term = voter.lead()
        voter.acknowledge("b", 2)
        voter.get("c", PreVote(1, term + 1, 9, term))
        assert not voter.take(PreVoteReply)[0][1].granted

    def test_a_refusal_with_a_higher_term_is_learned(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.wait(1.1)
        question = voter.take(PreVote)[-1][1]
        voter.get("b", PreVoteReply(question.round, 7, False))
        assert voter.inside.term == 7
        voter.wait(1.1)
        assert voter.take(PreVote)[-1][1].term == 8

    def test_an_append_of_a_lower_term_is_answered_with_ours(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=5, last=2)
        voter.get("c", AppendEntries(2, 1, 1, 0, entries(2, 2, 2)))
        ((peer, reply),) = voter.take(AppendReply)
        assert (peer, reply.term, reply.success) == ("c", 5, False)

    def test_one_voter_counts_once(self, tmp_path):
        voter = Guarded(tmp_path, voters=("a", "b", "c", "d", "e"))
        voter.wait(1.1)
        question = voter.take(PreVote)[-1][1]
        for peer in ("b", "c"):
            voter.get(peer, PreVoteReply(question.round, 0, True))
        voter.turn()
        assert voter.take(RequestVote)
        voter.get("b", Vote(1), Vote(1), Vote(1))
        assert voter.node.status.role == "candidate"
        voter.get("c", Vote(1))
        assert voter.node.status.role == "leader"

    def test_a_single_voter_asks_nobody(self, tmp_path):
        voter = Guarded(tmp_path, voters=("a",))
        voter.wait(1.2)
        voter.turn()
        assert voter.node.status.role == "leader"
        assert voter.node.outlook.ready


class TestLeadershipIsHandedOver:
    """G15"""

    def test_stock_denies_it_while_the_target_is_behind(self):
        stock = Stock()
        stock.lead()
        stock.propose(3)
        answers = []
        stock.transferLeadership(stock.nodes["b"], lambda result, error: answers.append(error))
        assert answers == [6]

    def test_proposals_wait_until_the_target_has_everything(self, tmp_path):
        voter = Guarded(tmp_path)
        term = voter.lead()
        voter.acknowledge("b", 2)
        voter.node.submit([], 5.0, lambda outcome: None)
        voter.turn()
        outcomes = []
        voter.node.hand_over("b", 3.0, outcomes.append)
        voter.node.submit([], 5.0, lambda outcome: None)
        last = voter.node.journal.last_index
        voter.turn()
        assert voter.node.journal.last_index == last
        assert not voter.take(TimeoutNow)
        voter.acknowledge("b", last)
        assert voter.take(TimeoutNow) == [("b", TimeoutNow(term))]
        voter.get("b", AppendEntries(term + 1, last, last, term, entries(last + 1, last + 1, term + 1)))
        assert outcomes == ["b"]

    def test_a_leader_nobody_relieved_goes_on(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.lead()
        voter.acknowledge("b", 2)
        outcomes, answers = [], []
        voter.node.hand_over("c", 1.0, outcomes.append)
        voter.node.submit([], 5.0, answers.append)
        for _ in range(60):
            voter.wait(0.025)
            voter.acknowledge("b", voter.node.journal.last_index)
        assert outcomes == [None]
        assert isinstance(answers[0], Proposed)

    def test_the_ordered_election_asks_nobody(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=1, last=2)
        voter.get("b", TimeoutNow(1), AppendEntries(1, 1, 2, 1, []))
        voter.turn()
        assert voter.take(RequestVote)[0][1] == RequestVote(2, 2, 1)
        assert not voter.take(PreVote)

    def test_an_order_of_someone_else_is_ignored(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=1, last=2)
        voter.get("c", TimeoutNow(1))
        assert voter.inside.term == 1

    def test_one_that_cannot_win_lets_the_order_pass(self, tmp_path):
        """As a voter that was just named, which the leader alone is connected to yet."""
        voter = Guarded(tmp_path, voters=("a", "b", "c", "d"))
        voter.follow(term=1, last=2)
        for peer in "cd":
            voter.node.disconnected(peer)
        voter.get("b", TimeoutNow(1))
        voter.turn()
        assert voter.inside.term == 1
        assert not voter.take(RequestVote)
        voter.greet("c")
        voter.get("b", TimeoutNow(1))
        voter.turn()
        assert {peer for peer, _ in voter.take(RequestVote)} >= {"b", "c"}

    @pytest.mark.parametrize(("target", "ordered"), [("b", ["b", "b", "b"]), (None, ["b", "c", "b"])])
    def test_an_order_that_nobody_takes_is_repeated_and_goes_round_where_no_target_was_named(
        self, tmp_path, target, ordered
    ):
        voter = Guarded(tmp_path)
        voter.lead()
        voter.node.hand_over(target, 3.0, lambda leader: None)
        found: list[str] = []
        for _ in range(20):
            for peer in "bc":
                voter.acknowledge(peer, voter.node.journal.last_index)
            voter.wait(0.025)
            found += [peer for peer, _ in voter.take(TimeoutNow)]
        assert found == ordered

    def test_another_voter_asks_the_leader(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=1, last=2)
        voter.node.hand_over("a", 1.0, lambda leader: None)
        assert voter.take(HandOver) == [("b", HandOver("a"))]
