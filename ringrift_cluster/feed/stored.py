"""A follower's own snapshot file: what it starts from, and what followers of it start from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from statemachine.machine import Machine
from statemachine.snapshot import Frozen, Header, read, write


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
