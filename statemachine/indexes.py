"""What is derived from the rows: queues, counters, live sets and the deadline queue.

Nothing here is replicated. Each structure is a function of the present rows alone, never of the order in
which they came to be, so a replica that loaded a snapshot has the same one as a replica that replayed
the log. The deadline queue alone may hold a job later than its row says, when its peer's heartbeats carried
it; the row gets its turn at the same time either way (see `deadlines`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from statemachine.ordered import Ordered
from statemachine.rows import (
    LIVE_JOB,
    OPEN_WORK,
    Artifact,
    Job,
    Model,
    ModelStatus,
    Peer,
    PeerStatus,
    Row,
    Token,
    Work,
    WorkStatus,
)

K = TypeVar("K")
P = TypeVar("P", bound=tuple[object, ...])


class Indexes:
    """Derived structures, kept in step by `changed` at every committed row."""

    def __init__(self) -> None:
        self.work_by_status: dict[WorkStatus, int] = dict.fromkeys(WorkStatus, 0)
        #: open items by (work type, status)
        self.work_by_type: dict[tuple[str, WorkStatus], int] = {}
        #: open items by (work type, config, status)
        self.work_by_class: dict[tuple[str, str, WorkStatus], int] = {}
        #: pending items by (work type, config), best first: (-priority, seq, work id)
        self.queue: dict[tuple[str, str], Ordered[tuple[int, int, str]]] = {}
        #: open items by their unique name
        self.unique: dict[str, str] = {}
        #: how many open items a gauntlet has
        self.gauntlet_work: dict[str, int] = {}
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
        #: tokens by the sha256 of their secret, those that are over included
        self.tokens: dict[str, Token] = {}
        #: what the clock has to look at next: (due, table, key)
        self.deadlines: Ordered[tuple[int, str, str]] = Ordered()
        self._queued: dict[tuple[str, str], int] = {}
        self._keepers: dict[str, Callable[[str, Any, Any], None]] = {
            "peers": self._peer,
            "work": self._work,
            "jobs": self._job,
            "artifacts": self._artifact,
            "models": self._model,
            "tokens": self._token,
        }

    def live_jobs_of(self, peer: str) -> list[str]:
        """Ids of the peer's jobs that are not over, oldest grant first."""
        return list(self.live_jobs.get(peer, ()))

    def changed(self, table: str, key: str, old: Row | None, new: Row | None) -> None:
        """Move one row from its old to its new place in every structure."""
        keep = self._keepers.get(table)
        if keep is not None:
            keep(key, old, new)

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

    def _peer(self, key: str, old: Peer | None, new: Peer | None) -> None:
        if old is not None:
            self.peers_by_status[old.status] -= 1
        if new is not None:
            self.peers_by_status[new.status] += 1

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
        _count(self.work_by_type, (spec.work_type, row.status), by)
        _count(self.work_by_class, (spec.work_type, spec.config, row.status), by)
        if row.status is WorkStatus.PENDING:
            _shelve(self.queue, (spec.work_type, spec.config), (-spec.priority, row.seq, key), by)
        for needed in spec.inputs:
            _count(self.readers, needed.digest, by)
        if spec.unique:
            if by > 0:
                self.unique[spec.unique] = key
            else:
                del self.unique[spec.unique]
        if spec.gauntlet:
            _count(self.gauntlet_work, spec.gauntlet, by)

    def _job(self, key: str, old: Job | None, new: Job | None) -> None:
        row = new or old
        assert row is not None
        was = old is not None and old.actual in LIVE_JOB
        now = new is not None and new.actual in LIVE_JOB
        if was != now:
            by = 1 if now else -1
            _count(self.live_by_type, row.work_type, by)
            _count(self.live_by_class, (row.work_type, row.config), by)
            _list(self.live_jobs, row.peer, key, by)
        if row.claim and (old is None or new is None):
            _list(self.claims, row.claim, key, 1 if old is None else -1)

    def _artifact(self, key: str, old: Artifact | None, new: Artifact | None) -> None:
        row = new or old
        assert row is not None
        if old is None or new is None:
            _shelve(self.artifacts, (row.kind, row.config), (row.seq, key), 1 if old is None else -1)

    def _model(self, key: str, old: Model | None, new: Model) -> None:
        """Models are never deleted."""
        if old is None:
            _shelve(self.models, new.config, (new.seq, key), 1)
        elif old.status is ModelStatus.CHAMPION:
            del self.champions[old.config]
        if new.status is ModelStatus.CHAMPION:
            self.champions[new.config] = key

    def _token(self, key: str, old: Token | None, new: Token | None) -> None:
        # Other threads look here without a lock: the new row is in before the old one is out.
        if new is not None:
            self.tokens[new.sha256] = new
        if old is not None and (new is None or new.sha256 != old.sha256):
            del self.tokens[old.sha256]


def _count(counter: dict[K, int], key: K, by: int) -> None:
    """Add to a counter that forgets what stands at nought."""
    count = counter.get(key, 0) + by
    if count:
        counter[key] = count
    else:
        del counter[key]


def _list(lists: dict[str, dict[str, None]], name: str, key: str, by: int) -> None:
    """Append to a named list or take out of it; an empty one is forgotten."""
    members = lists.setdefault(name, {})
    if by > 0:
        members[key] = None
        return
    del members[key]
    if not members:
        del lists[name]


def _shelve(shelves: dict[K, Ordered[P]], name: K, place: P, by: int) -> None:
    """Put a place on a named shelf or take it off; an empty shelf is forgotten."""
    shelf = shelves.setdefault(name, Ordered())
    if by > 0:
        shelf.add(place)
        return
    shelf.discard(place)
    if not len(shelf):
        del shelves[name]
