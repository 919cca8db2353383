"""G5 and G6 on the wire: a snapshot is offered, fetched as a file, verified and installed in one step."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from ringrift_cluster.raft import snapshots
from ringrift_cluster.raft.compaction import PRUNE_S
from ringrift_cluster.raft.conf import Limits
from ringrift_cluster.raft.messages import AppendEntries, AppendReply, FetchPart, OfferSnapshot, Part
from ringrift_cluster.raft.snapshots import FETCH_GRACE_S, SnapshotFile
from statemachine import image
from statemachine.entries import encode_entry
from statemachine.snapshot import read_header
from tests.ringrift_cluster.raft.alone import Guarded, Stock, entries, entry
from tests.ringrift_cluster.raft.loopback import add

SMALL = Limits(part_bytes=100)


def run_jobs(voter: Guarded) -> None:
    while (job := voter.node.take_job()) is not None:
        job.run()
        job.finish()
    voter.turn()


def source(directory: Path) -> tuple[Guarded, SnapshotFile]:
    """A voter with a snapshot at 20 and the file."""
    voter = Guarded(directory, limits=SMALL)
    voter.follow(term=1, last=20, commit=20)
    files: list[SnapshotFile] = []
    voter.node.want_snapshot(0, files.append)
    voter.turn()
    run_jobs(voter)
    return voter, files[0]


def offer(file: SnapshotFile, term: int = 1) -> OfferSnapshot:
    return OfferSnapshot(term, file.index, file.term, file.size_bytes, file.sha256)


def fetch(voter: Guarded, other: Guarded, peer: str = "b", most: int = 1000) -> int:
    """Carry parts from `other` until nothing is asked any more; returns how many."""
    for count in range(most):
        asked = voter.take(FetchPart)
        if not asked:
            return count
        other.get("b", asked[0][1])
        ((_, part),) = other.take(Part)
        voter.get(peer, part)
    return most


class TestStock:
    def test_the_commit_index_runs_over_entries_nobody_verified(self):
        stock = Stock()
        stock.append(1, 1, 0, entries(2, 9, 1))
        piece = {"type": "append_entries", "term": 2, "commit_index": 9, "serialized": (b"x", True, False)}
        stock.get("b", piece)
        assert stock.inside.commit == 9


class TestAnOfferedSnapshot:
    def test_an_offer_moves_no_commit_index(self, tmp_path):
        _, file = source(tmp_path / "a")
        voter = Guarded(tmp_path / "b", node_id="c")
        voter.get("b", AppendEntries(1, 1, 1, 0, entries(2, 9, 1)), offer(file))
        assert voter.inside.commit == 1

    def test_it_is_fetched_in_parts_and_installed(self, tmp_path):
        other, file = source(tmp_path / "a")
        voter = Guarded(tmp_path / "c", node_id="c")
        voter.get("b", offer(file))
        assert fetch(voter, other) == -(-file.size_bytes // SMALL.part_bytes)
        run_jobs(voter)
        assert (voter.inside.applied, voter.inside.commit) == (20, 20)
        assert voter.node.machine.chain == other.node.machine.chain
        assert voter.take(AppendReply)[-1] == ("b", AppendReply(1, 21, True, 20))
        assert voter.disk.entries.keys() == {20}
        voter.get("b", AppendEntries(1, 21, 20, 1, [entry(21, 1)]))
        assert voter.inside.applied == 21

    def test_a_lost_part_is_asked_for_again_where_it_stopped(self, tmp_path):
        other, file = source(tmp_path / "a")
        voter = Guarded(tmp_path / "c", node_id="c")
        voter.get("b", offer(file))
        fetch(voter, other, most=2)
        assert voter.take(FetchPart)
        voter.node.disconnected("b")
        voter.node.connected("b")
        voter.time.now += 1.5
        voter.get("b", offer(file))
        ((_, asked),) = voter.take(FetchPart)
        assert asked.offset == 200

    def test_another_leader_can_finish_the_transfer(self, tmp_path):
        other, file = source(tmp_path / "a")
        voter = Guarded(tmp_path / "c", node_id="c", voters=("a", "b", "c"))
        voter.get("b", offer(file))
        fetch(voter, other, most=2)
        voter.take(FetchPart)
        voter.get("a", offer(file, term=2))
        ((peer, asked),) = voter.take(FetchPart)
        assert (peer, asked.offset) == ("a", 200)

    def test_a_newer_file_of_the_same_leader_does_not_end_a_transfer(self, tmp_path):
        other, file = source(tmp_path / "a")
        voter = Guarded(tmp_path / "c", node_id="c")
        voter.get("b", offer(file))
        fetch(voter, other, most=2)
        newer = OfferSnapshot(1, file.index + 20, file.term, file.size_bytes, "0" * 64)
        voter.get("b", newer)
        ((_, asked),) = voter.take(FetchPart)
        assert (asked.index, asked.offset) == (file.index, 200)
        # A part that got lost is asked for again, of the same file.
        voter.time.now += 1.5
        voter.get("b", newer)
        ((_, asked),) = voter.take(FetchPart)
        assert (asked.index, asked.offset) == (file.index, 200)
        # Gone there: the newer one it is.
        voter.get("b", Part(file.index, file.term, 200, b""))
        voter.get("b", newer)
        ((_, asked),) = voter.take(FetchPart)
        assert (asked.index, asked.offset) == (newer.index, 0)

    def test_another_leaders_file_takes_its_place_once_the_first_leader_is_silent(self, tmp_path):
        other, file = source(tmp_path / "a")
        voter = Guarded(tmp_path / "c", node_id="c")
        voter.get("b", offer(file))
        fetch(voter, other, most=2)
        voter.take(FetchPart)
        newer = OfferSnapshot(2, file.index + 20, file.term, file.size_bytes, "0" * 64)
        voter.get("a", newer)
        assert not voter.take(FetchPart)
        voter.time.now += 1.5
        voter.get("a", newer)
        ((peer, asked),) = voter.take(FetchPart)
        assert (peer, asked.index, asked.offset) == ("a", newer.index, 0)

    def test_a_bad_transfer_is_thrown_away_and_tried_again(self, tmp_path):
        other, file = source(tmp_path / "a")
        voter = Guarded(tmp_path / "c", node_id="c")
        voter.get("b", offer(file))
        ((_, asked),) = voter.take(FetchPart)
        voter.get("b", Part(asked.index, asked.snapshot_term, 0, bytes(100)))
        fetch(voter, other)
        run_jobs(voter)
        assert voter.inside.applied == 1
        voter.get("b", offer(file))
        fetch(voter, other)
        run_jobs(voter)
        assert voter.inside.applied == 20

    def test_a_file_that_rotted_at_its_source_is_found_out_and_written_anew(self, tmp_path):
        other, file = source(tmp_path / "a")
        data = file.path.read_bytes()
        file.path.write_bytes(data[:-1] + bytes((data[-1] ^ 1,)))
        other.get("b", AppendEntries(1, 21, 20, 1, [entry(21, 1)]))
        voter = Guarded(tmp_path / "c", node_id="c")
        for _ in range(2):
            voter.get("b", offer(file))
            fetch(voter, other)
            run_jobs(voter)
            assert voter.inside.applied == 1
        run_jobs(other)
        run_jobs(other)
        newer = other.node._snapshots.latest
        assert newer is not None
        assert newer.index == 21
        voter.get("b", offer(newer))
        fetch(voter, other)
        run_jobs(voter)
        assert voter.node.machine.chain == other.node.machine.chain

    def test_one_at_or_below_the_commit_index_is_answered_and_not_fetched(self, tmp_path):
        _, file = source(tmp_path / "a")
        voter = Guarded(tmp_path / "c", node_id="c")
        voter.get("b", AppendEntries(1, 25, 1, 0, entries(2, 25, 1)))
        voter.take(AppendReply)
        voter.get("b", offer(file))
        assert not voter.take(FetchPart)
        assert voter.take(AppendReply) == [("b", AppendReply(1, 21, True, 25))]
        assert voter.node.journal.last_index == 25

    def test_one_whose_entry_the_journal_holds_keeps_the_suffix(self, tmp_path):
        _, file = source(tmp_path / "a")
        voter = Guarded(tmp_path / "c", node_id="c")
        voter.get("b", AppendEntries(1, 3, 1, 0, entries(2, 25, 1)))
        voter.take(AppendReply)
        voter.get("b", offer(file))
        assert not voter.take(FetchPart)
        assert voter.node.journal.last_index == 25

    def test_one_that_was_overtaken_while_it_was_fetched_is_dropped(self, tmp_path):
        other, file = source(tmp_path / "a")
        voter = Guarded(tmp_path / "c", node_id="c")
        voter.get("b", offer(file))
        fetch(voter, other)
        voter.get("b", AppendEntries(1, 25, 1, 0, entries(2, 25, 1)))
        run_jobs(voter)
        assert voter.inside.applied == 25
        assert voter.node.counters.snapshots_installed == 0


class TestAnEmptyMachine:
    def test_whoever_asks_for_its_snapshot_waits_for_the_first_entry(self, tmp_path):
        voter = Guarded(tmp_path)
        files: list[SnapshotFile] = []
        voter.node.want_snapshot(0, files.append)
        voter.turn()
        assert voter.node.take_job() is None
        voter.follow(term=1, last=3, commit=3)
        run_jobs(voter)
        assert files[0].index == 3


class TestALeaderWithACompactedLog:
    def _leader(self, directory: Path, **limits: Any) -> Guarded:
        voter = Guarded(directory, limits=Limits(snapshot_entries=20, tail_entries=5, **limits))
        voter.lead()
        for _ in range(60):
            voter.node.submit([], 5.0, lambda outcome: None)
            voter.turn()
            voter.acknowledge("b", voter.node.journal.last_index)
            run_jobs(voter)
        voter.sent.clear()
        return voter

    def test_it_keeps_a_tail_behind_its_snapshot(self, tmp_path):
        voter = self._leader(tmp_path)
        latest = voter.node._snapshots.latest
        assert latest is not None
        assert voter.node.journal.first_index == latest.index - 5

    def test_it_offers_the_file_once_a_heartbeat_and_goes_on_after_it(self, tmp_path):
        voter = self._leader(tmp_path)
        term, last = voter.inside.term, voter.node.journal.last_index
        for _ in range(3):
            voter.get("c", AppendReply(term, 2, False, 1))
        offers = voter.take(OfferSnapshot)
        assert len(offers) == 1
        voter.get("c", AppendReply(term, offers[0][1].index + 1, True, offers[0][1].index))
        assert voter.inside.match_index["c"] == offers[0][1].index
        voter.get("c", AppendReply(term, offers[0][1].index + 1, False, offers[0][1].index))
        resent = [m for p, m in voter.take(AppendEntries) if p == "c" and m.entries]
        assert resent[0].prev_index == offers[0][1].index
        assert resent[0].entries[-1][1] == last

    def test_the_file_of_a_running_transfer_survives_the_next_snapshots(self, tmp_path):
        voter = self._leader(tmp_path, part_bytes=100)
        voter.get("c", AppendReply(voter.inside.term, 2, False, 1))
        given = voter.take(OfferSnapshot)[0][1]
        voter.get("c", FetchPart(given.index, given.snapshot_term, 0))
        for _ in range(90):
            voter.node.submit([], 5.0, lambda outcome: None)
            voter.turn()
            voter.acknowledge("b", voter.node.journal.last_index)
            run_jobs(voter)
        voter.take(Part)
        voter.get("c", FetchPart(given.index, given.snapshot_term, 100))
        assert voter.take(Part)[0][1].data

    def _compacts_while_c_fetches(self, voter: Guarded) -> int:
        """Returns the index of the file that c began to fetch."""
        voter.get("c", AppendReply(voter.inside.term, 2, False, 1))
        given = voter.take(OfferSnapshot)[0][1]
        voter.get("c", FetchPart(given.index, given.snapshot_term, 0))
        for _ in range(90):
            voter.node.submit([], 5.0, lambda outcome: None)
            voter.turn()
            voter.acknowledge("b", voter.node.journal.last_index)
            run_jobs(voter)
        latest = voter.node._snapshots.latest
        assert latest is not None
        assert latest.index - 5 > given.index
        return given.index

    def test_what_follows_the_file_of_a_running_transfer_stays_in_the_log(self, tmp_path):
        voter = self._leader(tmp_path, part_bytes=100)
        fetched = self._compacts_while_c_fetches(voter)
        assert voter.node.journal.first_index <= fetched
        voter.sent.clear()
        voter.get("c", AppendReply(voter.inside.term, fetched + 1, True, fetched))
        voter.time.now += 0.2
        voter.get("c", AppendReply(voter.inside.term, fetched + 1, False, fetched))
        assert not voter.take(OfferSnapshot)
        assert next(m.prev_index for p, m in voter.take(AppendEntries) if p == "c" and m.entries) == fetched

    def test_what_is_kept_for_a_transfer_is_bounded(self, tmp_path):
        voter = self._leader(tmp_path, part_bytes=100, fetched_tail_bytes=100)
        fetched = self._compacts_while_c_fetches(voter)
        assert voter.node.journal.first_index > fetched


class TestASnapshotForFollowers:
    def test_one_that_the_window_does_not_follow_on_is_written_anew(self, tmp_path):
        # Large entries fill the window by their bytes long before a file is old by its entries.
        voter = Guarded(tmp_path / "a", limits=Limits(window_entries=10))
        voter.follow(term=1, last=20, commit=20)
        files: list[SnapshotFile] = []
        voter.node.want_snapshot(0, files.append)
        voter.turn()
        run_jobs(voter)
        voter.get("b", AppendEntries(1, 60, 20, 1, entries(21, 60, 1)))
        assert voter.node.window.since(20, 1) is None
        voter.node.want_snapshot(5_000, files.append)
        voter.turn()
        run_jobs(voter)
        assert [file.index for file in files] == [20, 60]
        assert voter.node.window.since(60, 1) == []


class TestWhatATurnDoesNotWaitFor:
    """A file may have hundreds of megabytes, and the consensus thread has a heartbeat to keep."""

    def _written(self, voter: Guarded) -> None:
        voter.node.want_snapshot(0, lambda file: None)
        voter.turn()

    def test_old_files_are_removed_by_another_thread(self, tmp_path):
        voter = Guarded(tmp_path)
        for last in (20, 40, 60):
            voter.follow(term=1, last=last, commit=last)
            self._written(voter)
            job = voter.node.take_job()
            assert job is not None
            job.run()
            job.finish()
            voter.turn()
        voter.time.now += FETCH_GRACE_S + PRUNE_S
        voter.turn()
        assert [index for index, _ in voter.node._snapshots.positions()] == [20, 40, 60]
        run_jobs(voter)
        assert [index for index, _ in voter.node._snapshots.positions()] == [40, 60]

    def test_long_tables_go_on_while_they_are_written(self, tmp_path, monkeypatch):
        monkeypatch.setattr(image, "LONG", 1)
        voter = Guarded(tmp_path)

        def follow(last: int) -> None:
            at = voter.node.journal.last_index
            new = [(b"\x00" + encode_entry(1, 0, [add(f"w{i}")]), i, 1) for i in range(at + 1, last + 1)]
            voter.get("b", AppendEntries(1, last, at, 1 if at > 1 else 0, new))

        follow(20)
        for last in (30, 40, 50):
            self._written(voter)
            follow(last)
            run_jobs(voter)
            latest = voter.node._snapshots.latest
            assert latest is not None
            assert read_header(io.BytesIO(latest.path.read_bytes())).index == latest.index == last - 10
        state = voter.node.machine.state
        state.image.follow()
        assert list(state.image.tables["work"]) == list(state.work) == [f"w{i}" for i in range(2, 51)]

    def test_a_file_is_synced_in_portions(self, tmp_path, monkeypatch):
        synced: list[int] = []
        sync = os.fsync
        monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), sync(fd))[1])
        monkeypatch.setattr(snapshots, "PORTION_BYTES", 100)
        _, file = source(tmp_path)
        portions = [size for size in synced if size <= file.size_bytes]
        assert len(portions) == 3
        assert file.size_bytes in portions

    def test_a_fetched_file_is_synced_by_the_thread_that_verifies_it(self, tmp_path, monkeypatch):
        other, file = source(tmp_path / "a")
        voter = Guarded(tmp_path / "c", node_id="c")
        synced: list[int] = []
        sync = os.fsync
        monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), sync(fd))[1])
        voter.get("b", offer(file))
        fetch(voter, other)
        assert file.size_bytes not in synced
        job = voter.node.take_job()
        assert job is not None
        job.run()
        assert file.size_bytes in synced
        job.finish()
        assert voter.inside.applied == 20
