"""What this node is doing, on its own disk: the attempts it holds and how far it has read the log.

    attempt(job, fence)   intent before the start, handle after it, both before the report; between two starts
                          of one attempt, when the next is due and what the last one failed of
    meta(name)            schema, cluster, index (the highest acted on), incarnation

Written for a process that may be killed between any two statements. A power loss ends every process
as well, so the writes are left to the page cache (synchronous=NORMAL keeps the file consistent).
"""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executors.processes import Identity

SCHEMA = 1

_TABLES = """
create table if not exists meta (name text primary key, value not null);
create table if not exists attempt (
    job text not null, fence integer not null,
    assignment blob not null,
    folder text not null,
    boot_id text not null, pid integer not null default 0, ticks integer not null default 0,
    started_at_s real not null default 0,
    stop_cause text not null default '',
    reported integer not null default 0,
    primary key (job, fence)
);
"""
#: columns that ledgers of earlier releases do not have
_LATER = {
    "restarts": "integer not null default 0",
    "due_s": "real not null default 0",
    "failure": "blob not null default x''",
}


class LedgerError(Exception):
    """The ledger cannot be read or written; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One attempt. `assignment` is the encoded assignment it was started from; pid 0: no handle yet."""

    job: str
    fence: int
    assignment: bytes
    folder: str
    process: Identity
    started_at_s: float
    stop_cause: str
    reported: bool
    #: how often it was started again, the start that is waited for included
    restarts: int
    #: when that is due; 0 when none is waited for
    due_s: float
    #: the encoded failure before the last restart; empty when there was none
    failure: bytes


class Ledger:
    """A small SQLite file. Every call is one short transaction, from any thread, and raises LedgerError."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma synchronous=normal")
            self._db.executescript(_TABLES)
            known = {row[1] for row in self._db.execute("pragma table_info(attempt)")}
            for name, kind in _LATER.items():
                if name not in known:
                    self._db.execute(f"alter table attempt add column {name} {kind}")
        except sqlite3.DatabaseError as error:
            raise LedgerError(f"the ledger {path} cannot be opened: {error}; move it away and start again") from error
        found = self._meta("schema") or SCHEMA
        if found != SCHEMA:
            self._db.close()
            raise LedgerError(
                f"the ledger {path} has schema {found}, this release reads {SCHEMA}; "
                "use the release that wrote it until its jobs have ended, or move the file away"
            )
        self._write("insert or ignore into meta values ('schema', ?)", SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @property
    def index(self) -> int:
        """The highest cluster index acted on."""
        return self._meta("index")

    def acted_on(self, index: int) -> None:
        self._write(
            "insert into meta values ('index', ?) on conflict (name) do update set value = max(value, excluded.value)",
            index,
        )

    def belong_to(self, cluster_id: str) -> None:
        """Start counting indexes anew when the node has been moved to another cluster."""
        rows = self._read("select value from meta where name = 'cluster'")
        if not rows or rows[0][0] != cluster_id:
            self._write("insert or replace into meta values ('cluster', ?)", cluster_id)
            self._write("delete from meta where name = ?", "index")

    def next_incarnation(self, wall_ms: int) -> int:
        """A number larger than every earlier one, also when the wall clock went back."""
        chosen = max(self._meta("incarnation") + 1, wall_ms)
        self._write("insert or replace into meta values ('incarnation', ?)", chosen)
        return chosen

    def intend(self, job: str, fence: int, assignment: bytes, folder: str, boot_id: str, at_s: float) -> None:
        """Before a start: if we die now, the next process looks for what may have started.

        Of an attempt that is started again the moment of its first start stays, and what it failed of.
        """
        self._write(
            "insert into attempt (job, fence, assignment, folder, boot_id, started_at_s) values (?, ?, ?, ?, ?, ?) "
            "on conflict (job, fence) do update set assignment = excluded.assignment, folder = excluded.folder, "
            "boot_id = excluded.boot_id, pid = 0, ticks = 0, stop_cause = '', reported = 0, due_s = 0",
            job, fence, assignment, folder, boot_id, at_s,
        )  # fmt: skip

    def handle(self, job: str, fence: int, process: Identity) -> None:
        """After the start: the keeper's identity."""
        self._write(
            "update attempt set pid = ?, ticks = ? where job = ? and fence = ?", process.pid, process.ticks, job, fence
        )

    def waits(self, job: str, fence: int, restarts: int, due_s: float, failure: bytes) -> None:
        """Its program has failed and is gone; it is started again when that is due."""
        self._write(
            "update attempt set restarts = ?, due_s = ?, failure = ? where job = ? and fence = ?",
            restarts, due_s, failure, job, fence,
        )  # fmt: skip

    def stopping(self, job: str, fence: int, cause: str) -> None:
        """Why it is being stopped, so that a later process reports the same reason."""
        self._write("update attempt set stop_cause = ? where job = ? and fence = ?", cause, job, fence)

    def reported(self, job: str, fence: int) -> None:
        self._write("update attempt set reported = 1 where job = ? and fence = ?", job, fence)

    def forget(self, job: str, fence: int) -> None:
        self._write("delete from attempt where job = ? and fence = ?", job, fence)

    def entries(self) -> list[Entry]:
        rows = self._read(
            "select job, fence, assignment, folder, boot_id, pid, ticks, started_at_s, stop_cause, reported, "
            "restarts, due_s, failure from attempt order by fence"
        )
        return [
            Entry(r[0], r[1], r[2], r[3], Identity(r[4], r[5], r[6]), r[7], r[8], bool(r[9]), r[10], r[11], r[12])
            for r in rows
        ]

    def _meta(self, name: str) -> int:
        rows = self._read("select value from meta where name = ?", name)
        return int(rows[0][0]) if rows else 0

    def _read(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._db.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise LedgerError(f"the ledger cannot be read: {error}; look at the disk") from error

    def _write(self, statement: str, *values: object) -> None:
        with self._lock:
            try:
                self._db.execute(statement, values)
            except sqlite3.Error as error:
                raise LedgerError(f"the ledger cannot be written: {error}; look at the disk") from error
