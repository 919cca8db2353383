"""Jobs: one attempt of a work item on one node, under a fence.

    pending -> starting -> running -> succeeded | failed | stopped      the executor's word, under its fence
    any live state -> lost                                              the clock's word, past the lease

A job never outlives its item's row, and an item has one live job at most: while it lives, the item is
claimed or running under it, or was cancelled under it.
Every report names (job, fence). A repeat of a report is answered like the first; a report under a fence
that is over is refused, so what a lost node still finishes counts nowhere.
"""

from __future__ import annotations

from zlib import crc32

from statemachine import artifacts, checkpoints, deadlines, pace, reputation, results
from statemachine.commands import (
    CompleteJob,
    FailJob,
    ReleaseJob,
    RenewJobs,
    ReportJob,
    RestartJob,
    SaveCheckpoint,
    StopJob,
)
from statemachine.errors import Code, Refused
from statemachine.rows import (
    JOB_TRANSITIONS,
    LIVE_JOB,
    LIVE_WORK,
    Actual,
    Desired,
    Job,
    Restarts,
    Work,
    WorkStatus,
)
from statemachine.state import Txn
from statemachine.values import JobProgress, Output

#: looking a member up on its class costs a Python call
_STARTING, _RUNNING, _SUCCEEDED = Actual.STARTING, Actual.RUNNING, Actual.SUCCEEDED
_STOPPED, _FAILED, _LOST = Actual.STOPPED, Actual.FAILED, Actual.LOST
_CLAIMED, _WORK_RUNS, _COMPLETED = WorkStatus.CLAIMED, WorkStatus.RUNNING, WorkStatus.COMPLETED
_STOP = Desired.STOP

#: failures that say nothing about the item: the attempt is given back
BLAMELESS = frozenset({"infrastructure", "preempted", "lost", "stopped"})
#: the class of an item that failed on so many nodes that it is held to blame itself
POISONED = "poisoned"
#: bindings an item may use up without ever burning its attempts
GRANTS_PER_ATTEMPT = 20


def held(txn: Txn, job: str, fence: int) -> Job:
    """The job, if `fence` is its live or last one."""
    row = txn.jobs.require(job)
    if row.fence != fence:
        raise Refused(
            Code.STALE_FENCE, f"job {job!r} is under fence {row.fence}, the report carries {fence}; drop its files"
        )
    if row.actual is _LOST:
        raise Refused(
            Code.STALE_FENCE,
            f"job {job!r} was lost at {row.finished_at_ms} ms ({row.reason}); fence {fence} is over, drop its files",
        )
    return row


def move(row: Job, to: Actual) -> None:
    if (row.actual, to) not in JOB_TRANSITIONS:
        raise Refused(Code.ILLEGAL_TRANSITION, f"job {row.job!r} is {row.actual} and cannot become {to}")


def report(txn: Txn, cmd: ReportJob) -> str:
    """Take `starting` or `running` from the executor; running burns the item's attempt."""
    row = held(txn, cmd.job, cmd.fence)
    if cmd.actual not in (_STARTING, _RUNNING):
        raise Refused(Code.INVALID, f"a job is reported as starting or running, not {cmd.actual!r}")
    to = _RUNNING if cmd.actual == _RUNNING else _STARTING
    if row.actual is to or (to is _STARTING and row.actual is _RUNNING):
        return row.desired
    move(row, to)
    if to is _STARTING:
        txn.jobs.change(row.job, actual=to)
    else:
        _run(txn, row)
    return row.desired


def _run(txn: Txn, row: Job) -> Job:
    """The process runs: this burns the item's attempt."""
    now = txn.now_ms
    job = txn.jobs.change(row.job, actual=_RUNNING, started_at_ms=now, progress_at_ms=now)
    work = txn.work.require(row.work)
    if work.status is _CLAIMED:
        txn.work.change(work.work, status=_WORK_RUNS, attempts=work.attempts + 1)
        txn.emit("WorkStarted", row.work, job=row.job, peer=row.peer)
    return job


def progress(txn: Txn, seen: JobProgress, peer: str) -> bool:
    """Take cumulative counts; they never go down, so order and repeats do not matter."""
    row = txn.jobs.get(seen.job)
    if row is None or row.fence != seen.fence or row.actual not in LIVE_JOB or row.peer != peer:
        return False
    counts = {k: max(row.counts.get(k, 0), seen.counts.get(k, 0)) for k in sorted({*row.counts, *seen.counts})}
    if counts != row.counts or (seen.total and seen.total != row.total):
        now = txn.now_ms
        # Whoever has made progress is heard from for the first time when it has started.
        silence = max(row.silence_ms, now - row.progress_at_ms) if row.progress_at_ms else 0
        total = seen.total or row.total
        txn.jobs.change(row.job, counts=counts, total=total, progress_at_ms=now, silence_ms=silence)
    return True


def renew(txn: Txn, cmd: RenewJobs) -> dict[str, list[str]]:
    """Extend leases of claimed jobs; answers which fences are over and which jobs should stop.

    Who claims an item and renews its lease runs it, so the first renewal starts it if no report did.
    """
    over: list[str] = []
    stop: list[str] = []
    for item in cmd.jobs:
        row = txn.jobs.get(item.job)
        if row is None or row.fence != item.fence or row.actual not in LIVE_JOB:
            over.append(item.job)
            continue
        if row.claim and row.actual is not _RUNNING:
            row = _run(txn, row)
        txn.jobs.change(row.job, renewed_at_ms=txn.now_ms)
        progress(txn, item, row.peer)
        if row.desired is _STOP:
            stop.append(row.job)
    return {"over": over, "stop": stop}


def restart(txn: Txn, cmd: RestartJob) -> str:
    """Take note that a program failed and is started again; answers `run`, or `stop` when it should not be."""
    row = held(txn, cmd.job, cmd.fence)
    if row.actual not in LIVE_JOB:
        raise Refused(Code.ILLEGAL_TRANSITION, f"job {row.job!r} is {row.actual}; its program is not started again")
    if row.desired is _STOP or cmd.count <= row.times_restarted:
        return row.desired
    if row.actual is not _RUNNING:
        _run(txn, row)
    now = txn.now_ms
    restarts = Restarts(cmd.count, now, cmd.error_class, cmd.error)
    # What the failed program counted is gone with it, and the next one has time to count something.
    txn.jobs.change(row.job, restarts=restarts, counts={}, total={}, progress_at_ms=now)
    txn.emit("JobRestarting", row.job, peer=row.peer, error_class=cmd.error_class, error=cmd.error[:200])
    return row.desired


def save(txn: Txn, cmd: SaveCheckpoint) -> bool:
    """Take an attempt's checkpoint; false when its item was ended meanwhile, or when it is known."""
    row = held(txn, cmd.job, cmd.fence)
    if row.actual not in LIVE_JOB:
        raise Refused(Code.ILLEGAL_TRANSITION, f"job {row.job!r} is {row.actual}; its checkpoint comes too late")
    work = txn.work.require(row.work)
    old = checkpoints.latest(txn.state, work)
    if work.status not in LIVE_WORK or (old is not None and old.digest == cmd.digest):
        return False
    file = txn.artifacts.get(cmd.digest)
    if file is not None and file.kind != checkpoints.KIND:
        raise Refused(Code.CONFLICT, f"artifact {cmd.digest} is known as {file.kind}, it cannot become a checkpoint")
    checkpoints.drop(txn, work)
    output = Output(checkpoints.KIND, cmd.digest, cmd.size_bytes, checkpoints.KIND)
    txn.jobs.change(row.job, outputs=(output,))
    artifacts.made(txn, output, work, row)
    txn.emit("CheckpointSaved", row.work, job=row.job, peer=row.peer)
    return True


def complete(txn: Txn, cmd: CompleteJob) -> dict[str, object]:
    """Count an attempt's result: totals, files, models and matches together, once."""
    row = held(txn, cmd.job, cmd.fence)
    to = _STOPPED if cmd.stopped else _SUCCEEDED
    work = txn.work.require(row.work)
    if row.actual in (_SUCCEEDED, _STOPPED):
        counted = work.job == row.job and work.status is _COMPLETED
        return {"published": counted, "repeat": True}
    move(row, to)
    checkpoints.drop(txn, work)
    now = txn.now_ms
    done = txn.jobs.change(
        row.job,
        actual=to,
        desired=_STOP,
        finished_at_ms=now,
        counts=cmd.counts,
        metrics=cmd.metrics,
        outputs=cmd.outputs,
        exit_code=cmd.exit_code,
    )
    if row.stop_class:
        reputation.blame(txn, row.peer)
    elif not cmd.stopped:
        pace.note(txn, row)
        reputation.credit(txn, row.peer)
    if work.status not in LIVE_WORK:
        # The item was cancelled under it: the job ends, nothing is published.
        txn.jobs.change(row.job, actual=_STOPPED, reason="its item was ended before it")
        return {"published": False}
    results.check(txn, work, cmd)
    txn.work.change(
        work.work,
        status=_COMPLETED,
        finished_at_ms=now,
        counts=cmd.counts,
        metrics=cmd.metrics,
        attempts=work.attempts + (work.status is _CLAIMED),
        reason=_part(row) if cmd.stopped else "",
        error_class="",
    )
    for output in cmd.outputs:
        artifacts.made(txn, output, work, done)
    results.count(txn, work, cmd)
    txn.emit("WorkCompleted", row.work, job=row.job, peer=row.peer, type=row.work_type, config=row.config)
    return {"published": True}


def fail(txn: Txn, cmd: FailJob) -> str:
    """Take a failure; answers where its item went."""
    row = held(txn, cmd.job, cmd.fence)
    error_class, error = _blamed(row, cmd)
    to = _STOPPED if error_class == "stopped" else _FAILED
    if row.actual is to:
        return txn.work.require(row.work).status
    move(row, to)
    txn.jobs.change(
        row.job,
        actual=to,
        desired=_STOP,
        finished_at_ms=txn.now_ms,
        exit_code=cmd.exit_code,
        error_class=error_class,
        error=error,
    )
    if to is _FAILED:
        if error_class != "lost" and not reputation.widespread(txn, row, error_class):
            reputation.blame(txn, row.peer)
        txn.emit("JobFailed", row.job, peer=row.peer, error_class=error_class, error=error[:200])
    return _give_back(txn, row, error_class, error)


def _blamed(row: Job, cmd: FailJob) -> tuple[str, str]:
    """What the attempt failed of: one that was told to stop because it failed did not simply stop."""
    if cmd.error_class == "stopped" and row.stop_class:
        return row.stop_class, f"{row.reason}; {cmd.error}"[:4096]
    return cmd.error_class, cmd.error


def _part(row: Job) -> str:
    return f"stopped early ({row.reason}), its part counts" if row.reason else "stopped early, its part counts"


def release(txn: Txn, cmd: ReleaseJob) -> str:
    """Take a job back that never started."""
    row = held(txn, cmd.job, cmd.fence)
    if row.actual is _STOPPED:
        return txn.work.require(row.work).status
    if row.actual is _RUNNING:
        raise Refused(
            Code.ILLEGAL_TRANSITION, f"job {row.job!r} runs; stop it and report how it ended instead of a release"
        )
    move(row, _STOPPED)
    txn.jobs.change(row.job, actual=_STOPPED, desired=_STOP, finished_at_ms=txn.now_ms, reason=cmd.reason)
    txn.emit("JobReleased", row.job, peer=row.peer, reason=cmd.reason)
    return _give_back(txn, row, "released", cmd.reason)


def stop(txn: Txn, cmd: StopJob) -> bool:
    row = held(txn, cmd.job, cmd.fence)
    return row.actual in LIVE_JOB and tell_to_stop(txn, row, cmd.reason, cmd.error_class)


def tell_to_stop(txn: Txn, row: Job, reason: str, error_class: str = "") -> bool:
    """Ask the executor of a live job to stop it, unless it was asked before."""
    if row.desired is _STOP:
        return False
    txn.jobs.change(row.job, desired=_STOP, reason=reason, stop_class=error_class)
    txn.emit("JobStopping", row.job, peer=row.peer, reason=reason)
    return True


def lose(txn: Txn, row: Job, reason: str) -> None:
    """End a job whose lease is over; its fence with it. No attempt is burnt."""
    txn.jobs.change(row.job, actual=_LOST, desired=_STOP, finished_at_ms=txn.now_ms, reason=reason)
    txn.emit("JobLost", row.job, peer=row.peer, reason=reason)
    _give_back(txn, row, "lost", reason)


def on_due(txn: Txn, row: Job) -> None:
    now = txn.now_ms
    if now >= deadlines.lease_end_ms(row, txn.state.peers):
        lose(txn, row, f"its lease of {row.lease_ms} ms lapsed on {row.peer}")
    elif row.actual is _RUNNING:
        lose(txn, row, f"it ran {now - row.started_at_ms} ms, its limit is {row.timeout_ms} ms")
    else:
        lose(txn, row, f"{row.peer} did not start it within {now - row.granted_at_ms} ms")


def _give_back(txn: Txn, row: Job, error_class: str, reason: str) -> str:
    """Return the item to the queue, or make it a dead letter."""
    work = txn.work.require(row.work)
    if work.status not in LIVE_WORK:
        return work.status
    blameless = error_class in BLAMELESS or error_class == "released"
    # A blameless end gives the attempt back; a process may also fail before anybody saw it run.
    burnt = work.attempts - (work.status is _WORK_RUNS) + (not blameless)
    failed_on = work.failed_on if blameless else (*work.failed_on, row.peer)
    limits = txn.state.limits
    txn.work.change(work.work, attempts=burnt, job="", reason=reason, error_class=error_class, failed_on=failed_on)
    end = ""
    if burnt >= work.spec.max_attempts:
        end = f"all {work.spec.max_attempts} attempts failed; the last one said: {reason}"
    elif len(set(failed_on)) >= limits.poisoned_after_peers:
        end = f"it failed on {len(set(failed_on))} nodes and is held back: {_evidence(txn, work)}"
        txn.work.change(work.work, error_class=POISONED)
    elif work.grants - work.grants_before >= GRANTS_PER_ATTEMPT * work.spec.max_attempts:
        end = f"it was given to nodes {work.grants} times and never got through; the last said: {reason}"
    if end:
        _dead_letter(txn, work, end)
        return WorkStatus.FAILED
    timing = txn.state.timing
    delay = 0
    if error_class not in ("stopped", "preempted", "lost"):
        rounds = min(max(len(failed_on), 1), 20)
        delay = min(timing.backoff_ms * 2 ** (rounds - 1), timing.backoff_cap_ms)
        delay += _jitter(row.job, delay * timing.backoff_jitter_percent // 100)
    txn.work.change(work.work, status=WorkStatus.PENDING, ready_at_ms=txn.now_ms + delay)
    txn.emit("WorkReturned", work.work, reason=reason[:200], error_class=error_class)
    return WorkStatus.PENDING


def _jitter(job: str, most_ms: int) -> int:
    """Between 0 and `most_ms`, by the job's name: no coin is thrown in the law."""
    return crc32(job.encode()) % (most_ms + 1)


def _evidence(txn: Txn, work: Work) -> str:
    """The last words of its attempts on each node."""
    said: dict[str, str] = {}
    for number in range(work.grants_before + 1, work.grants + 1):
        job = txn.jobs.require(f"{work.work}.{number}")
        if job.actual is _FAILED and job.error_class not in BLAMELESS:
            said[job.peer] = f"{job.peer} ({job.error_class}): {job.error[:200]}"
    return "; ".join(said[peer] for peer in sorted(said))


def _dead_letter(txn: Txn, work: Work, reason: str) -> None:
    txn.work.change(work.work, status=WorkStatus.FAILED, finished_at_ms=txn.now_ms, reason=reason[:1024])
    txn.emit("WorkFailed", work.work, reason=reason[:200])
