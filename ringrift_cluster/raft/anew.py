"""A new cluster of one voter from an old one's state: the way back from lost quorum, and from a backup.

The new cluster has an id of its own, so nothing of the old one is ever mixed into it. It begins with one voter and
grows from there; its log goes on at the index and in the term of the state it begins with.
"""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from ringrift_cluster.raft.datadir import DataDir, sync_directory
from ringrift_cluster.raft.errors import WAY_OUT, JournalDamaged, RaftError
from ringrift_cluster.raft.journal import NO_OP, Journal
from ringrift_cluster.raft.snapshots import SnapshotDir, load
from ringrift_cluster.raft.store import SqliteStore
from ringrift_cluster.raft.verify import Report, verify
from statemachine.anew import begin_anew
from statemachine.errors import Halt
from statemachine.machine import Machine
from statemachine.snapshot import Header, freeze, header
from statemachine.values import Voter


class Refused(RaftError):  # noqa: N818 - an answer
    """It would destroy something, or there is nothing to begin with."""


@dataclass(frozen=True, slots=True)
class Begun:
    """The new cluster. `kept` is where the old files are now, if there were any."""

    cluster_id: str
    old_cluster_id: str
    node_id: str
    index: int
    term: int
    rows: int
    kept: str = ""


@dataclass(slots=True)
class Survivor:
    """What the files of a voter still give: its state after the last entry that can be read."""

    report: Report
    machine: Machine
    #: what could not be used, as sentences
    lost: list[str] = field(default_factory=list)


def survivor(data_dir: Path, node: str) -> Survivor:
    """Read as much as there is, every entry that this voter has, known to be committed or not.

    Raises Refused when there is no voter or another one than `node`, DataDirLocked while its node runs.
    """
    paths = DataDir(data_dir)
    if not paths.raft.is_dir():
        raise Refused(f"{data_dir} holds no voter's files ({paths.raft} is missing)")
    report = verify(data_dir)
    if report.node_id not in ("", node):
        raise Refused(f"{data_dir} belongs to voter {report.node_id}, not {node}; name it in --keep")
    # The usual way out, by the other voters, is none here.
    found = Survivor(report, _newest_snapshot(paths), [_without_way_out(damage) for damage in report.damages])
    try:
        _replay(paths, found)
    except JournalDamaged as damage:
        if (sentence := _without_way_out(str(damage))) not in found.lost:
            found.lost.append(sentence)
    if found.machine.index == 0:
        raise Refused(f"{data_dir} has no snapshot and no entry that can be read; there is nothing to begin with")
    return found


def _without_way_out(damage: str) -> str:
    return damage.removesuffix(WAY_OUT).rstrip(";: ")


def _newest_snapshot(paths: DataDir) -> Machine:
    positions = SnapshotDir(paths.snapshots).positions() if paths.snapshots.is_dir() else []
    for index, term in reversed(positions):
        try:
            return load(paths.snapshots / f"{index}-{term}.snap")[1]
        except JournalDamaged:
            continue
    return Machine()


def _replay(paths: DataDir, found: Survivor) -> None:
    """Apply what follows in the journal, up to the first entry that is not sound."""
    machine = found.machine
    expected = machine.index + 1
    store = SqliteStore(paths.journal, read_only=True, behind_is_fine=True)
    try:
        for entry, problem in store.walk():
            if problem or entry is None:
                return
            data, index, term = entry
            if index < expected:
                continue
            if index > expected:
                found.lost.append(f"entries {expected} to {index - 1} are in no file of {paths.root}")
                return
            expected += 1
            if data[0] != NO_OP:
                machine.apply(index, term, data[1:])
    except Halt as halt:
        found.lost.append(f"an entry in {paths.journal} cannot be applied: {halt}")
    finally:
        store.close()


def recover(data_dir: Path, voter: Voter, found: Survivor) -> Begun:
    """Begin a new cluster from a survivor's state; its old files stay beside the new ones.

    Raises Refused, DataDirLocked, OSError, DiskFailed.
    """
    paths = DataDir(data_dir)
    report = found.report
    with paths.alone():
        term = max(report.term, found.machine.term)
        begun = _begin(paths, voter, found.machine, term, report.cluster_id, "quorum was lost")
        kept = data_dir / f"raft.before-{begun.cluster_id[:8]}"
        paths.raft.rename(kept)
        _put_in_place(paths)
    return replace(begun, kept=str(kept))


def restore(data_dir: Path, voter: Voter, head: Header, machine: Machine) -> Begun:
    """Begin a new cluster from a backup in a directory without a voter's files.

    Raises Refused, DataDirLocked, OSError, DiskFailed.
    """
    paths = DataDir(data_dir)
    if paths.raft.exists() and any(paths.raft.iterdir()):
        raise Refused(
            f"{paths.raft} holds a voter's files already; give another --data-dir, or move them away if they may go"
        )
    if machine.index == 0:
        raise Refused("the backup is of an empty cluster; start a new one instead")
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with paths.alone():
        begun = _begin(paths, voter, machine, head.term, head.cluster_id, f"restored from a backup at {head.index}")
        shutil.rmtree(paths.raft, ignore_errors=True)
        _put_in_place(paths)
    return begun


def _staging(paths: DataDir) -> DataDir:
    return DataDir(paths.root / "raft.new")


def _put_in_place(paths: DataDir) -> None:
    _staging(paths).raft.rename(paths.raft)
    _staging(paths).root.rmdir()
    sync_directory(paths.root)


def _begin(paths: DataDir, voter: Voter, machine: Machine, term: int, old_cluster_id: str, why: str) -> Begun:
    """Write the new voter's files beside their place."""
    new = _staging(paths)
    shutil.rmtree(new.root, ignore_errors=True)
    new.create()
    cluster_id = secrets.token_hex(12)
    voter = msgspec.structs.replace(voter, log_id=secrets.token_hex(16))
    begin_anew(machine, cluster_id, voter, why)
    frozen = freeze(machine)
    snapshots = SnapshotDir(new.snapshots)
    snapshots.adopt(snapshots.write(frozen, header(frozen, cluster_id, (voter.node,))))
    store = SqliteStore(new.journal)
    try:
        journal = Journal(store.load())
        journal.reset(machine.index, machine.term)
        journal.setCurrentTerm(term, None)
        facts = {"node_id": voter.node, "log_id": voter.log_id, "cluster_id": cluster_id, "admitted": "1"}
        for name, value in facts.items():
            journal.set_fact(name, value)
        batch = journal.take()
        if batch is not None:
            store.write(batch)
    finally:
        store.close()
    sync_directory(new.raft)
    rows = sum(len(rows) for rows in frozen.tables.values())
    return Begun(cluster_id, old_cluster_id, voter.node, machine.index, machine.term, rows)
