"""G12, G13: every proposal ends once, with what is certain about it."""

from __future__ import annotations

import pytest

from ringrift_cluster.raft.conf import Limits
from ringrift_cluster.raft.messages import AppendEntries, Forward, Forwarded, ForwardResult
from ringrift_cluster.replica import Busy, Consistency, Halted, NoLeader, OutcomeUnknown, Proposed, ReplicaError, Stale
from statemachine.commands import AddWork
from statemachine.errors import Done, Halt
from statemachine.machine import HANDLERS, Machine
from tests.ringrift_cluster.raft.alone import Guarded, Stock, entries
from tests.ringrift_cluster.raft.loopback import add


class TestAnExceptionWhileApplying:
    """G12"""

    def test_stock_stands_still_for_ever(self):
        def raising(data: bytes, **keywords: bool) -> None:
            raise RuntimeError("no")

        stock = Stock()
        stock._idToMethod[0] = raising
        stock.append(1, 1, 0, entries(2, 4, 1), commit=4)
        for _ in range(3):
            with pytest.raises(RuntimeError):
                stock.doTick()
        assert stock.inside.applied == 1

    def test_a_transition_that_fails_is_a_result_and_the_log_goes_on(self, tmp_path, monkeypatch):
        voter = Guarded(tmp_path, voters=("a",))
        voter.wait(1.2)
        answers = []

        def fail(*arguments: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setitem(HANDLERS, AddWork, fail)
        voter.node.submit([add("w1")], 5.0, answers.append)
        voter.turn()
        assert answers[0].results[0].code == "internal_error"
        monkeypatch.undo()
        voter.node.submit([add("w2")], 5.0, answers.append)
        voter.turn()
        assert isinstance(answers[1].results[0], Done)

    def test_an_entry_that_cannot_be_read_stops_the_voter(self, tmp_path):
        voter = Guarded(tmp_path)
        with pytest.raises(Halt, match="cannot be read"):
            voter.get("b", AppendEntries(1, 2, 1, 0, [(b"\x00garbage", 2, 1)]))

    def test_a_command_that_cannot_be_read_never_gets_into_the_log(self, tmp_path):
        voter = Guarded(tmp_path, voters=("a",))
        voter.wait(1.2)
        answers = []
        last = voter.node.journal.last_index
        voter.node.submit([b"garbage"], 5.0, answers.append)
        voter.node.submit([add("w")], 5.0, answers.append)
        voter.turn()
        assert isinstance(answers[0], ReplicaError)
        assert "cannot be decoded" in str(answers[0])
        assert isinstance(answers[1], Proposed)
        assert voter.node.journal.last_index == last + 1


class TestOutcomes:
    """G13"""

    def test_stock_never_answers_a_leader_that_was_cut_off(self):
        stock = Stock()
        stock.lead()
        answers = []
        stock._applyCommand(b"x", lambda result, error: answers.append(error), 0)
        for _ in range(600):
            stock.time.now += 0.1
            stock.doTick()
        assert stock.inside.role != 2
        assert not answers

    def test_all_that_waits_in_one_turn_is_one_entry(self, tmp_path):
        voter = Guarded(tmp_path, voters=("a",))
        voter.wait(1.2)
        answers = []
        for i in range(50):
            voter.node.submit([add(f"w{i}"), add(f"x{i}")], 5.0, answers.append)
        voter.turn()
        assert len({a.index for a in answers}) == 1
        assert [a.results[0].value["work"] for a in answers] == [f"w{i}" for i in range(50)]
        assert answers[7].results[1].value["work"] == "x7"

    def test_without_an_answer_in_time_it_is_unknown(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.lead()
        answers = []
        voter.node.submit([add("w")], 0.5, answers.append)
        voter.wait(0.7)
        assert isinstance(answers[0], OutcomeUnknown)

    def test_without_a_leader_it_was_certainly_not_proposed(self, tmp_path):
        voter = Guarded(tmp_path)
        answers = []
        voter.node.submit([add("w")], 10.0, answers.append)
        voter.wait(3.2)
        assert isinstance(answers[0], NoLeader)
        assert voter.node.journal.last_index == 1

    def test_what_another_leader_replaced_is_proposed_again(self, tmp_path):
        voter = Guarded(tmp_path)
        term = voter.lead()
        voter.acknowledge("b", 2)
        answers = []
        voter.node.submit([add("w")], 5.0, answers.append)
        voter.turn()
        voter.get("b", AppendEntries(term + 1, 4, 2, term, entries(3, 4, term + 1)))
        assert not answers
        voter.turn()
        ((peer, forward),) = voter.take(Forward)
        assert peer == "b"
        assert forward.items[0][1] == [add("w")]

    def test_what_survived_a_change_of_leaders_is_answered(self, tmp_path):
        voter = Guarded(tmp_path)
        term = voter.lead()
        voter.acknowledge("b", 2)
        answers = []
        voter.node.submit([add("w")], 5.0, answers.append)
        voter.turn()
        at = voter.node.journal.last_index
        voter.get("b", AppendEntries(term + 1, at + 1, at, term, entries(at + 1, at + 1, term + 1)))
        assert isinstance(answers[0], Proposed)
        assert (answers[0].index, answers[0].term) == (at, term)

    def test_what_a_leader_displaces_itself_when_it_leads_again_is_unknown_and_frees_its_room(self, tmp_path):
        voter = Guarded(tmp_path)
        term = voter.lead()
        voter.acknowledge("b", 2)
        answers = {}

        def submit(name: str) -> None:
            voter.node.submit([add(name)], 60.0, lambda outcome: answers.setdefault(name, outcome))
            voter.turn()

        for name in ("first", "second", "third"):
            submit(name)
        last = voter.node.journal.last_index
        kept = last - 3
        voter.get("c", AppendEntries(term + 1, 2, kept, term, entries(kept + 1, kept + 1, term + 1)))
        assert voter.lead() > term + 1
        # The no-op of its new term is second, so the next entry takes the place of the third.
        submit("new")
        assert voter.node.journal.last_index == last
        assert [(name, type(a)) for name, a in answers.items()] == [("third", OutcomeUnknown)]
        for _ in range(3):
            voter.acknowledge("b", voter.node.journal.last_index)
        # The two whose places are taken for certain were proposed again.
        assert {name for name, a in answers.items() if isinstance(a, Proposed)} == {"first", "second", "new"}
        assert voter.node.proposals._in_flight_commands == 0

    def test_a_full_queue_says_come_back(self, tmp_path):
        voter = Guarded(tmp_path, limits=Limits(queue=3))
        answers = []
        for i in range(4):
            voter.node.submit([add(f"w{i}")], 5.0, answers.append)
        assert [type(a) for a in answers] == [Busy]

    def test_entries_without_a_quorum_are_bounded(self, tmp_path):
        voter = Guarded(tmp_path, limits=Limits(in_flight=5))
        voter.lead()
        for i in range(20):
            voter.node.submit([add(f"w{i}")], 5.0, lambda outcome: None)
            voter.turn()
        assert voter.node.journal.last_index == 2 + 5

    def test_a_halt_answers_everyone(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.lead()
        answers = []
        voter.node.submit([add("w")], 5.0, answers.append)
        voter.turn()
        voter.node.halt("the disk is gone")
        voter.node.submit([add("x")], 5.0, answers.append)
        assert [type(a) for a in answers] == [OutcomeUnknown, Halted]

    def test_a_closed_door_takes_no_commands(self, tmp_path):
        voter = Guarded(tmp_path)
        answers = []
        voter.node.close_door("2 MiB free")
        voter.node.submit([add("w")], 5.0, answers.append)
        assert isinstance(answers[0], Busy)
        voter.node.close_door(None)
        voter.node.submit([add("w")], 5.0, answers.append)
        assert len(answers) == 1


class TestForwarding:
    def _forwarded(self, voter: Guarded, answers: list[object]) -> int:
        voter.follow(term=1, last=2)
        voter.node.submit([add("w")], 5.0, answers.append)
        voter.turn()
        ((_, forward),) = voter.take(Forward)
        return int(forward.items[0][0])

    def test_the_leaders_answer_ends_it(self, tmp_path):
        voter, answers = Guarded(tmp_path), []
        number = self._forwarded(voter, answers)
        voter.get("b", Forwarded([ForwardResult(number, 7, 1, [Done("x")])]))
        assert answers == [Proposed(7, 1, (Done("x"),))]

    def test_a_broken_connection_leaves_it_unknown(self, tmp_path):
        voter, answers = Guarded(tmp_path), []
        self._forwarded(voter, answers)
        voter.node.disconnected("b")
        voter.turn()
        assert isinstance(answers[0], OutcomeUnknown)

    def test_one_who_does_not_lead_any_more_sends_it_back(self, tmp_path):
        voter, answers = Guarded(tmp_path), []
        number = self._forwarded(voter, answers)
        voter.get("b", Forwarded([ForwardResult(number, 0, 0, [], "not_leader")]))
        assert not answers
        assert voter.take(Forward)

    def test_an_answer_of_another_voter_is_ignored(self, tmp_path):
        voter, answers = Guarded(tmp_path), []
        number = self._forwarded(voter, answers)
        voter.get("c", Forwarded([ForwardResult(number, 7, 1, [Done("x")])]))
        assert not answers

    def test_the_leader_proposes_and_answers(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.lead()
        voter.acknowledge("b", 2)
        voter.get("c", Forward([(5, [add("w")], 1000)]))
        voter.acknowledge("b", voter.node.journal.last_index)
        ((peer, answer),) = voter.take(Forwarded)
        assert peer == "c"
        assert (answer.items[0].number, answer.items[0].refusal) == (5, "")
        assert answer.items[0].results == [Done({"work": "w", "status": "pending"})]

    def test_another_voter_says_that_nothing_was_proposed(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=1, last=2)
        voter.get("c", Forward([(5, [add("w")], 1000)]))
        assert voter.take(Forwarded)[0][1].items[0].refusal == "not_leader"


class TestReads:
    def _read(self, voter: Guarded, consistency: Consistency, at_least: int = 0, wait_s: float = 0.0) -> list[object]:
        seen: list[object] = []
        voter.node.reads.submit(consistency, at_least, wait_s, seen.append)
        return seen

    def test_a_linearizable_read_waits_for_its_own_barrier(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.lead()
        voter.acknowledge("b", 2)
        first = self._read(voter, Consistency.LINEARIZABLE)
        second = self._read(voter, Consistency.LINEARIZABLE)
        before = voter.node.journal.last_index
        voter.turn()
        assert not first
        assert voter.node.journal.last_index == before + 1
        voter.acknowledge("b", voter.node.journal.last_index)
        assert isinstance(first[0], Machine)
        assert isinstance(second[0], Machine)

    def test_a_leader_without_a_quorum_shows_nothing_linearizable(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.lead()
        seen = self._read(voter, Consistency.LINEARIZABLE)
        voter.wait(6.0)
        assert isinstance(seen[0], Stale)

    def test_a_fresh_read_wants_recent_contact(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=1, last=2)
        seen = self._read(voter, Consistency.FRESH)
        voter.turn()
        assert isinstance(seen[0], Machine)
        voter.wait(2.5)
        seen = self._read(voter, Consistency.FRESH)
        voter.turn()
        assert isinstance(seen[0], Stale)

    def test_a_read_waits_for_the_index_it_names(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=1, last=2)
        late, gone = self._read(voter, Consistency.LOCAL, 4, 1.0), self._read(voter, Consistency.LOCAL, 9, 0.2)
        voter.get("b", AppendEntries(1, 4, 2, 1, entries(3, 4, 1)))
        assert isinstance(late[0], Machine)
        voter.wait(0.3)
        assert isinstance(gone[0], Stale)


def test_while_a_voters_turn_hangs_the_word_of_its_leader_grows_older_for_whoever_asks(tmp_path):
    voter = Guarded(tmp_path)
    outlook = voter.node.outlook
    voter.get("b", AppendEntries(1, 0, 0, 0, []))
    voter.turn()
    fresh = outlook.aged()
    assert fresh is outlook.status
    voter.time.now += 60.0
    assert outlook.status.contact_age_ms == fresh.contact_age_ms
    assert outlook.aged().contact_age_ms >= fresh.contact_age_ms + 60_000
