"""When a voter writes a snapshot, and what of the log it keeps behind it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ringrift_cluster.raft.conf import Limits
from ringrift_cluster.raft.configuration import of_state
from ringrift_cluster.raft.counters import Counters
from ringrift_cluster.raft.journal import Journal
from ringrift_cluster.raft.membership import Membership
from ringrift_cluster.raft.snapshots import FETCH_GRACE_S, SnapshotDir, SnapshotFile, digest
from statemachine.machine import Machine
from statemachine.snapshot import freeze, header

log = logging.getLogger(__name__)

PRUNE_S = 10.0


@dataclass(slots=True)
class Job:
    """Work for another thread. `run` first, anywhere; then `finish` on the consensus thread."""

    run: Callable[[], None]
    finish: Callable[[], None]


class Compaction:
    """Freezes the tables here, lets another thread write them, then drops the entries behind."""

    def __init__(
        self,
        limits: Limits,
        journal: Journal,
        membership: Membership,
        snapshots: SnapshotDir,
        counters: Counters,
        clock: Callable[[], float],
        base: int,
    ) -> None:
        """`base` is the machine's index at the start."""
        self._limits = limits
        self._journal = journal
        self._membership = membership
        self._snapshots = snapshots
        self._counters = counters
        self._clock = clock
        self._base = base
        self._applied_bytes = 0
        self._running = False
        #: the oldest index that will do, and who waits for it
        self._asked: list[tuple[int, Callable[[SnapshotFile], None]]] = []
        self._pruned_at = 0.0
        #: the file that each voter began to fetch last
        self._fetched: dict[str, tuple[int, int]] = {}
        #: where the file stands that each voter read from, and when it did last
        self._reading: dict[str, tuple[int, float]] = {}
        #: work for another thread
        self.jobs: deque[Job] = deque()

    def applied(self, size_bytes: int) -> None:
        """Count an applied entry."""
        self._applied_bytes += size_bytes

    def rebase(self, index: int) -> None:
        """The machine came from a snapshot at `index`."""
        self._base = index
        self._applied_bytes = 0

    def want(self, machine: Machine, max_behind: int, done: Callable[[SnapshotFile], None]) -> None:
        """Call `done` with a file at most `max_behind` entries old, making one when there is none."""
        latest = self._snapshots.latest
        if latest is not None and machine.index - latest.index <= max_behind:
            self._snapshots.hold(latest, self._clock())
            done(latest)
        else:
            self._asked.append((machine.index - max_behind, done))

    def keep(self, machine: Machine, now: float, *, leading: bool) -> None:
        """Start a snapshot when one is due or asked for. Run at the end of each turn."""
        since = machine.index - self._base
        # Voters take turns by their place in the list, and a leader waits longest.
        before = sum(1 for voter in self._membership.voters if voter < self._membership.node_id)
        slack = 1.0 + 0.15 * before + (0.75 if leading else 0.0)
        limits = self._limits
        large = since >= limits.snapshot_entries * slack or self._applied_bytes >= limits.snapshot_bytes * slack
        # An empty machine has no position to name a file by; whoever asked waits for the first entry.
        asked = bool(self._asked) and machine.index > 0
        if ((large and since > 0) or asked) and not self._running:
            self._start(machine)
        if now - self._pruned_at > PRUNE_S:
            self._pruned_at = now
            self._remove(self._snapshots.doomed(now))

    def _start(self, machine: Machine) -> None:
        self._running = True
        self.rebase(machine.index)
        frozen = freeze(machine)
        voters = tuple(sorted(of_state(machine.state).names)) or self._membership.voters
        head = header(frozen, self._membership.cluster_id, voters)
        written: list[SnapshotFile] = []

        def run() -> None:
            written.append(self._snapshots.write(frozen, head))

        def finish() -> None:
            self._running = False
            frozen.release()
            self._counters.snapshots_written += 1
            file = self._keep_file(written[0])
            self._snapshots.hold(file, self._clock())
            # A file that was begun before it was asked for may be too old; the next turn begins another one.
            served = [done for oldest, done in self._asked if file.index >= oldest]
            self._asked = [(oldest, done) for oldest, done in self._asked if file.index < oldest]
            for done in served:
                done(file)

        self.jobs.append(Job(run, finish))

    def reads(self, peer: str, index: int) -> None:
        """A voter got a part of the file at `index`."""
        self._reading[peer] = (index, self._clock())

    def asked_again(self, peer: str, index: int, term: int, machine: Callable[[], Machine]) -> None:
        """A voter fetches a file from its beginning; for the second time, the first copy was no good there.

        The file may have rotted here since it was verified: look at it, and write another one if so.
        """
        latest = self._snapshots.latest
        if self._fetched.get(peer) != (index, term):
            self._fetched[peer] = (index, term)
            return
        if latest is None or (latest.index, latest.term) != (index, term):
            return
        found: list[str] = []

        def run() -> None:
            found.append(digest(latest.path) if latest.path.exists() else "")

        def finish() -> None:
            if found[0] != latest.sha256:
                log.error('event=snapshot_rotten file=%s detail="another one is written"', latest.path)
                self._asked.append((machine().index, lambda file: None))

        self.jobs.append(Job(run, finish))

    def _keep_file(self, written: SnapshotFile) -> SnapshotFile:
        latest = self._snapshots.latest
        if latest is not None and latest.index >= written.index:
            # It was already here, or a newer one was installed meanwhile.
            self._remove([written.path])
            return latest
        file = self._snapshots.adopt(written)
        self._remove(self._snapshots.doomed(self._clock()))
        self._drop_behind(file.index)
        return file

    def _remove(self, files: list[Path]) -> None:
        """Have another thread remove files: 80 ms for one of 300 MB."""

        def run() -> None:
            for file in files:
                file.unlink(missing_ok=True)

        if files:
            self.jobs.append(Job(run, lambda: None))

    def _drop_behind(self, snapshot_index: int) -> None:
        """Drop entries behind the snapshot, except a tail that saves voters that were away from it."""
        keep_from = max(self._journal.first_index, snapshot_index - self._limits.tail_entries)
        size = 0
        for index in range(snapshot_index, keep_from, -1):
            size += len(self._journal.entry(index)[0])
            if size > self._limits.tail_bytes:
                keep_from = index
                break
        if self._journal.size_bytes <= self._limits.fetched_tail_bytes:
            # Without the entries that follow it, the file would be of no use to whoever has fetched it.
            since = self._clock() - FETCH_GRACE_S
            keep_from = min([keep_from, *(index for index, at in self._reading.values() if at > since)])
        if keep_from > self._journal.first_index:
            self._journal.drop_before(keep_from)
