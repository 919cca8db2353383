"""Snapshot files of one voter: `<index>-<term>.snap`, each complete and verified or not there.

The same file installs at other voters, starts followers, and serves dumps and backups.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ringrift_cluster.raft.datadir import sync_directory
from ringrift_cluster.raft.errors import WAY_OUT, DiskFailed, JournalDamaged
from statemachine.machine import Machine
from statemachine.snapshot import Frozen, Header, SnapshotDamaged, read, write

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_NAME = re.compile(r"^(\d{1,20})-(\d{1,20})\.snap$")
#: how many snapshots stay on disk, so that a transfer survives the next compaction
KEPT = 2
#: a file somebody read from stays this long
FETCH_GRACE_S = 60.0
#: what is written of a snapshot between two syncs
PORTION_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """One complete file. `sha256` is of the whole file."""

    path: Path
    index: int
    term: int
    size_bytes: int
    sha256: str


class _Steady(io.BufferedWriter):
    """A file that goes to the disk in small portions. The journal shares the disk, and its sync would wait for all."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self._unsynced = 0

    def write(self, data: ReadableBuffer) -> int:
        taken = super().write(data)
        self._unsynced += taken
        if self._unsynced >= PORTION_BYTES:
            self.sync()
        return taken

    def sync(self) -> None:
        self.flush()
        os.fsync(self.fileno())
        self._unsynced = 0


class SnapshotDir:
    """The directory and what lies in it. Only the consensus thread calls `adopt` and `doomed`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._latest: SnapshotFile | None = None
        self._fetched_at: dict[tuple[int, int], float] = {}

    @property
    def latest(self) -> SnapshotFile | None:
        return self._latest

    def path(self, index: int, term: int) -> Path:
        return self.directory / f"{index}-{term}.snap"

    def positions(self) -> list[tuple[int, int]]:
        """(index, term) of the files present, oldest first."""
        found = (_NAME.match(p.name) for p in self.directory.iterdir())
        return sorted((int(m[1]), int(m[2])) for m in found if m)

    def open(self) -> tuple[Header, Machine] | None:
        """Load the newest file, or None when there is none. Raises JournalDamaged for a bad one."""
        for stray in (*self.directory.glob("*.part"), *self.directory.glob("*.tmp")):
            stray.unlink()
        positions = self.positions()
        if not positions:
            return None
        index, term = positions[-1]
        path = self.path(index, term)
        header, machine = load(path)
        if (header.index, header.term) != (index, term):
            raise JournalDamaged(f"the snapshot {path} says it stands at {header.index}-{header.term}; {WAY_OUT}")
        self._latest = SnapshotFile(path, index, term, path.stat().st_size, digest(path))
        return header, machine

    def write(self, frozen: Frozen, header: Header) -> SnapshotFile:
        """Write a temporary file and sync it (any thread). `adopt` gives it its name."""
        path = self.directory / f"{header.index}-{header.term}.tmp"
        try:
            with _Steady(path) as out:
                write(frozen, header, out)
                out.sync()
        except OSError as error:
            raise DiskFailed(f"writing the snapshot {path} failed ({error})") from error
        return SnapshotFile(path, header.index, header.term, path.stat().st_size, digest(path))

    def adopt(self, file: SnapshotFile) -> SnapshotFile:
        """Rename a synced file to its final name, durably, and make it the latest."""
        final = self.path(file.index, file.term)
        try:
            file.path.replace(final)
            sync_directory(self.directory)
        except OSError as error:
            raise DiskFailed(f"keeping the snapshot {final} failed ({error})") from error
        adopted = SnapshotFile(final, file.index, file.term, file.size_bytes, file.sha256)
        if self._latest is None or adopted.index > self._latest.index:
            self._latest = adopted
        return adopted

    def doomed(self, now: float) -> list[Path]:
        """Old files, but none that somebody is fetching. Another thread removes them: that takes a large file long."""
        found = []
        for index, term in self.positions()[:-KEPT]:
            if now - self._fetched_at.get((index, term), -FETCH_GRACE_S) >= FETCH_GRACE_S:
                self._fetched_at.pop((index, term), None)
                found.append(self.path(index, term))
        return found

    def part(self, index: int, term: int, offset: int, length: int, now: float) -> bytes:
        """Bytes of a snapshot for a voter that fetches it; empty when the file is not here."""
        try:
            with self.path(index, term).open("rb") as source:
                source.seek(offset)
                data = source.read(length)
        except FileNotFoundError:
            return b""
        self._fetched_at[(index, term)] = now
        return data

    def hold(self, file: SnapshotFile, now: float) -> None:
        """Keep a file for whoever was told of it, as if it had been read from now."""
        self._fetched_at[(file.index, file.term)] = now


def digest(path: Path) -> str:
    """sha256 of a file in hex."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def load(path: Path) -> tuple[Header, Machine]:
    """Read and verify one snapshot file. Raises JournalDamaged with the reason."""
    try:
        with path.open("rb") as source:
            return read(source)
    except SnapshotDamaged as error:
        raise JournalDamaged(f"the snapshot {path} is damaged: {error}; {WAY_OUT}") from error
