"""A journal on disk: SQLite in WAL mode, one fsync a batch, every entry under a CRC."""

from __future__ import annotations

import sqlite3
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from ringrift_cluster.raft.errors import DiskFailed, JournalDamaged
from ringrift_cluster.raft.journal import SCHEMA, Batch, Stored
from ringrift_cluster.raft.messages import LogEntry

_TABLES = """
CREATE TABLE IF NOT EXISTS entries (
    idx INTEGER PRIMARY KEY, term INTEGER NOT NULL, crc INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_WAY_OUT = "run `ringrift-node raft verify`; to go on, restore this voter or remove and re-add it"


def crc(entry: LogEntry) -> int:
    """CRC32 over an entry's position and bytes."""
    return zlib.crc32(entry[0], zlib.crc32(struct.pack("<QQ", entry[1], entry[2])))


class SqliteStore:
    """The store at `path`. Raises DiskFailed on any failed write and JournalDamaged on a bad entry."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        try:
            # The helper thread that waits for the disk is not the one that opens; they never overlap.
            if read_only:
                self._db = sqlite3.connect(
                    f"file:{path}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
                )
                return
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA wal_autocheckpoint=4000")
            self._db.execute("PRAGMA cache_size=-8192")
            self._db.executescript(_TABLES)
            self._db.execute("INSERT OR IGNORE INTO facts VALUES ('schema', ?)", (str(SCHEMA),))
        except sqlite3.Error as error:
            raise JournalDamaged(f"the journal {path} cannot be opened ({error}); {_WAY_OUT}") from error

    def load(self) -> Stored:
        return Stored(self.facts(), list(self.entries()))

    def facts(self) -> dict[str, str]:
        """The facts, of a schema that this release reads. Raises JournalDamaged."""
        try:
            facts = dict(self._db.execute("SELECT name, value FROM facts"))
        except sqlite3.Error as error:
            raise JournalDamaged(f"the journal {self.path} cannot be read ({error}); {_WAY_OUT}") from error
        if facts.get("schema") != str(SCHEMA):
            raise JournalDamaged(
                f"the journal {self.path} has schema {facts.get('schema')}, this release reads {SCHEMA}; "
                "start the release that wrote it"
            )
        return facts

    def entries(self) -> Iterator[LogEntry]:
        """Every entry in order. Raises JournalDamaged at the first bad one or gap."""
        try:
            yield from self._checked(self._db.execute("SELECT idx, term, crc, data FROM entries ORDER BY idx"))
        except sqlite3.Error as error:
            raise JournalDamaged(f"the journal {self.path} cannot be read ({error}); {_WAY_OUT}") from error

    def _checked(self, rows: Iterable[tuple[int, int, int, bytes]]) -> Iterator[LogEntry]:
        expected: int | None = None
        for index, term, stored_crc, data in rows:
            entry = (bytes(data), int(index), int(term))
            if expected is not None and index != expected:
                raise JournalDamaged(f"the journal {self.path} lacks entries {expected} to {index - 1}; {_WAY_OUT}")
            if crc(entry) != stored_crc:
                raise JournalDamaged(
                    f"entry {index} in the journal {self.path} does not match its checksum; {_WAY_OUT}"
                )
            expected = index + 1
            yield entry

    def write(self, batch: Batch) -> None:
        run = self._db.execute
        try:
            run("BEGIN IMMEDIATE")
            if batch.clear:
                run("DELETE FROM entries")
            if batch.truncate_from is not None:
                run("DELETE FROM entries WHERE idx >= ?", (batch.truncate_from,))
            if batch.drop_before is not None:
                run("DELETE FROM entries WHERE idx < ?", (batch.drop_before,))
            if batch.entries:
                self._db.executemany(
                    "INSERT OR REPLACE INTO entries (idx, term, crc, data) VALUES (?, ?, ?, ?)",
                    [(e[1], e[2], crc(e), e[0]) for e in batch.entries],
                )
            if batch.facts:
                self._db.executemany(
                    "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                    list(batch.facts.items()),
                )
            run("COMMIT")
        except sqlite3.Error as error:
            raise DiskFailed(
                f"writing the journal {self.path} failed ({error}); the voter stops rather than guess what "
                "is on disk: free space or replace the disk, then start it again"
            ) from error

    def close(self) -> None:
        self._db.close()
