"""G6 and G7: nothing is shown before it is on disk, and what is on disk is not thrown away."""

from __future__ import annotations

import pytest
from pysyncobj.node import Node

from ringrift_cluster.raft.errors import DiskFailed, JournalDamaged
from ringrift_cluster.raft.messages import AppendEntries, AppendReply, RequestVote, Vote
from ringrift_cluster.replica import Proposed
from tests.ringrift_cluster.raft.alone import Guarded, Stock, entries
from tests.simulation.disk import Disk


class TestAcksAndVotesWaitForTheDisk:
    """G7"""

    def test_stock_acknowledges_at_once(self):
        stock = Stock()
        stock.append(1, 1, 0, entries(2, 2, 1))
        assert stock.take("next_node_idx")[0]["success"]

    def test_an_ack_leaves_after_the_sync(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.node.deliver("b", AppendEntries(1, 1, 1, 0, entries(2, 2, 1)))
        voter.node.gather()
        assert not voter.sent
        voter.node.sync()
        assert 2 in voter.disk.entries
        assert not voter.sent
        voter.node.settle()
        assert [m for _, m in voter.sent] == [AppendReply(1, 3, True, 2)]

    def test_a_vote_leaves_after_the_sync(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.node.deliver("c", RequestVote(4, 9, 3))
        voter.node.gather()
        assert not voter.take(Vote)
        voter.node.sync()
        assert (voter.disk.facts["term"], voter.disk.facts["vote"]) == ("4", "c")
        voter.node.settle()
        assert voter.take(Vote) == [("c", Vote(4))]

    def test_a_request_for_votes_leaves_after_its_term_is_durable(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=1, last=2)
        voter.inside.deadline = 0.0
        voter.node.guard.elections.ordered()
        voter.node.settle()
        assert voter.inside.term == 2
        assert not voter.take(RequestVote)
        voter.turn()
        assert voter.disk.facts["term"] == "2"
        assert len(voter.take(RequestVote)) == 2

    def test_a_leaders_appends_leave_before_its_own_sync_and_commit_after_it(self, tmp_path):
        voter = Guarded(tmp_path)
        term = voter.lead()
        answers = []
        voter.acknowledge("b", 2)
        voter.node.submit([], 5.0, answers.append)
        voter.node.gather()
        index = voter.node.journal.last_index
        assert any(m.entries for _, m in voter.take(AppendEntries))
        assert index not in voter.disk.entries
        voter.node.deliver("b", AppendReply(term, index + 1, True, index))
        voter.node.sync()
        voter.node.settle()
        assert voter.inside.commit < index
        voter.turn()
        assert isinstance(answers[0], Proposed)
        assert index in voter.disk.entries

    def test_everything_that_gathered_is_one_write(self, tmp_path):
        voter = Guarded(tmp_path)
        writes = []
        voter.disk.write = writes.append  # type: ignore[method-assign]
        for i in range(2, 8):
            voter.node.deliver("b", AppendEntries(1, 1, i - 1, 0 if i == 2 else 1, entries(i, i, 1)))
        voter.turn()
        assert [len(b.entries) for b in writes] == [6]

    def test_the_commit_index_alone_forces_no_write(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=1, last=5)
        writes = []
        voter.disk.write = writes.append  # type: ignore[method-assign]
        voter.get("b", AppendEntries(1, 5, 5, 1, []))
        assert voter.inside.commit == 5
        assert not writes

    def test_a_failed_write_leaves_the_turn(self, tmp_path):
        voter = Guarded(tmp_path)

        def fail(batch: object) -> None:
            raise DiskFailed("the disk is gone")

        voter.disk.write = fail  # type: ignore[method-assign]
        voter.node.deliver("b", AppendEntries(1, 1, 1, 0, entries(2, 2, 1)))
        voter.node.gather()
        with pytest.raises(DiskFailed):
            voter.node.sync()
        assert not voter.take(AppendReply)


class TestARestartKeepsWhatWasAcknowledged:
    """G6"""

    def test_stock_clears_its_journal_when_the_dump_is_newer_than_its_head(self, tmp_path):
        dump = tmp_path / "dump"
        dump.write_bytes(b"x")
        log = entries(1, 9, 1)
        stock = Stock(
            fullDumpFile=str(dump),
            serializer=lambda name, data: None,
            deserializer=lambda name: (log[5], log[4], {Node("a")}),
        )
        for one in log[1:]:
            stock.log.add(*one)
        stock.doTick()
        assert [e[1] for e in stock.log[:]] == [5, 6]

    def _snapshot(self, voter: Guarded) -> int:
        voter.node.want_snapshot(0, lambda file: None)
        voter.turn()
        job = voter.node.take_job()
        assert job is not None
        job.run()
        job.finish()
        voter.turn()
        return voter.node.machine.index

    def test_the_suffix_after_a_snapshot_stays(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=1, last=6, commit=6)
        at = self._snapshot(voter)
        voter.get("b", AppendEntries(1, 6, 6, 1, entries(7, 9, 1)))
        again = Guarded(tmp_path, disk=voter.disk, time=voter.time)
        assert (again.node.machine.index, again.inside.applied) == (at, at)
        assert again.node.journal.last_index == 9
        assert again.node.machine.chain == voter.node.machine.chain

    def test_term_and_vote_come_back(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.get("c", RequestVote(4, 9, 3))
        again = Guarded(tmp_path, disk=voter.disk, time=voter.time)
        again.get("b", RequestVote(4, 9, 3))
        assert again.inside.term == 4
        assert not again.take(Vote)

    def test_an_install_that_a_crash_interrupted_is_completed(self, tmp_path):
        source = Guarded(tmp_path / "a")
        source.follow(term=1, last=6, commit=6)
        at = self._snapshot(source)
        name = f"{at}-1.snap"
        target = Guarded(tmp_path / "b", node_id="b")
        (tmp_path / "b" / name).write_bytes((tmp_path / "a" / name).read_bytes())
        again = Guarded(tmp_path / "b", node_id="b", disk=target.disk, time=target.time)
        assert (again.inside.applied, again.node.journal.first_index) == (at, at)
        assert again.disk.entries[at][2] == 1

    def test_a_damaged_snapshot_stops_the_voter(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=1, last=6, commit=6)
        at = self._snapshot(voter)
        path = tmp_path / f"{at}-1.snap"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(JournalDamaged, match=r"damaged.*voters add"):
            Guarded(tmp_path, disk=voter.disk)

    def test_a_journal_without_its_snapshot_stops_the_voter(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=1, last=6, commit=6)
        voter.node.journal.drop_before(4)
        voter.get("b", AppendEntries(1, 6, 6, 1, entries(7, 7, 1)))
        with pytest.raises(JournalDamaged, match="no snapshot before it"):
            Guarded(tmp_path, disk=voter.disk)

    def test_a_snapshot_without_its_journal_stops_the_voter(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=1, last=6, commit=6)
        self._snapshot(voter)
        with pytest.raises(JournalDamaged, match="no journal beside it"):
            Guarded(tmp_path, disk=Disk("a"))

    def test_a_gap_in_the_journal_stops_the_voter(self, tmp_path):
        voter = Guarded(tmp_path)
        voter.follow(term=1, last=6)
        del voter.disk.entries[4]
        with pytest.raises(JournalDamaged, match="gap"):
            Guarded(tmp_path, disk=voter.disk)
