"""What whoever runs a job says about it. The bodies are the law's own commands."""

from __future__ import annotations

from msgspec import Struct

from ringrift_cluster.api import examples
from ringrift_cluster.api.endpoint import Call, Routes
from ringrift_cluster.api.writes import Outcome, Outcomes, carry_out, carry_out_all
from statemachine.commands import CompleteJob, FailJob, ReleaseJob, RenewJobs, ReportJob, StopJob
from statemachine.errors import Code
from statemachine.rows import Actual
from statemachine.values import Id, Natural, Scope, Short

route = Routes("work", "")

FENCED = (Code.NOT_FOUND, Code.STALE_FENCE, Code.ILLEGAL_TRANSITION)


class Start(Struct, frozen=True, forbid_unknown_fields=True):
    """The attempt's process is being made (`starting`) or runs (`running`)."""

    job: Id
    fence: Natural
    actual: Short = Actual.RUNNING
    at_ms: Natural = 0


@route(
    "POST",
    "/work/start",
    "The attempt starts",
    scope=Scope.NODE,
    example=Start("sp-1.1", 12),
    answer=Outcome("run", 1204),
    errors=(*FENCED, Code.INVALID),
)
async def start(call: Call, body: Start) -> Outcome:
    """`running` burns the item's attempt. The result is what the cluster wants of the job: run or stop."""
    return await carry_out(call, ReportJob(job=body.job, fence=body.fence, actual=body.actual, at_ms=body.at_ms))


@route(
    "POST",
    "/work/renew",
    "Extend the leases of claimed jobs",
    scope=Scope.NODE,
    example=RenewJobs(jobs=(examples.PROGRESS,)),
    answer=Outcome({"over": [], "stop": []}, 1204),
)
async def renew(call: Call, body: RenewJobs) -> Outcome:
    """The result lists jobs whose fence is `over` (drop them) and jobs that should `stop`."""
    return await carry_out(call, body)


@route(
    "POST",
    "/work/complete",
    "The attempt succeeded",
    scope=Scope.NODE,
    example=examples.COMPLETION,
    answer=Outcome({"published": True}, 1204),
    errors=(*FENCED, Code.INVALID),
)
async def complete(call: Call, body: CompleteJob | list[CompleteJob]) -> Outcome | Outcomes:
    """Totals, files and match results count together and once; a repeat is answered like the first.

    The body is one completion or a list of up to 1000, which are answered with one result each.
    """
    return await (carry_out_all(call, body) if isinstance(body, list) else carry_out(call, body))


@route(
    "POST",
    "/work/fail",
    "The attempt failed",
    scope=Scope.NODE,
    example=FailJob(job="sp-1.1", fence=12, error_class="user", error="exit code 1: no such option"),
    answer=Outcome("pending", 1204),
    errors=FENCED,
)
async def fail(call: Call, body: FailJob) -> Outcome:
    """The result is where the item went: back to `pending`, or `failed` for good."""
    return await carry_out(call, body)


@route(
    "POST",
    "/work/release",
    "Hand an attempt back that never started",
    scope=Scope.NODE,
    example=ReleaseJob(job="sp-1.1", fence=12, reason="no room"),
    answer=Outcome("pending", 1204),
    errors=FENCED,
)
async def release(call: Call, body: ReleaseJob) -> Outcome:
    return await carry_out(call, body)


@route(
    "POST",
    "/work/stop",
    "Ask for an attempt to be stopped",
    scope=Scope.SUBMIT,
    example=StopJob(job="sp-1.1", fence=12, reason="the node is needed elsewhere"),
    answer=Outcome(True, 1204),
    errors=(Code.NOT_FOUND, Code.STALE_FENCE),
)
async def stop(call: Call, body: StopJob) -> Outcome:
    """The process gets its grace; what it kept counts, and the rest of its item returns to the queue."""
    return await carry_out(call, body)
