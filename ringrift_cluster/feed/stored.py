"""A follower's own snapshot file: what it starts from, and what followers of it start from."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from statemachine.machine import Machine
from statemachine.snapshot import Frozen, Header, SnapshotDamaged, freeze, header, read, write

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredSnapshot:
    """A complete file and the position it stands at."""

    path: Path
    index: int
    cluster_id: str


def load(path: Path) -> tuple[StoredSnapshot, Machine] | None:
    """Read and verify; None when there is no file. Raises SnapshotDamaged."""
    try:
        with path.open("rb") as source:
            head, machine = read(source)
    except FileNotFoundError:
        return None
    return StoredSnapshot(path, head.index, head.cluster_id), machine


def store(path: Path, frozen: Frozen, head: Header) -> StoredSnapshot:
    """Write beside it, make it durable, give it its name. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    with draft.open("wb") as out:
        write(frozen, head, out)
        out.flush()
        os.fsync(out.fileno())
    draft.replace(path)
    return StoredSnapshot(path, head.index, head.cluster_id)


class OwnSnapshot:
    """The one snapshot file of a follower, `<data>/feed/follower.snap`. Runs on the follower's event loop."""

    def __init__(self, data_dir: Path, every_entries: int) -> None:
        self.path = data_dir / "feed" / "follower.snap"
        self.error = ""
        self._every_entries = every_entries
        self._latest: StoredSnapshot | None = None
        self._saving: asyncio.Task[None] | None = None
        #: counts the files that took the place of all before, so that a slow writer notices
        self._age = 0

    @property
    def draft(self) -> Path:
        """Where a download goes until it is verified."""
        return self.path.with_suffix(".part")

    @property
    def latest(self) -> StoredSnapshot | None:
        return self._latest if self._latest is not None and self._latest.path.exists() else None

    async def load(self) -> tuple[StoredSnapshot, Machine] | None:
        """What is on disk; a damaged file is removed, for it must never keep a node from starting."""
        try:
            found = await asyncio.to_thread(load, self.path)
        except SnapshotDamaged as error:
            log.warning("event=own_snapshot_damaged file=%s reason=%s", self.path, error)
            self.drop()
            return None
        self._latest = found[0] if found else None
        return found

    async def adopt_draft(self) -> tuple[StoredSnapshot, Machine]:
        """Verify a finished download and make it the snapshot. Raises SnapshotDamaged, OSError."""
        found = await asyncio.to_thread(load, self.draft)
        if found is None:
            raise SnapshotDamaged("the snapshot disappeared after it was fetched")
        await self.saved()
        self.draft.replace(self.path)
        self._age += 1
        self._latest = StoredSnapshot(self.path, found[0].index, found[0].cluster_id)
        return found

    def drop(self) -> None:
        """Forget the file: its state is not that of the log."""
        self._age += 1
        self._latest = None
        self.path.unlink(missing_ok=True)

    def save_when_due(self, machine: Machine, cluster_id: str, voters: tuple[str, ...]) -> None:
        """Begin to write a new one after so many entries."""
        since = machine.index - (self._latest.index if self._latest else 0)
        if since >= self._every_entries and (self._saving is None or self._saving.done()):
            self._begin(machine, cluster_id, voters)

    async def save(self, machine: Machine, cluster_id: str, voters: tuple[str, ...]) -> None:
        """Write one now, unless it stands there already; `error` says why there is still none."""
        await self.saved()
        if self.latest is None or self.latest.index < machine.index:
            self._begin(machine, cluster_id, voters)
            await self.saved()

    async def saved(self) -> None:
        """Wait for a writer that is at it."""
        if self._saving is not None:
            await asyncio.shield(self._saving)

    def _begin(self, machine: Machine, cluster_id: str, voters: tuple[str, ...]) -> None:
        frozen = freeze(machine)
        head = header(frozen, cluster_id, voters)
        self._saving = asyncio.create_task(self._write(frozen, head, self._age), name="feed-snapshot")

    async def _write(self, frozen: Frozen, head: Header, age: int) -> None:
        try:
            stored = await asyncio.to_thread(store, self.path, frozen, head)
        except OSError as error:
            self.error = f"the snapshot {self.path} cannot be written: {error}"
            log.warning("event=own_snapshot_failed file=%s reason=%s", self.path, error)
            return
        finally:
            frozen.release()
        if age == self._age:
            self._latest = stored
        else:
            # The state was dropped while it was written.
            self.path.unlink(missing_ok=True)
