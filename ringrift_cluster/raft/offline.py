"""Read a stopped voter's data directory: check it, or replay it to an index. Nothing is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ringrift_cluster.raft.datadir import DataDir
from ringrift_cluster.raft.errors import JournalDamaged
from ringrift_cluster.raft.journal import REGULAR
from ringrift_cluster.raft.snapshots import SnapshotDir, load
from ringrift_cluster.raft.store import SqliteStore
from statemachine.errors import Halt
from statemachine.machine import Machine


@dataclass(slots=True)
class Report:
    """What a data directory holds, and each damage as a sentence (none means it is sound)."""

    node_id: str = ""
    cluster_id: str = ""
    term: int = 0
    commit: int = 0
    first_index: int = 0
    last_index: int = 0
    entries: int = 0
    snapshots: list[str] = field(default_factory=list)
    damages: list[str] = field(default_factory=list)


def verify(data_dir: Path) -> Report:
    """Check every entry's checksum, the order of the log, and every snapshot's digest."""
    paths = DataDir(data_dir)
    report = Report()
    positions = SnapshotDir(paths.snapshots).positions() if paths.snapshots.is_dir() else []
    for index, term in positions:
        report.snapshots.append(f"{index}-{term}")
        try:
            load(paths.snapshots / f"{index}-{term}.snap")
        except JournalDamaged as damage:
            report.damages.append(str(damage))
    try:
        store = _store(paths)
    except JournalDamaged as damage:
        report.damages.append(str(damage))
        return report
    try:
        facts = store.facts()
        report.node_id, report.cluster_id = facts.get("node_id", ""), facts.get("cluster_id", "")
        report.term, report.commit = int(facts.get("term", 0)), int(facts.get("commit", 1))
        before = 0
        for _, index, term in store.entries():
            report.first_index = report.first_index or index
            report.last_index = index
            report.entries += 1
            if term < before:
                report.damages.append(f"entry {index} has term {term}, the one before it {before}")
            before = term
        newest = positions[-1][0] if positions else 0
        if report.first_index > max(newest, 1):
            report.damages.append(f"the journal begins at entry {report.first_index} and no snapshot reaches that far")
    except JournalDamaged as damage:
        report.damages.append(str(damage))
    finally:
        store.close()
    return report


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
        if machine.index < at <= goal and data[0] == REGULAR:
            try:
                machine.apply(at, term, data[1:])
            except Halt as halt:
                raise JournalDamaged(f"entry {at} in {paths.journal} cannot be applied: {halt}") from halt
    return machine


def _store(paths: DataDir) -> SqliteStore:
    if not paths.journal.is_file():
        raise JournalDamaged(f"{paths.root} holds no voter's journal ({paths.journal} is missing)")
    return SqliteStore(paths.journal, read_only=True)
