"""Replay a stopped voter's data directory to an index. Nothing is written."""

from __future__ import annotations

from pathlib import Path

from ringrift_cluster.raft.datadir import DataDir
from ringrift_cluster.raft.errors import JournalDamaged
from ringrift_cluster.raft.journal import NO_OP
from ringrift_cluster.raft.snapshots import SnapshotDir, load
from ringrift_cluster.raft.store import SqliteStore
from statemachine.errors import Halt
from statemachine.machine import Machine


def facts_of(data_dir: Path) -> dict[str, str]:
    """What the journal knows beside its entries. Raises JournalDamaged."""
    store = _store(DataDir(data_dir))
    try:
        return store.facts()
    finally:
        store.close()


def read_offline(data_dir: Path, index: int | None = None) -> Machine:
    """The state at `index` (None: as far as is known to be committed) from snapshot and journal.

    The journal's commit index may be a second old. Raises JournalDamaged, and LookupError when the state
    at `index` cannot be had from what is here.
    """
    paths = DataDir(data_dir)
    store = _store(paths)
    try:
        stored = store.load()
    finally:
        store.close()
    commit = int(stored.facts.get("commit", 1))
    goal = commit if index is None else index
    if goal > commit:
        raise LookupError(f"{data_dir} knows entries as committed up to {commit}, not {goal}")
    positions = SnapshotDir(paths.snapshots).positions() if paths.snapshots.is_dir() else []
    usable = [p for p in positions if p[0] <= goal]
    machine = Machine()
    if usable:
        machine = load(paths.snapshots / f"{usable[-1][0]}-{usable[-1][1]}.snap")[1]
    first = stored.entries[0][1] if stored.entries else 1
    if first > machine.index + 1:
        oldest = positions[0][0] if positions else first
        raise LookupError(f"{data_dir} begins at entry {oldest}; the state at {goal} is no longer here")
    for data, at, term in stored.entries:
        if machine.index < at <= goal and data[0] != NO_OP:
            try:
                machine.apply(at, term, data[1:])
            except Halt as halt:
                raise JournalDamaged(f"entry {at} in {paths.journal} cannot be applied: {halt}") from halt
    return machine


def _store(paths: DataDir) -> SqliteStore:
    if not paths.journal.is_file():
        raise JournalDamaged(f"{paths.root} holds no voter's journal ({paths.journal} is missing)")
    return SqliteStore(paths.journal, read_only=True)
