"""The files of one voter: `<data>/raft/journal.db`, `<data>/raft/snapshots/`, and a lock."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ringrift_cluster.raft.errors import DataDirLocked


@dataclass(frozen=True, slots=True)
class DataDir:
    """Paths below a node's data directory."""

    root: Path

    @property
    def raft(self) -> Path:
        return self.root / "raft"

    @property
    def journal(self) -> Path:
        return self.raft / "journal.db"

    @property
    def snapshots(self) -> Path:
        return self.raft / "snapshots"

    @property
    def lock_file(self) -> Path:
        return self.raft / "lock"

    def create(self) -> None:
        """Make the directories, readable by their owner alone."""
        self.snapshots.mkdir(parents=True, exist_ok=True, mode=0o700)

    @contextlib.contextmanager
    def look(self) -> Iterator[None]:
        """Keep a node from starting here meanwhile; writes nothing. Raises DataDirLocked while one runs."""
        with self._held(fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only one here: no node, and nobody who looks. Raises DataDirLocked."""
        (self.root / "lock").touch()
        with self._held(fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def _held(self, kind: int) -> Iterator[None]:
        with contextlib.ExitStack() as held:
            for path in (self.root / "lock", self.lock_file):
                if not path.exists():
                    continue
                lock = held.enter_context(path.open("rb"))
                try:
                    fcntl.flock(lock, kind | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise DataDirLocked(f"a node runs on the data directory {self.root}; stop it first") from error
            yield

    def lock(self) -> BinaryIO:
        """Take the directory for this process until the returned file is closed. Raises DataDirLocked."""
        self.create()
        held = self.lock_file.open("a+b")
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            held.seek(0)
            owner = held.read(32).decode(errors="replace").strip()
            held.close()
            raise DataDirLocked(
                f"the data directory {self.root} is in use by process {owner or '?'}; "
                "stop it, or give this node another --data-dir"
            ) from error
        held.seek(0)
        held.truncate()
        held.write(f"{os.getpid()}\n".encode())
        held.flush()
        return held


def sync_directory(path: Path) -> None:
    """Make a rename in `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
