"""Every way a voter's files can be bad: named in a sentence, or without effect. Never served.

A case damages a copy of one sound data directory and opens it as a voter does. Either the opening is refused with
a sentence that names the file, or the voter holds exactly what the sound one holds.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ringrift_cluster.raft.conf import Limits
from ringrift_cluster.raft.datadir import DataDir
from ringrift_cluster.raft.errors import RaftError
from ringrift_cluster.raft.journal import REGULAR
from ringrift_cluster.raft.mark import Mark, encode_mark, mark_path
from ringrift_cluster.raft.messages import AppendEntries, LogEntry
from ringrift_cluster.raft.store import SqliteStore
from ringrift_cluster.raft.verify import verify
from statemachine.commands import AddWork, encode_command
from statemachine.entries import encode_entry
from tests.ringrift_cluster.raft.alone import VOTERS, Guarded

LIMITS = Limits(snapshot_entries=10, tail_entries=4)
LAST = 36
PAGE = 4096


def entry(index: int) -> LogEntry:
    work = AddWork(work=f"w{index}", work_type="t", params={"text": "x" * 300})
    return bytes((REGULAR,)) + encode_entry(1, 0, [encode_command(work)]), index, 1


def voter(root: Path, node_id: str = "a") -> tuple[Guarded, SqliteStore]:
    paths = DataDir(root)
    paths.create()
    store = SqliteStore(paths.journal)
    try:
        return Guarded(paths.snapshots, node_id=node_id, disk=store, limits=LIMITS, join=False), store  # type: ignore[arg-type]
    except RaftError:
        store.close()
        raise


def live(root: Path, node_id: str, halfway: Path) -> tuple[Guarded, SqliteStore]:
    """A voter that took a few dozen entries and wrote snapshots; a copy of its files midway goes to `halfway`."""
    alone, store = voter(root, node_id)
    for peer in alone.node.membership.others:
        alone.greet(peer)
    leader = next(name for name in VOTERS if name != node_id)
    for at in range(2, LAST + 1, 2):
        alone.get(leader, AppendEntries(1, at - 1, at - 1, 0 if at == 2 else 1, [entry(at), entry(at + 1)]))
        while (job := alone.node.take_job()) is not None:
            job.run()
            job.finish()
            alone.turn()
        if at == LAST // 2:
            shutil.copytree(root, halfway)
    return alone, store


@dataclass(frozen=True)
class Content:
    """What a voter would serve and vote with."""

    facts: dict[str, str]
    entries: list[LogEntry]
    applied: int
    chain: bytes


def content(root: Path) -> Content:
    """Open as a voter does, without any other one. Raises RaftError."""
    alone, store = voter(root)
    journal = alone.node.journal
    names = ("node_id", "log_id", "cluster_id", "term", "vote", "commit", "admitted", "known_logs", "voters")
    facts = {name: journal.fact(name) for name in names}
    found = Content(facts, journal[:], alone.node.machine.index, alone.node.machine.chain)
    store.close()
    return found


@dataclass(frozen=True)
class Samples:
    #: as kill -9 leaves it: everything since the last checkpoint is in the -wal file
    killed: Path
    #: as an orderly stop leaves it: one file
    stopped: Path
    #: the same voter, earlier
    old: Path
    #: another voter of the cluster
    other: Path
    sound: Content


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    root = tmp_path_factory.mktemp("samples")
    _, store = live(root / "stopped", "a", root / "old")
    shutil.copytree(root / "stopped", root / "killed")
    store.close()
    # The log is longer than the frames in it; damage should hit those. A frame's own page may end in zeros.
    log = wal_of(root / "killed").read_bytes()
    frames = -(-(len(log.rstrip(b"\0")) - 32) // (24 + 4096))
    wal_of(root / "killed").write_bytes(log[: 32 + frames * (24 + 4096)])
    _, store = live(root / "other", "b", root / "other-old")
    store.close()
    shutil.copytree(root / "killed", root / "probe")
    return Samples(root / "killed", root / "stopped", root / "old", root / "other", content(root / "probe"))


Damage = Callable[[Path, Samples], None]


def journal_of(root: Path) -> Path:
    return DataDir(root).journal


def wal_of(root: Path) -> Path:
    return root / "raft" / "journal.db-wal"


def newest_snapshot(root: Path) -> Path:
    return max(DataDir(root).snapshots.glob("*.snap"), key=lambda p: int(p.name.split("-")[0]))


def oldest_snapshot(root: Path) -> Path:
    return min(DataDir(root).snapshots.glob("*.snap"), key=lambda p: int(p.name.split("-")[0]))


def cut(find: Callable[[Path], Path], keep: float) -> Damage:
    def damage(root: Path, _: Samples) -> None:
        path = find(root)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])

    return damage


def zeroed(find: Callable[[Path], Path], keep: float) -> Damage:
    def damage(root: Path, _: Samples) -> None:
        path = find(root)
        data = path.read_bytes()
        kept = int(len(data) * keep)
        path.write_bytes(data[:kept] + bytes(len(data) - kept))

    return damage


def garbage(find: Callable[[Path], Path]) -> Damage:
    def damage(root: Path, _: Samples) -> None:
        path = find(root)
        path.write_bytes(bytes((i * 7919) % 251 for i in range(path.stat().st_size)))

    return damage


def missing(find: Callable[[Path], Path]) -> Damage:
    return lambda root, _: find(root).unlink()


def replaced(find: Callable[[Path], Path], by: Callable[[Samples], Path]) -> Damage:
    return lambda root, samples: shutil.copy(find(by(samples)), find(root))  # type: ignore[return-value]


def flip(path: Path, at: int, bit: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= bit
    path.write_bytes(data)


def flipped(find: Callable[[Path], Path], at: int) -> Damage:
    return lambda root, _: flip(find(root), at)


def flipped_at(find: Callable[[Path], Path], text: bytes) -> Damage:
    """In the middle of the last place where the file holds `text`."""
    return lambda root, _: flip(find(root), find(root).read_bytes().rindex(text) + len(text) // 2)


def sql(statement: str) -> Damage:
    """What a damaged page may hold after all: rows that SQLite finds in order."""

    def damage(root: Path, _: Samples) -> None:
        with sqlite3.connect(journal_of(root)) as db:
            db.execute(statement)
        db.close()

    return damage


def both_old(root: Path, samples: Samples) -> None:
    shutil.copy(journal_of(samples.old), journal_of(root))
    if wal_of(samples.old).exists():
        shutil.copy(wal_of(samples.old), wal_of(root))


def whole_raft_of(pick: Callable[[Samples], Path]) -> Damage:
    def damage(root: Path, samples: Samples) -> None:
        shutil.rmtree(root / "raft")
        shutil.copytree(pick(samples) / "raft", root / "raft")

    return damage


def snapshots_of(pick: Callable[[Samples], Path]) -> Damage:
    def damage(root: Path, samples: Samples) -> None:
        shutil.rmtree(DataDir(root).snapshots)
        shutil.copytree(DataDir(pick(samples)).snapshots, DataDir(root).snapshots)

    return damage


def renamed_snapshot(root: Path, _: Samples) -> None:
    path = newest_snapshot(root)
    index, term = path.stem.split("-")
    path.rename(path.with_name(f"{int(index) + 1}-{term}.snap"))


def mark_of_another_log(root: Path, _: Samples) -> None:
    mark_path(journal_of(root)).write_bytes(encode_mark(Mark("f" * 32, 1)))


SAME = ""
JOURNAL = r"the journal \S+/journal\.db "
BEHIND = JOURNAL + r"lacks the last \d+ of \d+ batches that were on disk"
SNAPSHOT = r"the snapshot \S+/snapshots/\d+-1\.snap "

#: name: (which sample, what is done to it, what the refusal says; SAME: nothing is lost)
CASES: dict[str, tuple[str, Damage, str]] = {
    # the journal after an orderly stop
    "journal empty": ("stopped", cut(journal_of, 0), JOURNAL + "is empty, and its mark"),
    "journal missing": ("stopped", missing(journal_of), JOURNAL + "is missing, and its mark"),
    "journal of garbage": ("stopped", garbage(journal_of), JOURNAL + "cannot be opened"),
    "journal without its last pages": ("stopped", cut(journal_of, 0.8), JOURNAL),
    "journal cut in half": ("stopped", cut(journal_of, 0.5), JOURNAL),
    "journal cut within its header": ("stopped", cut(journal_of, 0.002), JOURNAL),
    "journal with a zeroed tail": ("stopped", zeroed(journal_of, 0.6), JOURNAL),
    "journal all zero": ("stopped", zeroed(journal_of, 0), JOURNAL),
    "flipped bit in the file's magic": ("stopped", flipped(journal_of, 3), JOURNAL),
    "flipped bit in the page size": ("stopped", flipped(journal_of, 16), JOURNAL),
    "flipped bit in the type of a page": ("stopped", flipped(journal_of, PAGE), JOURNAL),
    "flipped bit in the cell count of a page": ("stopped", flipped(journal_of, PAGE + 4), JOURNAL),
    "flipped bit in an entry's bytes": (
        "stopped",
        flipped_at(journal_of, b"w33"),
        r"entry 33 in the journal .*checksum",
    ),
    "older copy of the journal": ("stopped", both_old, BEHIND),
    "journal of another voter": ("stopped", replaced(journal_of, lambda s: s.other), "belongs to voter b, but this"),
    # rows that SQLite takes for sound
    "an entry's bytes": ("stopped", sql("UPDATE entries SET data = x'00ff' WHERE idx = 33"), "entry 33 .*checksum"),
    "an entry's checksum": ("stopped", sql("UPDATE entries SET crc = crc + 1 WHERE idx = 33"), "entry 33 .*checksum"),
    "an entry's term": ("stopped", sql("UPDATE entries SET term = 2 WHERE idx = 33"), "entry 33 .*checksum"),
    "an entry's index": ("stopped", sql("UPDATE entries SET idx = 99 WHERE idx = 33"), "lacks entries 33 to 33"),
    "an entry's type": ("stopped", sql("UPDATE entries SET data = 'text' WHERE idx = 33"), "at 33 is no entry"),
    "the last entry's index": (
        "stopped",
        sql(f"UPDATE entries SET idx = 99 WHERE idx = {LAST + 1}"),
        f"lacks entries {LAST + 1} to 98",
    ),
    "a hole": ("stopped", sql("DELETE FROM entries WHERE idx IN (33, 34)"), "lacks entries 33 to 34"),
    "a lost end": ("stopped", sql("DELETE FROM entries WHERE idx > 34"), f"lacks its last entries, 35 to {LAST + 1}"),
    "a lost beginning": ("stopped", sql("DELETE FROM entries WHERE idx < 33"), r"lacks entries \d+ to 32"),
    "all entries lost": ("stopped", sql("DELETE FROM entries"), "lacks its last entries"),
    "one entry too many": (
        "stopped",
        sql(f"INSERT INTO entries VALUES ({LAST + 2}, 1, 0, x'00')"),
        f"entry {LAST + 2} .*checksum",
    ),
    **{
        f"fact {name}": (
            "stopped",
            sql(f"UPDATE facts SET value = '{value}' WHERE name = '{name}'"),
            JOURNAL + "has facts .* that do not match their seal",
        )
        for name, value in {
            "term": "0",
            "vote": "c",
            "commit": "999",
            "log_id": "0",
            "node_id": "b",
            "voters": '["a"]',
            "admitted": "0",
            "known_logs": "{}",
            "seal": "1 1 1 00000000 00000000 00000000",
        }.items()
    },
    "a fact that is gone": ("stopped", sql("DELETE FROM facts WHERE name = 'vote'"), "do not match their seal"),
    "the seal that is gone": ("stopped", sql("DELETE FROM facts WHERE name = 'seal'"), "do not match their seal"),
    "all facts gone": ("stopped", sql("DELETE FROM facts"), "do not match their seal"),
    "a fact of another type": (
        "stopped",
        sql("UPDATE facts SET value = x'00ff' WHERE name = 'term'"),
        "do not match their seal",
    ),
    "the table of entries gone": ("stopped", sql("DROP TABLE entries"), "lacks its tables"),
    # the write-ahead log after kill -9
    "wal missing": ("killed", missing(wal_of), JOURNAL),
    "wal empty": ("killed", cut(wal_of, 0), JOURNAL),
    "wal cut in half": ("killed", cut(wal_of, 0.5), BEHIND),
    "wal without its last bytes": ("killed", cut(wal_of, 0.999), BEHIND),
    "wal with a zeroed tail": ("killed", zeroed(wal_of, 0.7), BEHIND),
    "wal of garbage": ("killed", garbage(wal_of), JOURNAL),
    "flipped bit in the wal's header": ("killed", flipped(wal_of, 17), JOURNAL),
    "flipped bit in an entry in the wal": ("killed", flipped_at(wal_of, b"w33"), BEHIND),
    "older copy of journal and wal": ("killed", both_old, BEHIND),
    "older copy of the wal": ("killed", replaced(wal_of, lambda s: s.old), JOURNAL),
    "shm of garbage": ("killed", lambda r, s: (r / "raft" / "journal.db-shm").write_bytes(b"\x5a" * 32768), SAME),
    "shm missing": ("killed", lambda r, s: (r / "raft" / "journal.db-shm").unlink(missing_ok=True), SAME),
    # the mark
    "mark missing": ("stopped", missing(lambda r: mark_path(journal_of(r))), SAME),
    "mark empty": ("stopped", cut(lambda r: mark_path(journal_of(r)), 0), SAME),
    "mark of garbage": ("stopped", garbage(lambda r: mark_path(journal_of(r))), SAME),
    "older mark": ("stopped", replaced(lambda r: mark_path(journal_of(r)), lambda s: s.old), SAME),
    "mark of another log": ("stopped", mark_of_another_log, "of another log than the mark"),
    # snapshots
    "snapshot empty": ("stopped", cut(newest_snapshot, 0), SNAPSHOT + "is damaged"),
    "snapshot cut": ("stopped", cut(newest_snapshot, 0.7), SNAPSHOT + "is damaged"),
    "snapshot without its last byte": ("stopped", cut(newest_snapshot, 0.9999), SNAPSHOT + "is damaged"),
    "snapshot with a zeroed tail": ("stopped", zeroed(newest_snapshot, 0.7), SNAPSHOT + "is damaged"),
    "snapshot of garbage": ("stopped", garbage(newest_snapshot), SNAPSHOT + "is damaged"),
    "flipped bit in a snapshot's magic": ("stopped", flipped(newest_snapshot, 2), SNAPSHOT + "is damaged"),
    "flipped bit in a snapshot's header": ("stopped", flipped(newest_snapshot, 20), SNAPSHOT + "is damaged"),
    "flipped bit in a snapshot's section": ("stopped", flipped_at(newest_snapshot, b"w9"), SNAPSHOT + "is damaged"),
    "flipped bit in a snapshot's digest": ("stopped", flipped(newest_snapshot, -1), SNAPSHOT + "is damaged"),
    "snapshot missing, journal goes on": ("stopped", missing(newest_snapshot), "after its newest snapshot at"),
    "all snapshots missing": (
        "stopped",
        lambda r, s: [p.unlink() for p in DataDir(r).snapshots.glob("*.snap")],  # type: ignore[return-value]
        "there is no snapshot before it",
    ),
    "snapshot under another name": ("stopped", renamed_snapshot, SNAPSHOT + "says it stands at"),
    "old snapshots put back": ("stopped", snapshots_of(lambda s: s.old), "after its newest snapshot at"),
    "older snapshot damaged, newest sound": ("stopped", cut(oldest_snapshot, 0.5), SAME),
    # more than one file
    "directory of another voter": (
        "stopped",
        whole_raft_of(lambda s: s.other),
        "belongs to voter b, but this node is a",
    ),
    "snapshots without a journal": (
        "stopped",
        lambda r, s: [p.unlink() for p in (r / "raft").glob("journal.*")],  # type: ignore[return-value]
        "there is a snapshot at entry .* but no journal beside it",
    ),
}


#: only the node that starts there knows that these files are not its own
ELSEWHERE = {"journal of another voter", "directory of another voter"}


@pytest.mark.parametrize("name", CASES)
def test_damage_is_named_or_changes_nothing(name: str, samples: Samples, tmp_path: Path) -> None:
    sample, damage, said = CASES[name]
    root = tmp_path / "a"
    shutil.copytree(getattr(samples, sample), root)
    damage(root, samples)
    if said:
        with pytest.raises(RaftError) as refused:
            content(root)
        assert re.search(said, str(refused.value)), refused.value
        assert "\n" not in str(refused.value)
    else:
        assert content(root) == samples.sound


@pytest.mark.parametrize("name", sorted(CASES.keys() - ELSEWHERE))
def test_verify_names_what_a_start_refuses(name: str, samples: Samples, tmp_path: Path) -> None:
    sample, damage, said = CASES[name]
    root = tmp_path / "a"
    shutil.copytree(getattr(samples, sample), root)
    damage(root, samples)
    report = verify(root)
    assert not any("\n" in sentence for sentence in report.damages)
    if said or name == "older snapshot damaged, newest sound":
        assert report.damages
        assert all(str(root) in sentence for sentence in report.damages), report.damages
    else:
        assert not report.damages
        assert bool(report.notes) == (name in ("mark missing", "mark empty", "mark of garbage"))


@pytest.mark.parametrize(
    ("sample", "file", "step"),
    [("stopped", "journal.db", 97), ("killed", "journal.db-wal", 997), ("stopped", "journal.mark", 1)],
)
def test_a_flipped_bit_anywhere_is_named_or_changes_nothing(
    sample: str, file: str, step: int, samples: Samples, tmp_path: Path
) -> None:
    source = getattr(samples, sample)
    size = (source / "raft" / file).stat().st_size
    root = tmp_path / "a"
    named = 0
    for number, at in enumerate(range(0, size, step)):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(source, root)
        flip(root / "raft" / file, at, 1 << number % 8)
        try:
            found, said = content(root), ""
        except RaftError as refused:
            found, said = None, str(refused)
            named += 1
        assert str(root) in said or found == samples.sound, f"byte {at} of {file}: {said}"
    if file != "journal.mark":
        assert named > 10


def test_the_sound_samples_open_alike(samples: Samples, tmp_path: Path) -> None:
    for sample in (samples.stopped, samples.killed):
        shutil.copytree(sample, tmp_path / sample.name)
        assert content(tmp_path / sample.name) == samples.sound
    assert samples.sound.entries[-1][1] == LAST + 1
    assert replace(samples.sound, applied=0) != samples.sound
    assert samples.sound.applied > 20
