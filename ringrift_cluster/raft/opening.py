"""Bring machine and journal to one position when a voter starts."""

from __future__ import annotations

from ringrift_cluster.raft.configuration import of_state
from ringrift_cluster.raft.errors import WAY_OUT, JournalDamaged
from ringrift_cluster.raft.journal import Journal
from ringrift_cluster.raft.snapshots import SnapshotDir
from statemachine.machine import Machine


def open_machine(node_id: str, journal: Journal, snapshots: SnapshotDir) -> Machine:
    """The machine at the newest snapshot; completes an install that a crash interrupted.

    An install renames its file first and changes the journal after it, so a snapshot that the journal
    does not reach, or whose entry it has with another term, is one that was decided on.
    Raises JournalDamaged when the two cannot belong together.
    """
    opened = snapshots.open()
    fresh = len(journal) == 0
    if opened is None:
        if not fresh and journal.first_index > 1:
            raise JournalDamaged(
                f"the journal of {node_id} begins at entry {journal.first_index} and there is no snapshot "
                f"before it; {WAY_OUT}"
            )
        return Machine()
    head, machine = opened
    if fresh and not journal.fact("node_id"):
        raise JournalDamaged(f"there is a snapshot at entry {head.index} but no journal beside it; {WAY_OUT}")
    known = journal.fact("cluster_id")
    if known and head.cluster_id != known:
        raise JournalDamaged(
            f"the snapshot at entry {head.index} is of cluster {head.cluster_id}, the journal of {known}; {WAY_OUT}"
        )
    if fresh or (head.index >= journal.first_index and journal.term_at(head.index) != head.term):
        journal.reset(head.index, head.term)
        journal.configurations.restart(of_state(machine.state))
        journal.set_fact("cluster_id", head.cluster_id)
    elif head.index < journal.first_index:
        raise JournalDamaged(
            f"the journal of {node_id} begins at entry {journal.first_index}, after its newest snapshot at "
            f"{head.index}; {WAY_OUT}"
        )
    return machine
