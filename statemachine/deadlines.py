"""When the clock has to look at a row next.

`own_due` is a function of the row and the settings alone, so the deadline queue of a replica that loaded
a snapshot agrees with one that replayed the log. A lease is also carried by its peer's heartbeats; that
is added by `effective_due` when the row's turn comes, and the row is then queued again at that time.
"""

from __future__ import annotations

from collections.abc import Mapping

from statemachine.rows import (
    LIVE_JOB,
    LIVE_WORK,
    Actual,
    Job,
    Peer,
    PeerStatus,
    Request,
    Row,
    Work,
    WorkStatus,
)
from statemachine.settings import Retention, Timing

#: tables whose rows have deadlines
TABLES = ("peers", "work", "jobs", "requests")


def own_due(row: Row, timing: Timing, retention: Retention) -> int:
    """Cluster time in ms at which the row needs a look; 0 is never."""
    if isinstance(row, Job):
        return _job_due(row, row.renewed_at_ms, timing)
    if isinstance(row, Work):
        return _work_due(row, retention)
    if isinstance(row, Peer):
        return _peer_due(row, timing, retention)
    assert isinstance(row, Request)
    return row.expires_at_ms


def effective_due(row: Row, peers: Mapping[str, Peer], timing: Timing, retention: Retention) -> int:
    """`own_due`, with an agent's job carried by the heartbeats of its peer."""
    if isinstance(row, Job) and row.actual in LIVE_JOB and not row.claim:
        peer = peers.get(row.peer)
        renewed = max(row.renewed_at_ms, peer.heard_at_ms) if peer else row.renewed_at_ms
        return _job_due(row, renewed, timing)
    return own_due(row, timing, retention)


def lease_end_ms(job: Job, peers: Mapping[str, Peer]) -> int:
    """When the job's lease is over, as the cluster counts it."""
    peer = peers.get(job.peer)
    carried = peer.heard_at_ms if peer and not job.claim else 0
    return max(job.renewed_at_ms, carried) + job.lease_ms


def _job_due(row: Job, renewed_at_ms: int, timing: Timing) -> int:
    if row.actual not in LIVE_JOB:
        return 0
    due = renewed_at_ms + row.lease_ms
    if row.actual is Actual.RUNNING:
        # The executor ends an overdue job itself; this is for one that forgot, and comes a lease later.
        return min(due, row.started_at_ms + row.timeout_ms + row.lease_ms)
    return min(due, row.granted_at_ms + max(timing.start_within_ms, row.lease_ms))


def _work_due(row: Work, retention: Retention) -> int:
    if row.status is WorkStatus.PENDING:
        return row.expires_at_ms
    return 0 if row.status in LIVE_WORK else row.finished_at_ms + retention.work_ms


def _peer_due(row: Peer, timing: Timing, retention: Retention) -> int:
    seen = max(row.heard_at_ms, row.vouched_at_ms)
    if row.status is PeerStatus.ALIVE:
        due = row.heard_at_ms + timing.suspect_after_ms
    elif row.status is PeerStatus.SUSPECT:
        due = seen + timing.dead_after_ms
    else:
        due = row.heard_at_ms + retention.dead_peer_ms
    if row.drain_deadline_ms:
        due = min(due, row.drain_deadline_ms)
    return max(due, 1)
