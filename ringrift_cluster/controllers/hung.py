"""Hung jobs: stop what has made no progress for much longer than its kind is used to."""

from __future__ import annotations

from statemachine import pace
from statemachine.commands import Command, StopJob
from statemachine.rows import Actual, Desired
from statemachine.state import State

#: jobs stopped in one pass
MAX_STOPPED = 64


def stop_hung(state: State) -> list[Command]:
    """Stops of running jobs that hang, each with its evidence; they end as failures of the class `hung`."""
    if state.cluster.paused:
        return []
    commands: list[Command] = []
    for held in state.index.live_jobs.values():
        for name in held:
            job = state.jobs[name]
            if job.actual is not Actual.RUNNING or job.desired is not Desired.RUN:
                continue
            if evidence := pace.hangs(state, job):
                commands.append(StopJob(job.job, job.fence, evidence, "hung"))
            if len(commands) >= MAX_STOPPED:
                return commands
    return commands
