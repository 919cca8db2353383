"""When the clock has to look at a row next.

`own_due` is a function of the row and the settings alone. A lease is also carried by its peer's heartbeats; that
is added by `effective_due` when the row is looked at. The queue of looks is lazy: a row whose time moves back keeps
its early look, and is queued again at its true time when that look finds nothing due. So rows take their turns in
the order of their true times, on a replica that loaded a snapshot as on one that replayed the log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from statemachine.rows import (
    LIVE_JOB,
    LIVE_WORK,
    Actual,
    Job,
    Peer,
    PeerStatus,
    Row,
    Token,
    Work,
    WorkStatus,
)
from statemachine.settings import Retention, Timing

T = TypeVar("T", Timing, Retention)

#: looking a member up on its class costs a Python call
_PENDING, _RUNNING = WorkStatus.PENDING, Actual.RUNNING
_ALIVE, _SUSPECT = PeerStatus.ALIVE, PeerStatus.SUSPECT

#: what a span of `Timing` or `Retention` is a deadline of
SPANS: Mapping[str, str] = {
    "suspect_after_ms": "peers",
    "dead_after_ms": "peers",
    "dead_peer_ms": "peers",
    "start_within_ms": "jobs",
    "work_ms": "work",
    "token_ms": "tokens",
}


def sooner(before: T, after: T) -> list[str]:
    """Tables of which rows are due earlier under other spans. The look of one that is due later comes early."""
    shorter = (table for span, table in SPANS.items() if getattr(after, span, 0) < getattr(before, span, 0))
    return sorted(set(shorter))


def own_due(table: str, row: Row, timing: Timing, retention: Retention) -> int:
    """Cluster time in ms at which the row of one of `TABLES` needs a look; 0 is never."""
    return TABLES[table](row, timing, retention)


def effective_due(table: str, row: Row, peers: Mapping[str, Peer], timing: Timing, retention: Retention) -> int:
    """`own_due`, with an agent's job carried by the heartbeats of its peer."""
    if isinstance(row, Job):
        return _job_due(row, _renewed_at_ms(row, peers), timing)
    return own_due(table, row, timing, retention)


def lease_end_ms(job: Job, peers: Mapping[str, Peer]) -> int:
    """When the job's lease is over, as the cluster counts it."""
    return _renewed_at_ms(job, peers) + job.lease_ms


def _renewed_at_ms(job: Job, peers: Mapping[str, Peer]) -> int:
    peer = None if job.claim else peers.get(job.peer)
    return max(job.renewed_at_ms, peer.heard_at_ms) if peer else job.renewed_at_ms


def _job_due(row: Job, renewed_at_ms: int, timing: Timing) -> int:
    if row.actual not in LIVE_JOB:
        return 0
    due = renewed_at_ms + row.lease_ms
    if row.actual is _RUNNING:
        # The executor ends an overdue job itself; this is for one that forgot, and comes a lease later.
        return min(due, row.started_at_ms + row.timeout_ms + row.lease_ms)
    return min(due, row.granted_at_ms + max(timing.start_within_ms, row.lease_ms))


def _work_due(row: Work, timing: Timing, retention: Retention) -> int:
    if row.status is _PENDING:
        return row.expires_at_ms
    return 0 if row.status in LIVE_WORK else row.finished_at_ms + retention.work_ms


def _peer_due(row: Peer, timing: Timing, retention: Retention) -> int:
    seen = max(row.heard_at_ms, row.vouched_at_ms)
    if row.status is _ALIVE:
        due = row.heard_at_ms + timing.suspect_after_ms
    elif row.status is _SUSPECT:
        due = seen + timing.dead_after_ms
    else:
        due = row.heard_at_ms + retention.dead_peer_ms
    for also in (row.drain_deadline_ms, row.held_until_ms):
        if also:
            due = min(due, also)
    for drain in row.gpu_drains:
        if drain.until_ms:
            due = min(due, drain.until_ms)
    return max(due, 1)


def _token_due(row: Token, timing: Timing, retention: Retention) -> int:
    return row.ended_at_ms + retention.token_ms if row.ended else row.expires_at_ms


#: tables whose rows have deadlines, and when each row is due by itself
TABLES: Mapping[str, Callable[[Any, Timing, Retention], int]] = {
    "peers": _peer_due,
    "work": _work_due,
    "jobs": lambda row, timing, retention: _job_due(row, row.renewed_at_ms, timing),
    "requests": lambda row, timing, retention: row.expires_at_ms,
    "tokens": _token_due,
}
