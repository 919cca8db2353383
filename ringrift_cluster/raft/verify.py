"""Say everything that is wrong with the files of a stopped node. Nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ringrift_cluster.raft.datadir import DataDir
from ringrift_cluster.raft.errors import WAY_OUT, JournalDamaged
from ringrift_cluster.raft.journal import NO_OP
from ringrift_cluster.raft.mark import mark_path
from ringrift_cluster.raft.messages import LogEntry
from ringrift_cluster.raft.snapshots import SnapshotDir, load
from ringrift_cluster.raft.store import SqliteStore
from statemachine.errors import Halt
from statemachine.machine import Machine
from statemachine.snapshot import Header, SnapshotDamaged, read

#: sentences about single entries; a page that is gone takes many with it
MAX_SENTENCES = 20


@dataclass(slots=True)
class Report:
    """What a data directory holds, and each damage as a sentence (none means it is sound)."""

    node_id: str = ""
    cluster_id: str = ""
    term: int = 0
    commit: int = 0
    first_index: int = 0
    last_index: int = 0
    last_term: int = 0
    entries: int = 0
    snapshots: list[str] = field(default_factory=list)
    #: index of a follower's snapshot, 0 without one
    follower_index: int = 0
    damages: list[str] = field(default_factory=list)
    #: what is odd and harmless
    notes: list[str] = field(default_factory=list)


def verify(data_dir: Path) -> Report:
    """Check every checksum, the order of the log, every snapshot, and that all of it belongs together.

    Raises LookupError when there is nothing to check, DataDirLocked while a node runs there, OSError.
    """
    paths = DataDir(data_dir)
    follower = data_dir / "feed" / "follower.snap"
    if not paths.raft.is_dir() and not follower.exists():
        raise LookupError(f"{data_dir} holds neither a voter's files ({paths.raft}) nor a follower's ({follower})")
    with paths.look():
        report = Report()
        if paths.raft.is_dir():
            _verify_voter(paths, report)
        if follower.exists():
            _verify_follower(follower, report)
        return report


def _verify_follower(path: Path, report: Report) -> None:
    try:
        with path.open("rb") as source:
            report.follower_index = read(source)[0].index
    except SnapshotDamaged as damage:
        report.damages.append(
            f"the follower's snapshot {path} is damaged: {damage}; start the node: it takes another one from a voter"
        )


def _verify_voter(paths: DataDir, report: Report) -> None:
    log = _verify_journal(paths, report)
    if log is None:
        return
    known = report.cluster_id
    machine: Machine | None = Machine() if log.get(1) is not None or not log else None
    positions = SnapshotDir(paths.snapshots).positions() if paths.snapshots.is_dir() else []
    for index, term in positions:
        path = paths.snapshots / f"{index}-{term}.snap"
        report.snapshots.append(f"{index}-{term}")
        try:
            head, loaded = load(path)
        except JournalDamaged as damage:
            report.damages.append(str(damage))
            machine = None
            continue
        report.damages += _odds(path, head, index, term, known, log)
        if machine is not None:
            report.damages += _replay(machine, log, index, paths)
            if machine.index == index and machine.chain != head.chain:
                report.damages.append(
                    f"the snapshot {path} has another digest than the journal leads to at entry {index}; one of them "
                    f"is of another history: {WAY_OUT}"
                )
        machine = loaded
    newest = positions[-1][0] if positions else 0
    if log and min(log) > max(newest, 1):
        report.damages.append(
            f"the journal {paths.journal} begins at entry {min(log)} and no snapshot reaches that far; {WAY_OUT}"
        )
    if machine is not None:
        report.damages += _replay(machine, log, report.commit, paths)


def _verify_journal(paths: DataDir, report: Report) -> dict[int, LogEntry] | None:
    """Its entries by index, or None when it cannot be read."""
    if not paths.journal.exists():
        report.damages.append(f"the journal {paths.journal} is missing; {WAY_OUT}")
        return None
    log: dict[int, LogEntry] = {}
    try:
        store = SqliteStore(paths.journal, read_only=True, behind_is_fine=True)
    except JournalDamaged as damage:
        report.damages.append(str(damage))
        return None
    try:
        if store.mark_problem:
            report.notes.append(store.mark_problem)
        elif store.mark is None:
            report.notes.append(
                f"the mark {mark_path(paths.journal)} is missing; nothing else is wrong, but a journal that has "
                "lost its end would not show without it"
            )
        if store.behind:
            report.damages.append(f"{store.behind}; {WAY_OUT}")
        facts = store.facts()
        problems = []
        for entry, problem in store.walk():
            if problem:
                problems.append(f"{problem}; {WAY_OUT}")
            if entry is not None:
                log[entry[1]] = entry
        report.damages += problems[:MAX_SENTENCES]
        if len(problems) > MAX_SENTENCES:
            report.damages.append(f"{len(problems) - MAX_SENTENCES} more entries of {paths.journal} are damaged")
    except JournalDamaged as damage:
        report.damages.append(str(damage))
        return None
    finally:
        store.close()
    report.node_id, report.cluster_id = facts.get("node_id", ""), facts.get("cluster_id", "")
    report.term, report.commit = int(facts.get("term") or 0), int(facts.get("commit") or 1)
    report.entries = len(log)
    if log:
        report.first_index, report.last_index = min(log), max(log)
        report.last_term = log[report.last_index][2]
    report.damages += [f"in the journal {paths.journal} {odd}; {WAY_OUT}" for odd in _odd_terms(report, log)]
    return log


def _odd_terms(report: Report, log: dict[int, LogEntry]) -> Iterator[str]:
    before = 0
    for index, (_, _, term) in sorted(log.items()):
        if term < before:
            yield f"entry {index} has term {term}, the one before it {before}"
        before = term
    if before > report.term:
        yield f"the last entry has term {before}, but the voter knows only term {report.term}"
    if log and report.commit > report.last_index:
        yield f"entry {report.commit} is said to be committed, but the last one is {report.last_index}"


def _odds(path: Path, head: Header, index: int, term: int, known: str, log: dict[int, LogEntry]) -> Iterator[str]:
    if (head.index, head.term) != (index, term):
        yield f"the snapshot {path} says it stands at {head.index}-{head.term}; {WAY_OUT}"
    if known and head.cluster_id != known:
        yield f"the snapshot {path} is of cluster {head.cluster_id}, the journal of {known}; {WAY_OUT}"
    held = log.get(index)
    if held is not None and held[2] != term:
        yield f"the snapshot {path} stands at term {term}, the journal has entry {index} of term {held[2]}; {WAY_OUT}"


def _replay(machine: Machine, log: dict[int, LogEntry], goal: int, paths: DataDir) -> Iterator[str]:
    """Apply what follows on the machine, as far as the journal holds it without a gap."""
    for at in range(machine.index + 1, goal + 1):
        entry = log.get(at)
        if entry is None:
            return
        if entry[0][:1] == bytes((NO_OP,)):
            continue
        try:
            machine.apply(at, entry[2], entry[0][1:])
        except Halt as halt:
            yield f"entry {at} in the journal {paths.journal} cannot be applied: {halt}; {WAY_OUT}"
            return
