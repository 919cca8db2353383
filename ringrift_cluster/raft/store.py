"""A journal on disk: SQLite in WAL mode, one fsync a batch, everything under checksums.

Each entry's CRC covers its position, its bytes and the CRC before it, so that an older version of a page shows
as well as a flipped bit. One row, the seal, is written with every batch: it holds where the log begins and ends,
the CRC there, and a checksum over all facts. What SQLite cannot notice by itself, an end that is gone, the mark
beside the file shows (see `mark`).
"""

from __future__ import annotations

import logging
import os
import sqlite3
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringrift_cluster.raft.errors import WAY_OUT, DiskFailed, JournalDamaged
from ringrift_cluster.raft.journal import SCHEMA, Batch, Stored
from ringrift_cluster.raft.mark import Mark, MarkFile, read_mark
from ringrift_cluster.raft.messages import LogEntry

log = logging.getLogger(__name__)

_TABLES = """
BEGIN;
CREATE TABLE entries (idx INTEGER PRIMARY KEY, term INTEGER NOT NULL, crc INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
#: pages after which the write-ahead log is brought into the file and begun anew, and the bytes it has by then
LOG_PAGES = 1000
LOG_BYTES = 32 + (LOG_PAGES + 64) * (24 + 4096)
#: the row that seals the others
_SEAL = "seal"


def crc(entry: LogEntry, before: int) -> int:
    """CRC32 over the CRC of the entry before and an entry's position and bytes."""
    return zlib.crc32(entry[0], zlib.crc32(struct.pack("<QQ", entry[1], entry[2]), before))


@dataclass(frozen=True, slots=True)
class Seal:
    """What one batch left: its number, and the log from `first` to `last` (0, 0: empty).

    `base` is the CRC before the first entry, `tail` that of the last one.
    """

    batch: int = 0
    first: int = 0
    last: int = 0
    base: int = 0
    tail: int = 0

    def encode(self, facts: Mapping[str, str]) -> str:
        body = f"{self.batch} {self.first} {self.last} {self.base:08x} {self.tail:08x}"
        return f"{body} {_check(body, facts):08x}"

    @classmethod
    def decode(cls, text: str, facts: Mapping[str, str]) -> Seal:
        """Raises ValueError when it is not the seal of these facts."""
        body, _, check = text.rpartition(" ")
        batch, first, last, base, tail = body.split(" ")
        seal = cls(int(batch), int(first), int(last), int(base, 16), int(tail, 16))
        if seal.encode(facts) != text:
            raise ValueError(f"checksum {check}")
        return seal


def _check(body: str, facts: Mapping[str, str]) -> int:
    return zlib.crc32(repr((body, sorted(facts.items()))).encode("utf-8", "surrogatepass"))


class SqliteStore:
    """The store at `path`. Raises DiskFailed on any failed write and JournalDamaged for what cannot be trusted.

    `behind_is_fine` opens a journal that has lost its end, for those who look at what is left.
    """

    def __init__(self, path: Path, *, read_only: bool = False, behind_is_fine: bool = False) -> None:
        self.path = path
        self._mark_file: MarkFile | None = None
        #: the mark beside the file and, when there is a bad one, a sentence about it
        self.mark, self.mark_problem = self._look_at_mark()
        try:
            gone = not path.exists() or path.stat().st_size == 0
        except OSError as error:
            raise self._damaged(f"cannot be opened ({error})") from error
        if gone and self.mark is not None:
            raise self._damaged(f"is {'empty' if path.exists() else 'missing'}, and its mark says that it was not")
        try:
            # The helper thread that waits for the disk is not the one that opens; they never overlap.
            if read_only:
                self._db = sqlite3.connect(
                    f"file:{path}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
                )
            else:
                self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise self._damaged(f"cannot be opened ({error})") from error
        try:
            self._open(read_only=read_only)
            self._own_facts, self.seal = self._sealed()
            #: how the journal is behind its mark, a sentence, or empty
            self.behind = self._lag()
            if self.behind and not behind_is_fine:
                raise JournalDamaged(f"{self.behind}; {WAY_OUT}")
            if not read_only:
                self._lengthen_log()
                self._mark_file = MarkFile(path, Mark(self._own_facts.get("log_id", ""), self.seal.batch))
        except (sqlite3.Error, OSError) as error:
            self._db.close()
            raise self._damaged(f"cannot be opened ({error})") from error
        except JournalDamaged:
            self._db.close()
            raise

    def _lengthen_log(self) -> None:
        """Make the write-ahead log as long as it gets between two checkpoints before it is used.

        While it grows, each sync waits until the file system has recorded its new length, and voters on one
        disk wait for each other there. What lies behind the last frame is no frame and is never read.
        """
        path = self.path.with_name(f"{self.path.name}-wal")
        try:
            with path.open("ab") as file:
                file.write(bytes(max(LOG_BYTES - file.tell(), 0)))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            # Slower, and nothing else; a disk that is really full is noticed where it matters.
            log.warning("event=log_not_lengthened file=%s error=%s", path, error)

    def _damaged(self, what: str) -> JournalDamaged:
        return JournalDamaged(f"the journal {self.path} {what}; {WAY_OUT}")

    def _look_at_mark(self) -> tuple[Mark | None, str]:
        try:
            return read_mark(self.path), ""
        except (ValueError, OSError) as error:
            # A power cut may leave it so: it is never synced. What it would have shown stays unknown.
            log.warning("event=mark_unreadable reason=%s", error)
            return None, f"{error}; nothing else is wrong with it, and the voter writes it anew when it starts"

    def _open(self, *, read_only: bool) -> None:
        run = self._db.execute
        if not read_only:
            run("PRAGMA synchronous=FULL")
            # A write-ahead log that is written over again is synced twice as fast as one that still grows.
            run(f"PRAGMA wal_autocheckpoint={LOG_PAGES}")
            run("PRAGMA cache_size=-8192")
            (mode,) = run("PRAGMA journal_mode=WAL").fetchone()
            if mode != "wal":
                raise self._damaged(f"cannot be written (its mode is {mode})")
        else:
            # One view for all that is read, also where a voter goes on writing.
            run("BEGIN")
        # A damaged list of free pages would let a later write go over a page in use.
        (found,) = run("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise self._damaged(f"is not sound ({' '.join(str(found).split())})")
        tables = {name for (name,) in run("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables and self.mark is None and not read_only:
            facts = {"schema": str(SCHEMA)}
            self._db.executescript(_TABLES)
            self._db.executemany("INSERT INTO facts VALUES (?, ?)", [*facts.items(), (_SEAL, Seal().encode(facts))])
            run("COMMIT")
        elif not {"entries", "facts"} <= tables:
            raise self._damaged("lacks its tables")

    def _sealed(self) -> tuple[dict[str, str], Seal]:
        try:
            rows = self._db.execute("SELECT name, value FROM facts").fetchall()
        except sqlite3.Error as error:
            raise self._damaged(f"cannot be read ({error})") from error
        facts: dict[str, str] = dict(rows)
        text = facts.pop(_SEAL, "")
        try:
            seal = Seal.decode(text, facts)
        except (ValueError, TypeError) as error:
            if facts.get("schema", str(SCHEMA)) == str(SCHEMA):
                raise self._damaged("has facts (term, vote, commit index, ids) that do not match their seal") from error
            seal = Seal()
        if facts.get("schema") != str(SCHEMA):
            raise JournalDamaged(
                f"the journal {self.path} has schema {facts.get('schema')}, this release reads {SCHEMA}; "
                "start the release that wrote it"
            )
        return facts, seal

    def _lag(self) -> str:
        mark = self.mark
        if mark is None:
            return ""
        log_id = self._own_facts.get("log_id", "")
        if mark.log_id not in ("", log_id):
            return f"the journal {self.path} is of another log than the mark beside it: one of them came from elsewhere"
        if self.seal.batch < mark.batch:
            return (
                f"the journal {self.path} lacks the last {mark.batch - self.seal.batch} of {mark.batch} batches that "
                "were on disk: its end or its -wal file is lost, or an older copy was put back"
            )
        return ""

    def load(self) -> Stored:
        return Stored(self.facts(), list(self.entries()))

    def facts(self) -> dict[str, str]:
        """The facts, of a schema that this release reads, under an unbroken seal. Raises JournalDamaged."""
        return dict(self._sealed()[0])

    def entries(self) -> Iterator[LogEntry]:
        """Every entry in order. Raises JournalDamaged at the first bad one or gap, and for an end that is missing."""
        for entry, problem in self.walk():
            if problem:
                raise JournalDamaged(f"{problem}; {WAY_OUT}")
            if entry is not None:
                yield entry

    def walk(self) -> Iterator[tuple[LogEntry | None, str]]:
        """Every entry that can be read, with a sentence on what is wrong there, or none.

        Raises JournalDamaged when SQLite cannot go on.
        """
        try:
            yield from self._walk(self._db.execute("SELECT idx, term, crc, data FROM entries ORDER BY idx"))
        except sqlite3.Error as error:
            raise self._damaged(f"cannot be read ({error})") from error

    def _walk(self, rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[LogEntry | None, str]]:
        seal = self.seal
        expected, before = seal.first, seal.base
        for row in rows:
            index, term, stored_crc, data = row
            typed = [type(value) for value in row] == [int, int, int, bytes]
            if not typed or index < 1 or term < 0:
                yield None, f"a row of the journal {self.path} at {index!r} is no entry"
                expected, before = (index + 1, 0) if isinstance(index, int) else (expected, 0)
                continue
            entry = (data, index, term)
            problem = ""
            if index != expected:
                problem = (
                    f"the journal {self.path} lacks entries {expected} to {index - 1}"
                    if index > expected > 0
                    else f"the journal {self.path} holds entry {index}, which should not be there"
                )
            elif crc(entry, before) != stored_crc:
                problem = f"entry {index} in the journal {self.path} does not match its checksum"
            yield entry, problem
            expected, before = index + 1, stored_crc
        last = expected - 1 if seal.first else 0
        if seal.last > last:
            yield None, f"the journal {self.path} lacks its last entries, {last + 1} to {seal.last}"
        elif seal.last < last or before != seal.tail:
            yield None, f"the journal {self.path} does not end with the entry that was written last"

    def write(self, batch: Batch) -> None:
        run = self._db.execute
        try:
            run("BEGIN IMMEDIATE")
            seal = self._extended(self._shortened(batch), batch.entries)
            facts = {**self._own_facts, **batch.facts}
            for row in (*batch.facts.items(), (_SEAL, seal.encode(facts))):
                run("INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", row)
            run("COMMIT")
        except sqlite3.Error as error:
            raise DiskFailed(
                f"writing the journal {self.path} failed ({error}); the voter stops rather than guess what "
                "is on disk: free space or replace the disk, then start it again"
            ) from error
        self._own_facts, self.seal = facts, seal
        if self._mark_file is not None:
            self._mark_file.write(Mark(facts.get("log_id", ""), seal.batch))

    def _shortened(self, batch: Batch) -> Seal:
        """Carry out the deletions; the seal of what stays, under the batch's number."""
        run = self._db.execute
        seal = self.seal
        number = seal.batch + 1
        if not (batch.clear or batch.truncate_from is not None or batch.drop_before is not None):
            return Seal(number, seal.first, seal.last, seal.base, seal.tail)
        first, last = seal.first, seal.last
        if batch.clear:
            run("DELETE FROM entries")
            first = last = 0
        if batch.truncate_from is not None:
            run("DELETE FROM entries WHERE idx >= ?", (batch.truncate_from,))
            last = min(last, batch.truncate_from - 1)
        base, tail = seal.base, seal.tail
        if batch.drop_before is not None:
            if first < batch.drop_before <= last:
                base = self._crc_at(batch.drop_before - 1)
            run("DELETE FROM entries WHERE idx < ?", (batch.drop_before,))
            first = max(first, batch.drop_before)
        if not 0 < first <= last:
            return Seal(number)
        if last != seal.last:
            tail = self._crc_at(last)
        return Seal(number, first, last, base, tail)

    def _crc_at(self, index: int) -> int:
        row = self._db.execute("SELECT crc FROM entries WHERE idx = ?", (index,)).fetchone()
        if row is None:
            raise sqlite3.DatabaseError(f"entry {index} is gone")
        return int(row[0])

    def _extended(self, seal: Seal, entries: list[LogEntry]) -> Seal:
        if not entries:
            return seal
        tail = seal.tail
        rows = []
        for entry in entries:
            tail = crc(entry, tail)
            rows.append((entry[1], entry[2], tail, entry[0]))
        self._db.executemany("INSERT INTO entries (idx, term, crc, data) VALUES (?, ?, ?, ?)", rows)
        return Seal(seal.batch, seal.first or entries[0][1], entries[-1][1], seal.base, tail)

    def close(self) -> None:
        self._db.close()
        if self._mark_file is not None:
            self._mark_file.close()
            self._mark_file = None
