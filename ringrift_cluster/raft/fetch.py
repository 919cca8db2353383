"""A voter fetches the snapshot its leader offered: in parts, resumed after a lost connection."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ringrift_cluster.raft.errors import DiskFailed, JournalDamaged
from ringrift_cluster.raft.messages import FetchPart, Message, OfferSnapshot, Part
from ringrift_cluster.raft.snapshots import SnapshotFile, digest, load
from statemachine.machine import Machine
from statemachine.snapshot import Header

#: an unanswered request is made again after this time
RETRY_S = 1.0


@dataclass(slots=True)
class _Transfer:
    offer: OfferSnapshot
    peer: str
    path: Path
    offset: int
    asked_at: float
    complete: bool = False


class Fetch:
    """At most one transfer at a time. A bad one is thrown away and the leader's next offer starts anew."""

    def __init__(self, directory: Path, send: Callable[[str, Message], None]) -> None:
        self._directory = directory
        self._send = send
        self._transfer: _Transfer | None = None

    def want(self, peer: str, offer: OfferSnapshot, now: float) -> None:
        """The leader offers a file we need."""
        running = self._transfer
        if running is not None:
            if running.complete:
                # It is being verified in another thread.
                return
            same = running.offer.sha256 == offer.sha256
            silent = now - running.asked_at > RETRY_S
            if (same and running.peer != peer) or (silent and (same or running.peer == peer)):
                running.peer = peer
                self._ask(running, now)
                return
            if same or not silent:
                # A busy leader has a newer file before the first one is here. It keeps that one, and what follows it,
                # for us; whoever turned to the newer file each time would never have one.
                return
            running.path.unlink(missing_ok=True)
        path = self._directory / f"{offer.index}-{offer.snapshot_term}-{offer.sha256[:16]}.part"
        self._transfer = _Transfer(offer, peer, path, 0, now)
        path.write_bytes(b"")
        self._ask(self._transfer, now)

    def _ask(self, transfer: _Transfer, now: float) -> None:
        transfer.asked_at = now
        offer = transfer.offer
        self._send(transfer.peer, FetchPart(offer.index, offer.snapshot_term, transfer.offset))

    def take(self, peer: str, part: Part, now: float) -> SnapshotFile | None:
        """Store one part; returns the file (neither verified nor synced) once it is complete."""
        transfer = self._transfer
        if transfer is None or transfer.complete or peer != transfer.peer:
            return None
        offer = transfer.offer
        if (part.index, part.snapshot_term, part.offset) != (offer.index, offer.snapshot_term, transfer.offset):
            return None
        if not part.data or transfer.offset + len(part.data) > offer.size_bytes:
            self.drop()
            return None
        try:
            with transfer.path.open("r+b") as out:
                out.seek(transfer.offset)
                out.write(part.data)
                transfer.offset += len(part.data)
        except OSError as error:
            raise DiskFailed(f"storing the snapshot part {transfer.path} failed ({error})") from error
        if transfer.offset < offer.size_bytes:
            self._ask(transfer, now)
            return None
        transfer.complete = True
        return SnapshotFile(transfer.path, offer.index, offer.snapshot_term, offer.size_bytes, offer.sha256)

    def drop(self) -> None:
        """The transfer was bad, or its file was taken over, or is no longer needed."""
        if self._transfer is not None:
            self._transfer.path.unlink(missing_ok=True)
            self._transfer = None


def verified(file: SnapshotFile) -> tuple[Header, Machine] | None:
    """Load a fetched file that is durable now, or None when it is not what was offered or cannot be read.

    Any thread: a large file takes seconds. Raises DiskFailed.
    """
    if file.path.stat().st_size != file.size_bytes or digest(file.path) != file.sha256:
        return None
    try:
        found = load(file.path)
    except JournalDamaged:
        return None
    try:
        with file.path.open("rb") as stored:
            os.fsync(stored.fileno())
    except OSError as error:
        raise DiskFailed(f"storing the snapshot {file.path} failed ({error})") from error
    return found
