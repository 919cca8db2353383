"""How long jobs of a kind are silent while they do well, and from when on a silence means that one hangs.

Of each job that succeeded the longest time without a new count is kept: for one that never reports
progress that is its whole run. A job that is silent for three times the median of its kind hangs.
"""

from __future__ import annotations

from statemachine.rows import Job, Pace
from statemachine.state import State, Txn

#: jobs of a kind that are remembered; with fewer than the least, nothing is said about it
KEPT = 15
LEAST = 3
FACTOR = 3


def kind_of(work_type: str, config: str) -> str:
    return f"{work_type} {config}"


def note(txn: Txn, job: Job) -> None:
    """Remember the longest silence of a job that succeeds now."""
    if not job.progress_at_ms:
        return  # it was over before anybody saw it run
    silence = max(job.silence_ms, txn.now_ms - job.progress_at_ms)
    key = kind_of(job.work_type, job.config)
    row = txn.paces.get(key)
    if row is None:
        txn.paces.put(key, Pace(job.work_type, job.config, (silence,)))
    else:
        txn.paces.change(key, silences_ms=(*row.silences_ms, silence)[-KEPT:])


def limit_ms(pace: Pace | None, floor_ms: int) -> int:
    """The silence after which a job of this kind hangs; 0 when too little is known of its kind."""
    if pace is None or len(pace.silences_ms) < LEAST:
        return 0
    return max(FACTOR * median(pace.silences_ms), floor_ms)


def median(values: tuple[int, ...]) -> int:
    return sorted(values)[len(values) // 2]


def hangs(state: State, job: Job) -> str:
    """The evidence that a running job hangs; empty when it does not, or when its node was not heard lately."""
    peer = None if job.claim else state.peers.get(job.peer)
    heard = max(job.renewed_at_ms, peer.heard_at_ms if peer else 0)
    if not job.started_at_ms or state.now_ms - heard > 2 * state.timing.heartbeat_ms:
        return ""
    # A node that comes back from silence has time to tell what its jobs did meanwhile.
    silent = state.now_ms - max(job.progress_at_ms, peer.flaps_at_ms if peer else 0)
    pace = state.paces.get(kind_of(job.work_type, job.config))
    limit = limit_ms(pace, state.timing.hung_floor_ms)
    if pace is None or not limit or silent < limit:
        return ""
    counts = ", ".join(f"{name}={n}" for name, n in sorted(job.counts.items())) or "none"
    return (
        f"it made no progress for {silent // 1000} s, and jobs of {job.work_type} {job.config or 'no config'} are "
        f"silent for {median(pace.silences_ms) // 1000} s in the median of the last {len(pace.silences_ms)}; "
        f"its counts: {counts}"
    )[:256]
