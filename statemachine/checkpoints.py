"""Checkpoints: what an unfinished item has so far, as one file that its next attempt goes on from, on whatever node.

It stands among the outputs of the job that made it, so it goes with its item, and with the next one that is saved.
"""

from __future__ import annotations

from statemachine.rows import Job, Work
from statemachine.state import State, Txn
from statemachine.values import Output

KIND = "checkpoint"


def latest(state: State, work: Work) -> Output | None:
    """The checkpoint that an unfinished item's next attempt should have; None when it has none."""
    for number in range(work.grants, 0, -1):
        job = state.jobs.get(f"{work.work}.{number}")
        if job is not None and (found := _of(job)) is not None and found.digest in state.artifacts:
            return found
    return None


def drop(txn: Txn, work: Work) -> None:
    """Let an item's checkpoint go: nobody needs it any more. The rows of jobs that are over stay as they are."""
    for number in range(1, work.grants + 1):
        job = txn.jobs.get(f"{work.work}.{number}")
        if job is None or (held := _of(job)) is None:
            continue
        file = txn.artifacts.get(held.digest)
        if file is not None and file.job == job.job:
            txn.artifacts.delete(held.digest)


def _of(job: Job) -> Output | None:
    return next((output for output in job.outputs if output.kind == KIND), None)
