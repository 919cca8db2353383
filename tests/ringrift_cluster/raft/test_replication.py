"""G1 to G4, G8, G10, G11: each with the messages that break pysyncobj as it comes."""

from __future__ import annotations

import pysyncobj.pickle
import pysyncobj.syncobj as library
import pytest

from ringrift_cluster.raft.errors import Diverged
from ringrift_cluster.raft.journal import Journal, Stored
from ringrift_cluster.raft.messages import AppendEntries, AppendReply
from ringrift_cluster.replica import Proposed, TooLarge
from statemachine.commands import MAX_COMMAND_BYTES, AddWork, encode_command
from tests.ringrift_cluster.raft.alone import Guarded, Stock, entries, entry


class TestARepeatedAppendRemovesNothing:
    """G1"""

    def test_stock_truncates_entries_it_has_acknowledged(self):
        stock = Stock()
        stock.append(1, 1, 0, entries(2, 5, 1))
        assert stock.take("next_node_idx")[-1]["next_node_idx"] == 6
        stock.append(1, 1, 0, entries(2, 3, 1))
        assert stock.log[-1][1] == 3

    def test_a_resend_of_the_first_entries_keeps_the_later_ones(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=1, last=5)
        voter.get("b", AppendEntries(1, 1, 1, 0, entries(2, 3, 1)))
        assert voter.node.journal.last_index == 5
        assert voter.take(AppendReply) == [("b", AppendReply(1, 4, True, 5))]

    def test_a_late_heartbeat_keeps_the_later_entries_and_commits_only_what_it_verified(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=1, last=5)
        voter.get("b", AppendEntries(1, 5, 3, 1, []))
        assert voter.node.journal.last_index == 5
        assert voter.inside.commit == 3

    def test_a_resend_that_goes_further_adds_only_what_is_new(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=1, last=5)
        voter.get("b", AppendEntries(1, 1, 1, 0, entries(2, 7, 1)))
        assert voter.node.journal.last_index == 7
        assert voter.take(AppendReply) == [("b", AppendReply(1, 8, True, 7))]

    def test_a_real_conflict_is_truncated(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=1, last=5)
        voter.get("b", AppendEntries(2, 1, 3, 1, entries(4, 4, 2)))
        assert (voter.node.journal.last_index, voter.node.journal.last_term) == (4, 2)
        assert sorted(voter.disk.entries) == [1, 2, 3, 4]

    def test_entries_below_the_first_one_held_are_no_rejection(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=1, last=9, commit=9)
        voter.node.journal.drop_before(6)
        voter.get("b", AppendEntries(1, 9, 3, 1, entries(4, 10, 1)))
        assert voter.node.journal.last_index == 10
        assert voter.take(AppendReply) == [("b", AppendReply(1, 11, True, 10))]


class TestASuccessDoesNotSetTheLeaderBack:
    """G2"""

    def test_stock_sends_again_what_is_in_flight(self):
        stock = Stock()
        stock.lead()
        stock.propose(5)
        b = stock.nodes["b"]
        before = stock.inside.next_index[b]
        stock.get("b", {"type": "next_node_idx", "next_node_idx": 3, "reset": False, "success": True})
        assert stock.inside.next_index[b] == 3 < before

    def test_the_larger_next_index_is_kept(self, tmp_path):
        voter = Guarded(tmp_path)
        term = voter.lead()
        for _ in range(5):
            voter.node.submit([], 5.0, lambda outcome: None)
            voter.turn()
        node = "b"
        before = voter.inside.next_index[node]
        voter.get("b", AppendReply(term, 3, True, voter.node.journal.last_index))
        assert voter.inside.next_index[node] == before
        assert voter.inside.match_index[node] == 2


class TestARepliesTermCounts:
    """G3"""

    def test_stock_counts_a_reply_to_an_earlier_term(self):
        stock = Stock()
        stock.lead()
        stock.propose(1)
        stock.get("b", {"type": "next_node_idx", "next_node_idx": 4, "reset": False, "success": True, "term": 0})
        stock.doTick()
        assert stock.inside.commit == 3

    def test_a_reply_of_an_earlier_term_is_ignored(self, tmp_path):
        voter = Guarded(tmp_path)
        term = voter.lead()
        voter.get("b", AppendReply(term - 1, 3, True, 2))
        assert voter.inside.match_index["b"] == 0
        assert voter.inside.commit == 1

    def test_a_reply_of_a_later_term_ends_the_leadership(self, tmp_path):
        voter = Guarded(tmp_path)
        term = voter.lead()
        voter.get("b", AppendReply(term + 3, 1, False, 2))
        assert voter.node.status.role == "voter"
        assert voter.inside.term == term + 3

    def test_a_held_reply_keeps_the_term_it_was_made_in(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.node.deliver("b", AppendEntries(1, 1, 1, 0, entries(2, 2, 1)))
        voter.node.deliver("c", AppendEntries(2, 1, 1, 0, entries(2, 2, 2)))
        voter.turn()
        assert voter.take(AppendReply) == [("b", AppendReply(1, 3, True, 2)), ("c", AppendReply(2, 3, True, 2))]


class TestARejectionLeadsStraightToWhatIsCertain:
    """G4"""

    def test_stock_goes_back_one_entry_a_round(self):
        stock = Stock()
        stock.append(1, 1, 0, entries(2, 100, 1))
        stock.take("next_node_idx")
        stock.append(3, 100, 2, [])
        assert stock.take("next_node_idx")[-1]["next_node_idx"] == 100

    def test_a_mismatch_is_answered_with_the_end_of_what_is_committed(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=1, last=100, commit=40)
        voter.get("c", AppendEntries(3, 90, 100, 2, []))
        assert voter.take(AppendReply) == [("c", AppendReply(3, 41, False, 100))]
        assert voter.inside.commit == 40

    def test_a_missing_entry_is_answered_the_same_way(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=1, last=50, commit=40)
        voter.get("b", AppendEntries(1, 90, 80, 1, entries(81, 90, 1)))
        assert voter.take(AppendReply) == [("b", AppendReply(1, 41, False, 50))]
        assert voter.inside.commit == 40

    def test_the_leader_never_goes_below_what_matches(self, tmp_path):
        voter = Guarded(tmp_path)
        term = voter.lead()
        voter.acknowledge("b", 2)
        voter.take(AppendEntries)
        voter.get("b", AppendReply(term, 1, False, voter.node.journal.last_index))
        starts = [m.prev_index for peer, m in voter.take(AppendEntries) if peer == "b"]
        assert starts
        assert min(starts) == 2

    def test_several_rejections_of_one_gap_go_back_once(self, tmp_path):
        voter = Guarded(tmp_path)
        term = voter.lead()
        for _ in range(6):
            voter.node.submit([], 5.0, lambda outcome: None)
            voter.turn()
        voter.take(AppendEntries)
        voter.get("b", *[AppendReply(term, 2, False, 1)] * 5)
        again = [m for peer, m in voter.take(AppendEntries) if peer == "b" and m.entries]
        assert len(again) == 1

    def test_a_voter_that_lost_acknowledged_entries_is_excluded(self, tmp_path):
        voter = Guarded(tmp_path)
        term = voter.lead()
        for _ in range(6):
            voter.node.submit([], 5.0, lambda outcome: None)
            voter.turn()
        voter.acknowledge("b", 6)
        assert voter.inside.commit == 6
        voter.get("b", AppendReply(term, 2, False, 1))
        assert "its disk lost data" in voter.node.guard.excluded["b"]
        voter.wait(0.1)
        assert "its disk lost data" in voter.node.status.refused["b"]
        voter.get("b", AppendReply(term, 9, True, 8))
        assert voter.inside.commit == 6


class TestWhatIsCommittedIsNeverRemoved:
    """G8"""

    def test_stock_only_logs_it(self, caplog):
        stock = Stock()
        stock.append(1, 1, 0, entries(2, 5, 1), commit=5)
        stock.doTick()
        stock.append(2, 2, 1, entries(3, 3, 2))
        assert stock.log[-1][1] == 3
        assert "may have diverged" in caplog.text

    def test_a_conflict_below_the_commit_index_stops_the_voter(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=1, last=5, commit=5)
        with pytest.raises(Diverged, match="committed"):
            voter.get("b", AppendEntries(2, 5, 2, 1, entries(3, 3, 2)))

    def test_another_term_below_the_commit_index_stops_the_voter(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=1, last=5, commit=5)
        with pytest.raises(Diverged, match="differ where they cannot"):
            voter.get("b", AppendEntries(3, 5, 4, 2, []))


class TestEntriesTravelWhole:
    """G10"""

    def test_stock_marks_the_last_piece_twice(self, monkeypatch):
        monkeypatch.setattr(library, "pickle", pysyncobj.pickle)
        stock = Stock(appendEntriesBatchSizeBytes=1000)
        stock.lead()
        stock._applyCommand(bytes([200]) * 2100, None, 0)
        stock._checkCommandsToApply()
        marks = [m["transmission"] for m in stock.take("append_entries") if "transmission" in m]
        assert marks[: len(marks) // 2].count("finish") > 1

    def test_a_command_above_the_limit_is_refused_at_the_door(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.lead()
        answers = []
        voter.node.submit([b"x" * (MAX_COMMAND_BYTES + 1)], 5.0, answers.append)
        assert isinstance(answers[0], TooLarge)

    def test_commands_that_fill_more_than_an_entry_become_several(self, tmp_path):
        voter = Guarded(tmp_path, voters=("a",))
        voter.wait(1.5)
        assert voter.node.status.role == "leader"
        answers = []
        params = {f"p{i}": "x" * 4000 for i in range(50)}
        for i in range(5):
            command = encode_command(AddWork(work=f"w{i}", work_type="t", params=params))
            voter.node.submit([command], 5.0, answers.append)
        voter.turn()
        voter.turn()
        assert all(isinstance(a, Proposed) for a in answers)
        assert len({a.index for a in answers}) == 3

    def test_an_entry_of_a_kind_we_do_not_use_is_refused(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.get("b", AppendEntries(1, 1, 1, 0, [(b"\x02membership", 2, 1)]))
        assert voter.node.journal.last_index == 1
        assert voter.node.counters.refusals["malformed"] == 1

    @pytest.mark.parametrize(
        "wrong",
        [
            [entry(3, 1)],
            [entry(2, 1), entry(4, 1)],
            [entry(2, 5)],
            [entry(2, 1), entry(3, 0)],
            [(b"", 2, 1)],
        ],
        ids=["gap before", "gap inside", "term of the future", "term goes back", "empty"],
    )
    def test_entries_that_are_no_continuation_are_refused(self, tmp_path, wrong):
        voter = Guarded(tmp_path)
        voter.get("b", AppendEntries(1, 1, 1, 0, wrong))
        assert voter.node.journal.last_index == 1
        assert voter.node.counters.refusals["malformed"] == 1


class TestCompactionKeepsOneEntry:
    """G11"""

    def test_stock_empties_its_log_and_every_tick_fails(self):
        stock = Stock()
        stock.log.deleteEntriesTo(5)
        stock.time.now += 5
        with pytest.raises(IndexError):
            stock.doTick()

    def test_our_journal_refuses(self):
        journal = Journal(Stored({}, entries(1, 3, 1)))
        with pytest.raises(Diverged, match="one must stay"):
            journal.deleteEntriesTo(3)
        journal.deleteEntriesTo(2)
        assert [e[1] for e in journal[:]] == [3]

    def test_it_refuses_to_be_cleared(self):
        with pytest.raises(Diverged):
            Journal(Stored({}, entries(1, 3, 1))).clear()
