"""What is derived from the rows: queues, counters, live sets and the deadline queue.

Nothing here is replicated. Each structure is a function of the present rows alone, never of the order in
which they came to be, so a replica that loaded a snapshot has the same one as a replica that replayed
the log. The deadline queue alone is one of several: a row may stand in it earlier than it is due, or be gone, and
a job later than its row says when its peer's heartbeats carried it. Each row gets its turn at the same time and in
the same order either way (see `deadlines` and `Machine`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import Any, TypeVar

from statemachine.commands import AddWork
from statemachine.deadlines import TABLES
from statemachine.ordered import Ordered
from statemachine.rows import (
    LIVE_JOB,
    OPEN_WORK,
    STORE,
    Artifact,
    Job,
    Model,
    ModelStatus,
    Peer,
    PeerStatus,
    Token,
    Work,
    WorkStatus,
)

K = TypeVar("K")
P = TypeVar("P", bound=tuple[object, ...])

_OPEN = tuple(status for status in WorkStatus if status in OPEN_WORK)
#: looking a member up on its class costs a Python call, and these are asked for with every row
_PENDING = WorkStatus.PENDING
_CHAMPION = ModelStatus.CHAMPION


class WorkClass:
    """What is open of one work type and config."""

    __slots__ = ("counts", "live", "queue")

    def __init__(self) -> None:
        #: open items by status
        self.counts: dict[WorkStatus | None, int] = dict.fromkeys(_OPEN, 0)
        #: pending items, best first: (-priority, seq, work id)
        self.queue: Ordered[tuple[int, int, str]] = Ordered()
        #: jobs that are not over
        self.live = 0


class Indexes:
    """Derived structures, kept in step by `keepers` at every committed row."""

    def __init__(self) -> None:
        self.work_by_status: dict[WorkStatus, int] = dict.fromkeys(WorkStatus, 0)
        #: by work type and config, those of which something is open
        self.classes: dict[str, dict[str, WorkClass]] = {}
        #: open items by their unique name
        self.unique: dict[str, str] = {}
        #: how many open items a gauntlet has
        self.gauntlet_work: dict[str, int] = {}
        #: how many open items read an artifact
        self.readers: dict[str, int] = {}
        #: jobs that are not over by peer, oldest grant first
        self.live_jobs: dict[str, dict[str, None]] = {}
        self.claims: dict[str, dict[str, None]] = {}
        self.peers_by_status: dict[PeerStatus, int] = dict.fromkeys(PeerStatus, 0)
        #: by object store: the peers with access to it, whatever their status
        self.gates: dict[str, set[str]] = {}
        #: artifacts by (kind, config), oldest first: (seq, digest)
        self.artifacts: dict[tuple[str, str], Ordered[tuple[int, str]]] = {}
        #: what each holder has, doubted copies included: (files, bytes) by (kind, config)
        self.held: dict[str, dict[tuple[str, str], tuple[int, int]]] = {}
        #: artifacts of which a holder's copy is doubted
        self.doubted: set[str] = set()
        #: models by config, oldest first: (seq, digest)
        self.models: dict[str, Ordered[tuple[int, str]]] = {}
        self.champions: dict[str, str] = {}
        #: tokens by the sha256 of their secret, those that are over included
        self.tokens: dict[str, Token] = {}
        #: a heap of what the clock has to look at next: (due, table, key); one that `queued` does not know is stale
        self.deadlines: list[tuple[int, str, str]] = []
        #: by table and key: when the row has its next look, at the latest when it is due
        self.queued: dict[str, dict[str, int]] = {name: {} for name in TABLES}
        #: what brings the structures in step when a row of a table was written: (key, old, new); the answer says
        #: whether the row may be due earlier than it was
        self.keepers: dict[str, Callable[[str, Any, Any], bool]] = {
            "peers": self._peer,
            "work": self._work,
            "jobs": self._job,
            "artifacts": self._artifact,
            "models": self._model,
            "tokens": self._token,
        }

    def groups(self) -> Iterator[tuple[str, str, WorkClass]]:
        """(work type, config, what is open of them)."""
        for work_type, configs in self.classes.items():
            for config, group in configs.items():
                yield work_type, config, group

    def group(self, work_type: str, config: str) -> WorkClass | None:
        configs = self.classes.get(work_type)
        return configs.get(config) if configs is not None else None

    def open_items(self, work_type: str, config: str, status: WorkStatus) -> int:
        """Items of a class that are pending, claimed or running."""
        group = self.group(work_type, config)
        return group.counts[status] if group is not None else 0

    def live(self, work_type: str, config: str) -> int:
        """Jobs of a class that are not over."""
        group = self.group(work_type, config)
        return group.live if group is not None else 0

    @property
    def live_total(self) -> int:
        """Jobs that are not over."""
        return sum(group.live for _, _, group in self.groups())

    def live_by_type(self) -> dict[str, int]:
        """Jobs that are not over by work type."""
        found: Counter[str] = Counter()
        for work_type, _, group in self.groups():
            if group.live:
                found[work_type] += group.live
        return dict(found)

    def held_bytes(self, holder: str) -> int:
        """What a holder's files take together."""
        return sum(size_bytes for _, size_bytes in self.held.get(holder, {}).values())

    def live_jobs_of(self, peer: str) -> list[str]:
        """Ids of the peer's jobs that are not over, oldest grant first."""
        return list(self.live_jobs.get(peer, ()))

    def schedule(self, table: str, key: str, due_ms: int) -> None:
        """Give a row its next look at `due_ms` (0 is never), unless it has an earlier one.

        A look that comes too early finds that out and gives the row its turn at its true time.
        """
        queued = self.queued[table]
        at = queued.get(key)
        if due_ms and (at is None or due_ms < at):
            queued[key] = due_ms
            heappush(self.deadlines, (due_ms, table, key))

    def take_due(self, now_ms: int) -> tuple[int, str, str] | None:
        """Take the next row out of the queue that has its look by `now_ms`."""
        while self.deadlines and self.deadlines[0][0] <= now_ms:
            head = heappop(self.deadlines)
            due, table, key = head
            if self.queued[table].get(key) == due:
                del self.queued[table][key]
                return head
        return None

    def requeue(self) -> None:
        """Make the queue anew from `queued`."""
        self.deadlines = [(due, name, key) for name, dues in self.queued.items() for key, due in dues.items()]
        heapify(self.deadlines)

    def _peer(self, key: str, old: Peer | None, new: Peer | None) -> bool:
        if old is None or new is None or old.facts is not new.facts:
            self._label(key, old, new)
        if old is not None and new is not None and old.status is new.status:
            return (old.drain_deadline_ms, old.held_until_ms, old.gpu_drains) != (
                new.drain_deadline_ms,
                new.held_until_ms,
                new.gpu_drains,
            )
        if old is not None:
            self.peers_by_status[old.status] -= 1
        if new is not None:
            self.peers_by_status[new.status] += 1
        return True

    def _label(self, key: str, old: Peer | None, new: Peer | None) -> None:
        """Keep in step which peers have access to which object store."""
        had = {label for label in old.facts.labels if label.startswith(STORE)} if old is not None else set()
        has = {label for label in new.facts.labels if label.startswith(STORE)} if new is not None else set()
        for store in has - had:
            self.gates.setdefault(store, set()).add(key)
        for store in had - has:
            self.gates[store].discard(key)
            if not self.gates[store]:
                del self.gates[store]

    def _work(self, key: str, old: Work | None, new: Work | None) -> bool:
        row = new or old
        assert row is not None
        spec = row.spec
        was = old.status if old is not None else None
        now = new.status if new is not None else None
        if was is now:
            return False
        if was is not None:
            self.work_by_status[was] -= 1
        if now is not None:
            self.work_by_status[now] += 1
        was_open, is_open = was in OPEN_WORK, now in OPEN_WORK
        if not was_open and not is_open:
            return True
        group = self._group(spec.work_type, spec.config)
        counts = group.counts
        if was_open:
            counts[was] -= 1
            if was is _PENDING:
                group.queue.discard((-spec.priority, row.seq, key))
        if is_open:
            counts[now] += 1
            if now is _PENDING:
                group.queue.add((-spec.priority, row.seq, key))
        if was_open != is_open:
            if spec.inputs or spec.unique or spec.gauntlet:
                self._opened(key, spec, 1 if is_open else -1)
            if was_open:
                self._forget_empty(spec.work_type, spec.config, group)
        return True

    def _opened(self, key: str, spec: AddWork, by: int) -> None:
        """An item became open, or is open no longer (-1)."""
        for needed in spec.inputs:
            _count(self.readers, needed.digest, by)
        if spec.unique:
            if by > 0:
                self.unique[spec.unique] = key
            else:
                del self.unique[spec.unique]
        if spec.gauntlet:
            _count(self.gauntlet_work, spec.gauntlet, by)

    def _group(self, work_type: str, config: str) -> WorkClass:
        configs = self.classes.get(work_type)
        if configs is None:
            configs = self.classes[work_type] = {}
        group = configs.get(config)
        if group is None:
            group = configs[config] = WorkClass()
        return group

    def _forget_empty(self, work_type: str, config: str, group: WorkClass) -> None:
        if group.live or any(group.counts.values()):
            return
        configs = self.classes[work_type]
        del configs[config]
        if not configs:
            del self.classes[work_type]

    def _job(self, key: str, old: Job | None, new: Job | None) -> bool:
        if old is not None and new is not None and old.actual is new.actual:
            return False
        row = new or old
        assert row is not None
        was = old is not None and old.actual in LIVE_JOB
        now = new is not None and new.actual in LIVE_JOB
        if was != now:
            group = self._group(row.work_type, row.config)
            if now:
                group.live += 1
                _list(self.live_jobs, row.peer, key, 1)
            else:
                group.live -= 1
                _list(self.live_jobs, row.peer, key, -1)
                self._forget_empty(row.work_type, row.config, group)
        if row.claim and (old is None or new is None):
            _list(self.claims, row.claim, key, 1 if old is None else -1)
        return now

    def _artifact(self, key: str, old: Artifact | None, new: Artifact | None) -> bool:
        row = new or old
        assert row is not None
        if old is None or new is None:
            _shelve(self.artifacts, (row.kind, row.config), (row.seq, key), 1 if old is None else -1)
        had = old.holders if old is not None else ()
        has = new.holders if new is not None else ()
        if had != has:
            for holder in has:
                if holder not in had:
                    self._hold(holder, row, 1)
            for holder in had:
                if holder not in has:
                    self._hold(holder, row, -1)
        if new is not None and new.doubted:
            self.doubted.add(key)
        else:
            self.doubted.discard(key)
        return False

    def _hold(self, holder: str, row: Artifact, by: int) -> None:
        """A holder got a file, or has it no longer (-1)."""
        groups = self.held.setdefault(holder, {})
        files, size_bytes = groups.get((row.kind, row.config), (0, 0))
        if files + by:
            groups[row.kind, row.config] = (files + by, size_bytes + by * row.size_bytes)
            return
        del groups[row.kind, row.config]
        if not groups:
            del self.held[holder]

    def _model(self, key: str, old: Model | None, new: Model) -> bool:
        """Models are never deleted."""
        if old is None:
            _shelve(self.models, new.config, (new.seq, key), 1)
        elif old.status is _CHAMPION:
            del self.champions[old.config]
        if new.status is _CHAMPION:
            self.champions[new.config] = key
        return False

    def _token(self, key: str, old: Token | None, new: Token | None) -> bool:
        # Other threads look here without a lock: the new row is in before the old one is out.
        if new is not None:
            self.tokens[new.sha256] = new
        if old is not None and (new is None or new.sha256 != old.sha256):
            del self.tokens[old.sha256]
        return True


def _count(counter: dict[K, int], key: K, by: int) -> None:
    """Add to a counter that forgets what stands at nought."""
    count = counter.get(key, 0) + by
    if count:
        counter[key] = count
    else:
        del counter[key]


def _list(lists: dict[str, dict[str, None]], name: str, key: str, by: int) -> None:
    """Append to a named list or take out of it; an empty one is forgotten."""
    members = lists.get(name)
    if members is None:
        members = lists[name] = {}
    if by > 0:
        members[key] = None
        return
    del members[key]
    if not members:
        del lists[name]


def _shelve(shelves: dict[K, Ordered[P]], name: K, place: P, by: int) -> None:
    """Put a place on a named shelf or take it off; an empty shelf is forgotten."""
    shelf = shelves.get(name)
    if shelf is None:
        shelf = shelves[name] = Ordered()
    if by > 0:
        shelf.add(place)
        return
    shelf.discard(place)
    if not len(shelf):
        del shelves[name]
