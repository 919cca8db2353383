"""The journal on disk: what was written comes back, and damage is named."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from ringrift_cluster.raft.datadir import DataDir
from ringrift_cluster.raft.errors import DataDirLocked, DiskFailed, JournalDamaged
from ringrift_cluster.raft.journal import Batch, Journal
from ringrift_cluster.raft.offline import read_offline
from ringrift_cluster.raft.snapshots import SnapshotDir
from ringrift_cluster.raft.store import LOG_BYTES, SqliteStore
from ringrift_cluster.raft.verify import verify
from statemachine.commands import AddWork, encode_command
from statemachine.entries import encode_entry
from statemachine.machine import Machine
from statemachine.snapshot import freeze, header
from tests.ringrift_cluster.raft.alone import entries


@pytest.fixture
def path(tmp_path: Path) -> Path:
    DataDir(tmp_path).create()
    return DataDir(tmp_path).journal


def write(path: Path, *batches: Batch) -> None:
    store = SqliteStore(path)
    for batch in batches:
        store.write(batch)
    store.close()


def indexes(path: Path) -> list[int]:
    store = SqliteStore(path)
    found = [e[1] for e in store.load().entries]
    store.close()
    return found


def test_entries_and_facts_come_back(path):
    write(path, Batch(entries=entries(1, 5, 2), facts={"term": "2", "vote": "a"}))
    store = SqliteStore(path)
    stored = store.load()
    store.close()
    assert list(stored.entries) == entries(1, 5, 2)
    assert (stored.facts["term"], stored.facts["vote"]) == ("2", "a")


def test_the_write_ahead_log_has_its_length_before_it_is_used_and_keeps_it(path, tmp_path):
    store = SqliteStore(path)
    log = path.with_name(f"{path.name}-wal")
    assert log.stat().st_size == LOG_BYTES
    for number in range(1, 50):
        store.write(Batch(entries=[(b"x" * 1000, number, 1)]))
    assert log.stat().st_size == LOG_BYTES
    # As kill -9 leaves it, what is behind the last frame included.
    copies = DataDir(tmp_path / "copy")
    copies.create()
    for file in path.parent.iterdir():
        if file.is_file():
            (copies.journal.parent / file.name).write_bytes(file.read_bytes())
    store.close()
    assert indexes(copies.journal) == list(range(1, 50))


def test_a_suffix_and_a_prefix_go(path):
    write(path, Batch(entries=entries(1, 9, 1)), Batch(truncate_from=7, entries=entries(7, 7, 2)), Batch(drop_before=4))
    assert indexes(path) == [4, 5, 6, 7]


def test_a_snapshot_takes_the_place_of_everything(path):
    write(path, Batch(entries=entries(1, 9, 1)), Batch(clear=True, entries=entries(40, 40, 3)))
    assert indexes(path) == [40]


def test_a_journal_hands_out_each_change_once(path):
    store = SqliteStore(path)
    journal = Journal(store.load())
    for one in entries(1, 6, 1):
        journal.add(*one)
    journal.deleteEntriesFrom(4)
    journal.add(*entries(5, 5, 2)[0])
    journal.drop_before(3)
    assert journal.dirty
    batch = journal.take()
    assert batch is not None
    store.write(batch)
    assert journal.take() is None
    assert not journal.dirty
    store.close()
    assert indexes(path) == [3, 4, 5]


def test_a_flipped_bit_is_named(path):
    write(path, Batch(entries=entries(1, 5, 1)))
    with sqlite3.connect(path) as db:
        db.execute("UPDATE entries SET data = x'00ff' WHERE idx = 3")
    db.close()
    with pytest.raises(JournalDamaged, match=r"entry 3 .*checksum.*raft verify"):
        indexes(path)
    assert any("entry 3" in d for d in verify(path.parent.parent).damages)


def test_a_gap_is_named(path):
    write(path, Batch(entries=entries(1, 5, 1)))
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM entries WHERE idx IN (3, 4)")
    db.close()
    with pytest.raises(JournalDamaged, match="lacks entries 3 to 4"):
        indexes(path)


def test_a_file_that_is_no_journal_is_named(path):
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(JournalDamaged, match="cannot be opened"):
        SqliteStore(path)


def test_another_schema_is_named(path):
    write(path, Batch(facts={"schema": "99"}))
    with pytest.raises(JournalDamaged, match="schema 99"):
        indexes(path)


def test_a_failed_write_is_final(path):
    store = SqliteStore(path)
    store.close()
    with pytest.raises(DiskFailed, match="stops rather than guess"):
        store.write(Batch(entries=entries(1, 1, 1)))


def test_the_directory_belongs_to_one_process(tmp_path):
    held = DataDir(tmp_path).lock()
    with pytest.raises(DataDirLocked, match="in use by process"):
        DataDir(tmp_path).lock()
    held.close()
    DataDir(tmp_path).lock().close()


class TestOffline:
    """A log of ten items, a snapshot at the sixth."""

    @pytest.fixture
    def data_dir(self, tmp_path, path):
        machine = Machine()
        log = [(b"\x01", 1, 0), (b"\x01id", 2, 1)]
        for i in range(3, 13):
            data = encode_entry(1, 0, [encode_command(AddWork(work=f"w{i}", work_type="t"))])
            log.append((b"\x00" + data, i, 1))
            machine.apply(i, 1, data)
            if i == 8:
                snapshots = SnapshotDir(DataDir(tmp_path).snapshots)
                frozen = freeze(machine)
                snapshots.adopt(snapshots.write(frozen, header(frozen, "id", ("a",))))
        self.chain = machine.chain
        write(path, Batch(entries=log, facts={"commit": "11", "node_id": "a", "term": "1"}))
        return tmp_path

    def test_it_replays_to_the_commit_index(self, data_dir):
        assert list(read_offline(data_dir).state.work) == [f"w{i}" for i in range(3, 12)]

    def test_it_replays_to_an_index(self, data_dir):
        assert read_offline(data_dir, 5).index == 5
        assert list(read_offline(data_dir, 9).state.work) == [f"w{i}" for i in range(3, 10)]

    def test_what_may_not_be_committed_is_not_shown(self, data_dir):
        with pytest.raises(LookupError, match="committed up to 11, not 12"):
            read_offline(data_dir, 12)

    def test_from_a_compacted_journal_it_starts_at_the_snapshot(self, data_dir, path):
        whole = read_offline(data_dir).chain
        write(path, Batch(drop_before=7))
        assert read_offline(data_dir).chain == whole
        with pytest.raises(LookupError, match="no longer here"):
            read_offline(data_dir, 6)

    def test_a_sound_directory_has_no_damages(self, data_dir):
        report = verify(data_dir)
        assert not report.damages
        assert (report.entries, report.commit, report.snapshots) == (12, 11, ["8-1"])

    def test_a_damaged_snapshot_is_named(self, data_dir):
        (DataDir(data_dir).snapshots / "8-1.snap").write_bytes(b"RRSNAP1\nxx")
        assert any("8-1.snap is damaged" in d for d in verify(data_dir).damages)

    def test_a_directory_without_a_voter_is_named(self, tmp_path):
        with pytest.raises(JournalDamaged, match="holds no voter's journal"):
            read_offline(tmp_path / "nothing")
