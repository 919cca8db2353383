"""Work items: the queue.

pending -> claimed -> running -> completed
pending -> cancelled | expired
claimed, running -> pending      the attempt ended badly and there is another one left
claimed, running -> failed       there is none left: a dead letter
failed, cancelled, expired -> pending    by an operator's retry
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from itertools import islice

from msgspec.structs import replace

from statemachine import checkpoints
from statemachine.commands import AddWork, CancelWork, ClaimWork, PlaceWork, RetryWork
from statemachine.eligibility import EXCLUSIVE_TYPES, free_gpus, item_obstacle, peer_obstacle, stands_where
from statemachine.errors import Code, Refused
from statemachine.rows import (
    LIVE_JOB,
    LIVE_WORK,
    WORK_TRANSITIONS,
    Actual,
    Desired,
    Job,
    Work,
    WorkStatus,
)
from statemachine.state import Txn
from statemachine.values import is_name

#: pending items of one type and config a claim looks at; the ones behind wait until those in front can run
CLAIM_SCAN = 512


#: looking a member up on its class costs a Python call
_PENDING, _CLAIMED = WorkStatus.PENDING, WorkStatus.CLAIMED
_RUN, _GRANTED = Desired.RUN, Actual.PENDING


def move(row: Work, to: WorkStatus) -> None:
    if (row.status, to) not in WORK_TRANSITIONS:
        raise Refused(Code.ILLEGAL_TRANSITION, f"work {row.work!r} is {row.status} and cannot become {to}")


def add(txn: Txn, cmd: AddWork) -> dict[str, object]:
    """Queue an item; the same item under the same id again is answered, not queued twice."""
    old = txn.work.get(cmd.work)
    if old is not None:
        if replace(old.spec, at_ms=0) == replace(cmd, at_ms=0):
            return {"work": cmd.work, "status": old.status, "repeat": True}
        raise Refused(Code.CONFLICT, f"work {cmd.work!r} exists with other content; choose another id")
    if not (is_name(cmd.work) and is_name(cmd.work_type)):
        raise Refused(
            Code.INVALID,
            f"work {cmd.work!r} of type {cmd.work_type!r}: both begin with a letter or digit and hold letters, digits "
            "and ._:@/+- only",
        )
    state = txn.state
    group = state.index.group(cmd.work_type, cmd.config)
    if group is not None and group.counts[_PENDING] >= state.limits.pending_per_class:
        raise Refused(
            Code.LIMIT,
            f"{group.counts[_PENDING]} items of {cmd.work_type} {cmd.config} are pending, the limit of their class; "
            "add more when some are done, or raise limits.pending_per_class",
        )
    if cmd.unique and (holder := state.index.unique.get(cmd.unique)):
        raise Refused(Code.CONFLICT, f"work {holder!r} already holds the unique name {cmd.unique!r}")
    if cmd.template and state.template(cmd.template) is None:
        raise Refused(Code.INVALID, f"no setting template/{cmd.template} exists; add it or name another template")
    if cmd.work in cmd.depends_on:
        raise Refused(Code.INVALID, f"work {cmd.work!r} depends on itself")
    now = txn.now_ms
    txn.work.put(
        cmd.work,
        Work(
            spec=cmd,
            status=_PENDING,
            seq=txn.next_seq(),
            created_at_ms=now,
            ready_at_ms=now,
            expires_at_ms=now + cmd.ttl_ms if cmd.ttl_ms else 0,
        ),
    )
    txn.emit("WorkQueued", cmd.work, type=cmd.work_type, config=cmd.config)
    return {"work": cmd.work, "status": "pending"}


def claim(txn: Txn, cmd: ClaimWork) -> list[dict[str, object]]:
    """Bind the best pending items to a worker that runs them itself and renews their leases.

    A repeat of the claim id answers with the same jobs.
    """
    earlier = txn.state.index.claims.get(cmd.claim)
    if earlier:
        rows = [txn.jobs.require(job) for job in earlier]
        if rows[0].peer != cmd.peer:
            raise Refused(Code.CONFLICT, f"claim {cmd.claim!r} is one of {rows[0].peer!r}; choose another id")
        return [granted(job, txn.work.require(job.work)) for job in rows]
    if txn.cluster.paused:
        raise Refused(Code.PAUSED, f"the cluster is paused: {txn.cluster.pause_reason or 'by an operator'}")
    peer = txn.peers.get(cmd.peer)
    if peer is not None and peer.draining:
        raise Refused(Code.INELIGIBLE, f"peer {cmd.peer!r} is being drained and takes no work")
    if peer is not None and peer.held_until_ms:
        raise Refused(Code.INELIGIBLE, f"peer {cmd.peer!r} is held back for a while: {peer.held_reason}")
    answer: list[dict[str, object]] = []
    exclusive: set[tuple[str, str]] = set()
    for _, _, name in _queued(txn, cmd):
        row = txn.work.rows[name]
        if item_obstacle(row, txn.now_ms, txn.work.get, txn.state.index.live) is not None:
            continue
        spec = row.spec
        if (spec.needs is not None or spec.template) and not stands_where(txn.state.needs_of(spec), cmd.peer, peer):
            continue
        if spec.work_type in EXCLUSIVE_TYPES:
            if (spec.work_type, spec.config) in exclusive:
                continue
            exclusive.add((spec.work_type, spec.config))
        job = grant(txn, row, peer=cmd.peer, incarnation=0, claim=cmd.claim, gpus=(), placed="claimed")
        answer.append(granted(job, row))
        if len(answer) >= cmd.limit:
            break
    return answer


def _queued(txn: Txn, cmd: ClaimWork) -> Iterator[tuple[int, int, str]]:
    """Places of the pending items that fit the claim, best first over all asked types and configs."""
    classes = txn.state.index.classes
    queues = [
        islice(configs[config].queue, CLAIM_SCAN)
        for work_type in dict.fromkeys(cmd.work_types) or classes
        if (configs := classes.get(work_type)) is not None
        for config in dict.fromkeys(cmd.configs) or configs
        if config in configs
    ]
    return queues[0] if len(queues) == 1 else merge(*queues)


def granted(job: Job, row: Work) -> dict[str, object]:
    """What a claiming worker is told about its job."""
    spec = row.spec
    return {
        "job": job.job,
        "fence": job.fence,
        "work": row.work,
        "work_type": spec.work_type,
        "config": spec.config,
        "params": spec.params,
        "inputs": {i.name: i.digest for i in spec.inputs} if spec.inputs else {},
        "attempt": row.attempts + 1,
        "lease_ms": job.lease_ms,
        "timeout_ms": job.timeout_ms,
    }


def place(txn: Txn, cmd: PlaceWork) -> dict[str, object]:
    """Bind one pending item to a peer whose agent will run it, if the rules still hold."""
    row = txn.work.require(cmd.work)
    move(row, WorkStatus.CLAIMED)
    if txn.cluster.paused:
        raise Refused(Code.PAUSED, f"the cluster is paused: {txn.cluster.pause_reason or 'by an operator'}")
    peer = txn.peers.require(cmd.peer)
    if peer.incarnation != cmd.incarnation:
        raise Refused(
            Code.STALE_INCARNATION,
            f"peer {cmd.peer!r} is at incarnation {peer.incarnation}, the placement saw {cmd.incarnation}",
        )
    if not row.spec.template:
        raise Refused(
            Code.INELIGIBLE,
            f"work {cmd.work!r} names no template, so no agent can start it; a worker may claim it, or add it "
            "again with a template",
        )
    state = txn.state
    needs = state.needs_of(row.spec)
    held = [txn.jobs.require(j) for j in state.index.live_jobs_of(cmd.peer)]
    obstacle = item_obstacle(row, txn.now_ms, txn.work.get, state.index.live) or peer_obstacle(
        peer, row.spec.work_type, needs, held, state.limits
    )
    if obstacle is not None:
        raise Refused(Code.INELIGIBLE, f"work {cmd.work!r} cannot run on {cmd.peer!r}: {obstacle.detail}")
    needed = needs.gpus
    free = free_gpus(peer, row.spec.work_type, needs, held, state.limits) if needed else []
    if len(cmd.gpus) != needed or len(set(cmd.gpus)) != needed or not set(free).issuperset(cmd.gpus):
        raise Refused(
            Code.INVALID,
            f"work {cmd.work!r} needs {needed} GPUs, free on {cmd.peer!r} are {free}, the placement names "
            f"{list(cmd.gpus)}",
        )
    job = grant(txn, row, peer=cmd.peer, incarnation=cmd.incarnation, claim="", gpus=cmd.gpus, placed=cmd.reason)
    return {"job": job.job, "fence": job.fence}


def grant(txn: Txn, row: Work, *, peer: str, incarnation: int, claim: str, gpus: tuple[str, ...], placed: str) -> Job:
    """Make the item's next job, under a fence nobody held before."""
    spec = row.spec
    timing = txn.state.timing
    now = txn.now_ms
    name = f"{row.work}.{row.grants + 1}"
    job = Job(
        job=name,
        work=row.work,
        work_type=spec.work_type,
        config=spec.config,
        peer=peer,
        incarnation=incarnation,
        fence=txn.next_fence(),
        desired=_RUN,
        actual=_GRANTED,
        granted_at_ms=now,
        lease_ms=timing.lease(spec.work_type),
        renewed_at_ms=now,
        needs=txn.state.needs_of(spec),
        timeout_ms=spec.timeout_ms or timing.timeout(spec.work_type),
        claim=claim,
        gpus=gpus,
        placed=placed,
    )
    txn.jobs.put(name, job)
    txn.work.change(row.work, status=_CLAIMED, job=name, grants=row.grants + 1)
    txn.emit("WorkClaimed", row.work, job=name, peer=peer)
    return job


def cancel(txn: Txn, cmd: CancelWork) -> str:
    """End an item; its live job is told to stop and nothing it still makes is published."""
    row = txn.work.require(cmd.work)
    if row.status is WorkStatus.CANCELLED:
        return row.status
    live = row.status in LIVE_WORK
    move(row, WorkStatus.CANCELLED)
    reason = cmd.reason or "cancelled"
    if live:
        job = txn.jobs.require(row.job)
        txn.jobs.change(job.job, desired=Desired.STOP, reason=reason)
    txn.work.change(row.work, status=WorkStatus.CANCELLED, finished_at_ms=txn.now_ms, reason=reason)
    txn.emit("WorkCancelled", row.work, reason=reason)
    return WorkStatus.CANCELLED


def retry(txn: Txn, cmd: RetryWork) -> str:
    row = txn.work.require(cmd.work)
    if row.status is WorkStatus.PENDING:
        return row.status
    if row.status in LIVE_WORK or row.status is WorkStatus.COMPLETED:
        raise Refused(Code.ILLEGAL_TRANSITION, f"work {cmd.work!r} is {row.status}; only ended items are retried")
    spec = row.spec
    last = txn.jobs.get(row.job)
    if last is not None and last.actual in LIVE_JOB:
        raise Refused(Code.CONFLICT, f"job {last.job!r} is still stopping on {last.peer!r}; retry when it has ended")
    if spec.unique and (holder := txn.state.index.unique.get(spec.unique)):
        raise Refused(Code.CONFLICT, f"work {holder!r} holds the unique name {spec.unique!r} now")
    now = txn.now_ms
    txn.work.change(
        row.work,
        status=WorkStatus.PENDING,
        attempts=0,
        grants_before=row.grants,
        job="",
        ready_at_ms=now,
        expires_at_ms=now + spec.ttl_ms if spec.ttl_ms else 0,
        finished_at_ms=0,
        failed_on=(),
        reason=cmd.reason,
        error_class="",
    )
    txn.emit("WorkRetried", row.work, reason=cmd.reason)
    return WorkStatus.PENDING


def on_due(txn: Txn, row: Work) -> None:
    """Expire an item that waited too long, or drop one whose retention is over, with its jobs."""
    if row.status is WorkStatus.PENDING:
        waited = txn.now_ms - row.created_at_ms
        txn.work.change(
            row.work,
            status=WorkStatus.EXPIRED,
            finished_at_ms=txn.now_ms,
            reason=f"it waited {waited} ms, its time to live was {row.spec.ttl_ms} ms",
        )
        txn.emit("WorkExpired", row.work)
        return
    if row.status is not WorkStatus.COMPLETED:
        checkpoints.drop(txn, row)
    for number in range(1, row.grants + 1):
        txn.jobs.delete(f"{row.work}.{number}")
    txn.work.delete(row.work)
