"""What is derived from the rows: queues, counters, live sets and the deadline queue.

Nothing here is replicated. Each structure is a function of the present rows alone, never of the order in
which they came to be, so a replica that loaded a snapshot has the same one as a replica that replayed
the log; the deadline queue in particular decides what the clock does next.
"""

from __future__ import annotations

from statemachine.ordered import Ordered
from statemachine.rows import (
    LIVE_JOB,
    OPEN_WORK,
    Artifact,
    Job,
    Model,
    Peer,
    PeerStatus,
    Row,
    Work,
    WorkStatus,
)


class Indexes:
    """Derived structures, kept in step by `changed` at every committed row."""

    def __init__(self) -> None:
        self.work_by_status: dict[WorkStatus, int] = dict.fromkeys(WorkStatus, 0)
        #: open items by (work type, status)
        self.work_by_type: dict[tuple[str, WorkStatus], int] = {}
        #: open items by (work type, config, status)
        self.work_by_class: dict[tuple[str, str, WorkStatus], int] = {}
        #: pending items by type, best first: (-priority, seq, work id)
        self.queue: dict[str, Ordered[tuple[int, int, str]]] = {}
        #: open items by their unique name
        self.unique: dict[str, str] = {}
        #: open items of a gauntlet
        self.gauntlet_work: dict[str, set[str]] = {}
        #: how many open items read an artifact
        self.readers: dict[str, int] = {}
        self.live_jobs: dict[str, dict[str, None]] = {}
        self.live_by_type: dict[str, int] = {}
        self.live_by_class: dict[tuple[str, str], int] = {}
        self.claims: dict[str, dict[str, None]] = {}
        self.peers_by_status: dict[PeerStatus, int] = dict.fromkeys(PeerStatus, 0)
        #: artifacts by (kind, config), oldest first: (seq, digest)
        self.artifacts: dict[tuple[str, str], Ordered[tuple[int, str]]] = {}
        #: models by config, oldest first: (seq, digest)
        self.models: dict[str, Ordered[tuple[int, str]]] = {}
        self.champions: dict[str, str] = {}
        #: what the clock has to look at next: (due, table, key)
        self.deadlines: Ordered[tuple[int, str, str]] = Ordered()
        self._queued: dict[tuple[str, str], int] = {}

    def live_jobs_of(self, peer: str) -> list[str]:
        """Ids of the peer's jobs that are not over, oldest grant first."""
        return list(self.live_jobs.get(peer, ()))

    def changed(self, table: str, key: str, old: Row | None, new: Row | None) -> None:
        """Move one row from its old to its new place in every structure."""
        if isinstance(old, Work) or isinstance(new, Work):
            self._work(key, old, new)  # type: ignore[arg-type]
        elif isinstance(old, Job) or isinstance(new, Job):
            self._job(key, old, new)  # type: ignore[arg-type]
        elif isinstance(old, Peer) or isinstance(new, Peer):
            if isinstance(old, Peer):
                self.peers_by_status[old.status] -= 1
            if isinstance(new, Peer):
                self.peers_by_status[new.status] += 1
        elif isinstance(old, Artifact) or isinstance(new, Artifact):
            if isinstance(old, Artifact):
                self.artifacts[old.kind, old.config].discard((old.seq, key))
            if isinstance(new, Artifact):
                self.artifacts.setdefault((new.kind, new.config), Ordered()).add((new.seq, key))
        elif isinstance(old, Model) or isinstance(new, Model):
            self._model(key, old, new)  # type: ignore[arg-type]

    def schedule(self, table: str, key: str, due_ms: int) -> None:
        """Put a row at its place in the deadline queue, or take it out (0)."""
        place = (table, key)
        queued = self._queued.get(place, 0)
        if queued == due_ms:
            return
        if queued:
            self.deadlines.discard((queued, table, key))
        if due_ms:
            self.deadlines.add((due_ms, table, key))
            self._queued[place] = due_ms
        else:
            del self._queued[place]

    def _work(self, key: str, old: Work | None, new: Work | None) -> None:
        if old is not None:
            self._count_work(key, old, -1)
        if new is not None:
            self._count_work(key, new, 1)

    def _count_work(self, key: str, row: Work, by: int) -> None:
        spec = row.spec
        self.work_by_status[row.status] += by
        if row.status not in OPEN_WORK:
            return
        by_type = (spec.work_type, row.status)
        self.work_by_type[by_type] = self.work_by_type.get(by_type, 0) + by
        by_class = (spec.work_type, spec.config, row.status)
        self.work_by_class[by_class] = self.work_by_class.get(by_class, 0) + by
        if row.status is WorkStatus.PENDING:
            place = (-spec.priority, row.seq, key)
            queue = self.queue.setdefault(spec.work_type, Ordered())
            if by > 0:
                queue.add(place)
            else:
                queue.discard(place)
        for needed in spec.inputs:
            readers = self.readers.get(needed.digest, 0) + by
            if readers:
                self.readers[needed.digest] = readers
            else:
                del self.readers[needed.digest]
        if spec.unique:
            if by > 0:
                self.unique[spec.unique] = key
            else:
                self.unique.pop(spec.unique, None)
        if spec.gauntlet:
            members = self.gauntlet_work.setdefault(spec.gauntlet, set())
            if by > 0:
                members.add(key)
            else:
                members.discard(key)
                if not members:
                    del self.gauntlet_work[spec.gauntlet]

    def _job(self, key: str, old: Job | None, new: Job | None) -> None:
        was = old is not None and old.actual in LIVE_JOB
        now = new is not None and new.actual in LIVE_JOB
        if old is not None and was and not now:
            self._count_job(key, old, -1)
            del self.live_jobs[old.peer][key]
            if not self.live_jobs[old.peer]:
                del self.live_jobs[old.peer]
        if new is not None and now and not was:
            self._count_job(key, new, 1)
            self.live_jobs.setdefault(new.peer, {})[key] = None
        if new is not None and new.claim and old is None:
            self.claims.setdefault(new.claim, {})[key] = None
        if old is not None and old.claim and new is None:
            self.claims[old.claim].pop(key, None)
            if not self.claims[old.claim]:
                del self.claims[old.claim]

    def _count_job(self, key: str, row: Job, by: int) -> None:
        self.live_by_type[row.work_type] = self.live_by_type.get(row.work_type, 0) + by
        place = (row.work_type, row.config)
        self.live_by_class[place] = self.live_by_class.get(place, 0) + by

    def _model(self, key: str, old: Model | None, new: Model | None) -> None:
        if old is not None:
            self.models[old.config].discard((old.seq, key))
            if self.champions.get(old.config) == key:
                del self.champions[old.config]
        if new is not None:
            self.models.setdefault(new.config, Ordered()).add((new.seq, key))
            if new.status == "champion":
                self.champions[new.config] = key
