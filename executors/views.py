"""What the agent reads of the cluster in one look."""

from __future__ import annotations

from dataclasses import dataclass

from executors.reconcile import Wanted
from statemachine import queries
from statemachine.queries import Assignment
from statemachine.rows import Actual, Desired
from statemachine.settings import Timing
from statemachine.state import State


@dataclass(frozen=True, slots=True)
class View:
    """What one read shows of this peer; `incarnation` is None when the peer is not known."""

    incarnation: int | None
    timing: Timing
    assignments: tuple[Assignment, ...]
    #: why this peer gets no new work for a while; empty when it does
    closed: str = ""
    #: GPUs of this peer that are drained
    drained_gpus: frozenset[str] = frozenset()


def view_of(state: State, peer: str) -> View:
    """A query: short, pure, run where entries are applied."""
    row = state.peers.get(peer)
    if row is None:
        return View(None, state.timing, ())
    drained = frozenset(drain.gpu for drain in row.gpu_drains)
    held = tuple(queries.assignments(state, peer))
    closed = "this node is held back" if row.held_until_ms else ""
    if row.draining:
        closed = "this node is drained"
    return View(row.incarnation, state.timing, held, closed, drained)


def wanted(assignment: Assignment) -> Wanted:
    """A committed job in the words of `reconcile`."""
    job = assignment.job
    return Wanted(
        job=job.job,
        fence=job.fence,
        work=job.work,
        run=job.desired is Desired.RUN,
        started=job.actual is Actual.RUNNING,
        timeout_s=job.timeout_ms / 1000,
        gpus=job.gpus,
        reason=job.reason,
    )
