"""G14: who votes is what the log says, from the append on; one change at a time."""

from __future__ import annotations

import pytest

from ringrift_cluster.raft.changes import Outcome
from ringrift_cluster.raft.configuration import Configuration
from ringrift_cluster.raft.errors import DiskLost, Removed
from ringrift_cluster.raft.messages import (
    AppendEntries,
    AppendReply,
    Hello,
    PreVote,
    PreVoteReply,
    RequestVote,
    Vote,
    Welcome,
)
from ringrift_cluster.replica import ChangeRefused, NoLeader
from statemachine.commands import AddWork, ConfigureVoters, Once, encode_command
from statemachine.entries import encode_entry
from statemachine.values import Voter
from tests.ringrift_cluster.raft.alone import Guarded, Stock, entries


def voters(*names: str, **logs: str) -> tuple[Voter, ...]:
    return tuple(Voter(n, f"{n}:1", f"http://{n}", logs.get(n, "" if n == "a" else f"log-of-{n}")) for n in names)


def listing(index: int, term: int, *names: str, **logs: str) -> tuple[bytes, int, int]:
    """A log entry that says who votes."""
    command = encode_command(ConfigureVoters(voters(*names, **logs)))
    return b"\x02" + encode_entry(term, 0, [command]), index, term


def hello(peer: str, *, log: str = "", configured: int = 0, names: tuple[str, ...] = ("a", "b", "c")) -> Hello:
    return Hello(1, peer, "", log or f"log-of-{peer}", True, list(names), b"", configured)


class Leading(Guarded):
    """Leader a of a, b, c, whose list with everybody's log is committed and applied by b."""

    def __init__(self, directory) -> None:
        super().__init__(directory)
        self.lead()
        self.acknowledge("b", self.node.journal.last_index)
        self.wait(0.6)
        self.settle()
        assert self.node.membership.configuration.index > 0
        self.outcomes: list[Outcome] = []

    def settle(self, *peers: str) -> None:
        """These acknowledge and apply everything, in two rounds."""
        for _ in range(2):
            last = self.node.journal.last_index
            for peer in peers or ("b",):
                self.get(peer, AppendReply(self.inside.term, last + 1, True, last, last))
        self.sent.clear()

    def remove(self, name: str) -> None:
        self.node.remove_voter(name, "", self.outcomes.append)

    @property
    def counted(self) -> tuple[str, ...]:
        return self.node.membership.voters

    def refused(self) -> str:
        outcome = self.outcomes.pop()
        assert isinstance(outcome, ChangeRefused)
        return str(outcome)


class TestTheListInEffect:
    def test_it_counts_from_the_append_and_goes_with_the_entry(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.get("b", AppendEntries(1, 1, 1, 0, [*entries(2, 2, 1), listing(3, 1, "a", "b")]))
        assert voter.node.membership.voters == ("a", "b")
        assert {str(n.id) for n in voter.node._consensus.otherNodes} == {"b"}
        voter.get("b", AppendEntries(2, 1, 2, 1, entries(3, 3, 2)))
        assert voter.node.membership.voters == ("a", "b", "c")
        assert {str(n.id) for n in voter.node._consensus.otherNodes} == {"b", "c"}

    def test_stock_forgets_an_entry_that_it_has_not_applied_when_it_restarts(self):
        # What the correction is for: the library changes its list when an entry is applied after a restart.
        stock = Stock(dynamicMembershipChange=True)
        assert {str(n.id) for n in stock.otherNodes} == {"b", "c"}
        assert "_SyncObj__changeClusterIDx" in vars(stock)
        assert vars(stock)["_SyncObj__changeClusterIDx"] is None

    def test_it_survives_a_restart_before_it_is_applied(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.get("b", AppendEntries(1, 1, 1, 0, [*entries(2, 2, 1), listing(3, 1, "a", "b", "c", "d")]))
        again = Guarded(tmp_path, disk=voter.disk, join=False)
        assert again.inside.applied < 3
        assert again.node.membership.voters == ("a", "b", "c", "d")
        assert again.node.membership.quorum == 3

    def test_an_entry_that_names_nobody_is_no_list(self, tmp_path):
        voter = Guarded(tmp_path)
        bad = b"\x02" + encode_entry(1, 0, [encode_command(AddWork(work="w", work_type="t"))])
        voter.get("b", AppendEntries(1, 1, 1, 0, [*entries(2, 2, 1), (bad, 3, 1)]))
        assert voter.node.journal.last_index == 1
        assert voter.node.counters.refusals["malformed"] == 1

    def test_the_first_leader_writes_down_which_log_each_voter_holds(self, tmp_path):
        leader = Leading(tmp_path)
        written = {v.node: v.log_id for v in leader.node.membership.configuration.voters}
        assert written == {"a": leader.node.membership.log_id, "b": "log-of-b", "c": "log-of-c"}
        assert leader.node.machine.state.voters.voters == leader.node.membership.configuration.voters

    def test_no_command_changes_it(self, tmp_path):
        leader = Leading(tmp_path)
        for command in (ConfigureVoters(voters("a")), Once("r", 10**9, ConfigureVoters(voters("a")))):
            said: list[object] = []
            leader.node.submit([encode_command(command)], 1.0, said.append)
            leader.turn()
            assert "`ringrift-node voters`" in str(said[0])
        assert leader.counted == ("a", "b", "c")


class TestOneAtATime:
    def test_a_second_change_waits_until_a_majority_has_applied_the_first(self, tmp_path):
        leader = Leading(tmp_path)
        leader.settle("b", "c")
        leader.remove("c")
        assert leader.counted == ("a", "b")
        leader.remove("b")
        assert "one change at a time: remove c is under way" in leader.refused()
        last = leader.node.journal.last_index
        leader.get("b", AppendReply(leader.inside.term, last + 1, True, last, last - 1))
        assert leader.inside.commit == last
        leader.remove("b")
        assert "one change at a time" in leader.refused()
        leader.settle("b")
        assert leader.outcomes == [leader.node.membership.configuration]

    def test_no_change_before_an_entry_of_the_leaders_own_term_is_committed(self, tmp_path):
        leader = Guarded(tmp_path)
        leader.lead()
        outcomes: list[Outcome] = []
        leader.node.remove_voter("c", "", outcomes.append)
        leader.wait(0.9)
        assert not outcomes
        leader.wait(0.2)
        assert "an entry of its own term" in str(outcomes[0])

    def test_what_remains_must_have_a_majority_that_answers(self, tmp_path):
        leader = Leading(tmp_path)
        leader.wait(1.5)
        last = leader.node.journal.last_index
        leader.get("b", AppendReply(leader.inside.term, last + 1, True, last, last))
        leader.time.now += 0.9
        leader.get("c", AppendReply(leader.inside.term, last + 1, True, last, last))
        leader.time.now += 0.9
        leader.get("c", AppendReply(leader.inside.term, last + 1, True, last, last))
        leader.remove("c")
        leader.wait(1.1)
        assert "no majority answers: b is silent" in leader.refused()
        assert leader.counted == ("a", "b", "c")

    def test_a_voter_that_this_leader_has_not_heard_yet_is_not_counted_on(self, tmp_path):
        leader = Leading(tmp_path)
        leader.remove("b")
        assert leader.counted == ("a", "b", "c")
        leader.settle("b")
        leader.wait(1.1)
        assert "no majority answers: c is silent" in leader.refused()

    def test_a_change_goes_on_once_the_others_have_answered_this_leader(self, tmp_path):
        leader = Leading(tmp_path)
        leader.settle("c")
        leader.get("b", AppendReply(5, 1, False, 1, 1))
        leader.lead()
        leader.settle("b")
        leader.remove("b")
        assert leader.counted == ("a", "b", "c")
        leader.settle("c")
        assert leader.counted == ("a", "c")

    def test_one_that_cannot_be_added_is_told_why_it_was_turned_away(self, tmp_path):
        leader = Leading(tmp_path)
        joins = Voter("d", "d:1", "http://d", "log-of-d")
        leader.node.add_voter(joins, "", 2.0, leader.outcomes.append)
        assert leader.node.judge(Hello(1, "d", "another", "log-of-d", False, [], b"", 0)).reason == "other_cluster"
        for _ in range(30):
            leader.time.now += 0.1
            leader.settle("b")
        said = leader.refused()
        assert "d did not catch up in time over its raft address d:1" in said
        assert "d to another" in said

    def test_a_leader_does_not_remove_itself(self, tmp_path):
        leader = Leading(tmp_path)
        leader.remove("a")
        assert isinstance(leader.outcomes[0], NoLeader)

    def test_a_repeat_of_a_request_takes_effect_once(self, tmp_path):
        leader = Leading(tmp_path)
        leader.settle("b", "c")
        for _ in range(2):
            leader.node.remove_voter("c", "r1", leader.outcomes.append)
        leader.settle("b")
        leader.node.remove_voter("c", "r1", leader.outcomes.append)
        assert leader.outcomes == [leader.node.membership.configuration] * 3
        leader.remove("c")
        assert "c is not a voter" in leader.refused()


class TestTheOneThatGoes:
    def test_it_is_sent_nothing_of_it_before_it_is_committed(self, tmp_path):
        leader = Leading(tmp_path)
        leader.settle("b", "c")
        leader.remove("c")
        leader.wait(0.2)
        assert "c" not in {peer for peer, _ in leader.take(AppendEntries)}
        leader.settle("b")
        leader.wait(0.2)
        assert "c" in {peer for peer, _ in leader.take(AppendEntries)}

    def test_it_stops_once_it_knows_that_it_is_committed(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.get("b", AppendEntries(1, 1, 1, 0, [*entries(2, 2, 1), listing(3, 1, "b", "c")]))
        voter.wait(3.0)
        assert not voter.take(PreVote)
        with pytest.raises(Removed, match=r"a is no longer a voter of the cluster \(b, c are\)"):
            voter.get("b", AppendEntries(1, 3, 3, 1, []))

    def test_late_acknowledgements_of_it_stop_nobody(self, tmp_path):
        leader = Leading(tmp_path)
        leader.settle("b", "c")
        leader.remove("c")
        leader.acknowledge("c", leader.node.journal.last_index)
        assert leader.inside.commit < leader.node.journal.last_index
        assert leader.node.counters.refusals["not_a_voter"] == 1

    def test_its_vote_is_not_counted(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.get("b", AppendEntries(1, 3, 1, 0, [*entries(2, 2, 1), listing(3, 1, "a", "b", "d")]))
        voter.greet("d")
        for _ in range(100):
            voter.wait(0.025)
            for _, question in voter.take(PreVote)[:1]:
                for peer in ("c", "b"):
                    voter.node.deliver(peer, PreVoteReply(question.round, question.term - 1, True))
            if asked := voter.take(RequestVote):
                assert {peer for peer, _ in asked} == {"b", "d"}
                voter.get("c", Vote(asked[0][1].term))
                assert voter.node.status.role == "candidate"
                return
        raise AssertionError("no election was held")

    def test_one_that_was_away_is_told_by_those_that_know(self, tmp_path):
        other = Guarded(tmp_path / "a")
        other.get("b", AppendEntries(1, 3, 1, 0, [*entries(2, 2, 1), listing(3, 1, "a", "b")]))
        told = other.node.judge(hello("c", configured=2))
        assert told.reason == "removed"
        assert "`ringrift-node voters add c`" in told.detail
        away = Guarded(tmp_path / "c", node_id="c")
        away.node.welcomed(hello("a", configured=3), told)
        with pytest.raises(Removed, match="c is not a voter of the cluster"):
            away.turn()


class TestTheLogOfAVoter:
    def test_the_list_says_which_one_it_is(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.get("b", AppendEntries(1, 3, 1, 0, [*entries(2, 2, 1), listing(3, 1, "a", "b", "c", c="new")]))
        assert voter.node.judge(hello("c")).reason == "other_log"
        assert not voter.node.judge(hello("c", log="new")).reason

    def test_who_knows_a_later_list_is_let_in(self, tmp_path):
        voter = Guarded(tmp_path)
        assert voter.node.judge(hello("d")).reason == "not_a_voter"
        assert not voter.node.judge(hello("d", configured=9)).reason
        assert not voter.node.judge(hello("c", log="new", configured=9)).reason

    def test_a_voter_of_the_last_committed_list_is_let_in_until_the_next_is(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.get("b", AppendEntries(1, 2, 1, 0, [*entries(2, 2, 1), listing(3, 1, "a", "b")]))
        assert not voter.node.judge(hello("c")).reason
        voter.get("b", AppendEntries(1, 3, 3, 1, []))
        assert voter.node.judge(hello("c")).reason == "removed"

    def test_one_that_joins_follows_and_does_not_campaign_until_it_is_named(self, tmp_path):
        joins = Guarded(tmp_path, node_id="d", voters=(), join=False)
        log = joins.node.membership.log_id
        assert joins.node.judge(hello("b")).reason == "not_a_voter"
        joins.greet("b", configured=3)
        joins.get("b", AppendEntries(1, 3, 1, 0, [*entries(2, 2, 1), listing(3, 1, "a", "b", a="log-of-a")]))
        assert joins.take(AppendReply)
        joins.wait(3.0)
        assert not joins.take(PreVote)
        assert joins.node.status.role == "learner"
        joins.get("b", AppendEntries(1, 3, 3, 1, [listing(4, 1, "a", "b", "d", a="log-of-a", d=log)]))
        assert joins.node.status.role == "learner"
        joins.get("b", AppendEntries(1, 4, 4, 1, []))
        assert joins.node.status.role == "voter"
        joins.wait(3.0)
        assert joins.take(PreVote)

    @pytest.mark.parametrize("reason", ["removed", "other_log"])
    def test_a_voter_that_lags_cannot_end_one_that_joins(self, tmp_path, reason):
        joins = Guarded(tmp_path, node_id="d", voters=(), join=False)
        joins.node.welcomed(hello("b", configured=3), Welcome(reason, "b knows d by its log of last week"))
        joins.turn()
        assert joins.node.halted is None

    @pytest.mark.parametrize("reason", ["removed", "other_log"])
    def test_nor_one_that_was_named_while_that_voter_answered(self, tmp_path, reason):
        joins = Guarded(tmp_path, node_id="d", voters=(), join=False)
        log = joins.node.membership.log_id
        joins.greet("b", configured=3)
        joins.get(
            "b", AppendEntries(1, 2, 1, 0, [*entries(2, 2, 1), listing(3, 1, "a", "b", "d", a="log-of-a", d=log)])
        )
        joins.get("b", AppendEntries(1, 3, 3, 1, []))
        assert not joins.node.membership.joining
        joins.node.welcomed(hello("a", configured=2), Welcome(reason, "a knows d by an older list"))
        joins.turn()
        assert joins.node.status.role == "voter"
        # A list that is no older than its own is another matter.
        with pytest.raises((Removed, DiskLost)):
            joins.node.welcomed(hello("a", configured=3), Welcome(reason, "a knows d by this list"))
            joins.turn()


def test_lists_that_differ_in_one_voter_have_majorities_that_meet():
    for size in range(1, 8):
        small, large = Configuration(1, voters(*"abcdefgh"[:size])), Configuration(2, voters(*"abcdefgh"[: size + 1]))
        assert small.quorum + large.quorum > size + 1
