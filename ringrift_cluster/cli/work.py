"""The queue and what runs: work items, jobs, their logs."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Annotated

import msgspec
import typer
from msgspec import UnsetType
from rich.console import RenderableType
from typer import Argument, Option

from ringrift_cluster.api.items import NewWork, decode_items
from ringrift_cluster.api.jobs import JobFilter, JobList
from ringrift_cluster.api.work import Added, AddedItems, WorkFilter, WorkItems, WorkView
from ringrift_cluster.cli.call import Call, asks
from ringrift_cluster.cli.cluster import read_text, said
from ringrift_cluster.cli.options import EXIT_REFUSED, EXIT_USAGE, Item, Limit, OfConfig, Params, Reason, fail, named
from ringrift_cluster.cli.output import emit_json, pairs, span, table
from statemachine.errors import UNDECODABLE
from statemachine.rows import Job

app = typer.Typer(no_args_is_help=True, help="The queue of work items.")


@app.command("add")
@asks
def add(
    call: Call,
    work_type: Annotated[str | None, Argument(help="selfplay, training, evaluation, or any other word.")] = None,
    config: Annotated[str, Option(help="Game config, such as hex8_2p.")] = "",
    template: Annotated[str, Option(help="How its program is started; a setting template/NAME.")] = "",
    param: Params = None,
    priority: Annotated[int, Option(help="Higher goes first.", min=0, max=1000)] = 50,
    work_id: Annotated[str | None, Option("--id", help="Its id; adding it again adds nothing.")] = None,
    count: Annotated[int, Option(help="So many alike.", min=1, max=1000)] = 1,
    file: Annotated[str | None, Option(help="JSON items instead: @FILE, or - for stdin.")] = None,
) -> None:
    """Queue one item, several alike, or those of a file."""
    if (file is None) == (work_type is None):
        raise fail("work add takes a work type, or --file with items.", EXIT_USAGE)
    if file is not None:
        items = _items_of(file)
    else:
        one = NewWork(
            work_type=work_type or "",
            work_id=work_id,
            config=config,
            template=template,
            params=dict(named(text, "--param") for text in param or ()),
            priority=priority,
        )
        items = [one] if count == 1 else [_numbered(one, number) for number in range(1, count + 1)]
    with call.client() as client:
        if len(items) == 1:
            call.emit(client.work_add(items[0]), _added)
            return
        answer = client.work_add_many(items)
        call.emit(answer, _added_many)
        if answer.rejected:
            raise typer.Exit(EXIT_REFUSED)


def _items_of(file: str) -> list[NewWork]:
    try:
        decoded = decode_items(read_text(file).encode())
    except UNDECODABLE as error:
        raise fail(f"the items of {file.lstrip('@')}: {error}.", EXIT_USAGE) from error
    return decoded if isinstance(decoded, list) else [decoded]


def _numbered(item: NewWork, number: int) -> NewWork:
    return msgspec.structs.replace(item, work_id=f"{item.work_id}-{number}") if item.work_id else item


def _added(value: Added) -> Iterable[RenderableType]:
    yield f"{value.work_id} was there already" if value.repeat else f"{value.work_id} is queued"


def _added_many(value: AddedItems) -> Iterable[RenderableType]:
    for row in value.results:
        yield f"{row.work_id}: {row.code}: {row.detail}" if row.code else row.work_id
    yield f"{value.count} queued, {value.rejected} refused (entry {value.index})"


@app.command("list")
@asks
def listing(
    call: Call,
    status: Annotated[str, Option(help="pending, claimed, running, completed, failed, cancelled, expired.")] = "",
    work_type: Annotated[str, Option("--type", help="Only this type.")] = "",
    config: OfConfig = "",
    limit: Limit = 50,
    after: Annotated[str, Option(help="Go on after this id.")] = "",
) -> None:
    """Items, newest first."""
    query = WorkFilter(status=status, work_type=work_type, config=config, limit=limit, after=after)
    with call.client() as client:
        call.emit(client.work_list(query), _listed)


def _listed(value: WorkItems) -> Iterable[RenderableType]:
    yield table(
        ["work", "type", "config", "status", "priority ", "attempts ", "job", "reason"],
        (
            [
                row.spec.work,
                row.spec.work_type,
                row.spec.config,
                row.status,
                row.spec.priority,
                f"{row.attempts}/{row.spec.max_attempts}",
                row.job,
                row.reason,
            ]
            for row in value.items
        ),
    )
    if value.next:
        yield f"there is more: --after {value.next}"


@app.command("show")
@asks
def show(call: Call, work_id: Item) -> None:
    """One item, and why it is where it is."""
    with call.client() as client:
        found = client.work(work_id)
        clock_ms = 0 if call.as_json else client.raft_state().clock_ms
        call.emit(found, lambda value: _shown(value, clock_ms))


def _shown(value: WorkView, clock_ms: int) -> Iterable[RenderableType]:
    row = value.work
    yield f"{row.spec.work}: {row.status} - {value.why.sentence}"
    for reason in value.why.reasons:
        yield f"  {reason.code} ({reason.count}): {reason.detail}"
    spec = row.spec
    lines = {
        "type": spec.work_type,
        "config": spec.config,
        "template": spec.template,
        "priority": str(spec.priority),
        "attempts": f"{row.attempts} of {spec.max_attempts}",
        "params": pairs(spec.params),
        "depends on": " ".join(spec.depends_on),
        "failed on": " ".join(row.failed_on),
        "reason": "" if row.reason in value.why.sentence else row.reason,
        "counts": pairs(row.counts),
        "logs": f"ringrift-node logs {row.spec.work}.{row.grants} [--stream stderr]" if row.grants else "",
    }
    for name, text in lines.items():
        if text:
            yield f"  {name:<10} {text}"
    if value.job is not None:
        yield _jobs_table([value.job], clock_ms)


@app.command("cancel")
@asks
def cancel(call: Call, work_id: Item, reason: Reason = "") -> None:
    """End an item; a running attempt is told to stop."""
    with call.client() as client:
        call.emit(client.work_cancel(work_id, reason), said(f"{work_id} is cancelled"))


@app.command("retry")
@asks
def retry(call: Call, work_id: Item, reason: Reason = "") -> None:
    """Give a failed, cancelled or expired item its attempts back."""
    with call.client() as client:
        call.emit(client.work_retry(work_id, reason), said(f"{work_id} is pending again"))


@asks
def jobs(
    call: Call,
    ended: Annotated[bool, Option("--ended", help="Those that are over, too.")] = False,
    peer: Annotated[str, Option(help="Only jobs of this node.")] = "",
    limit: Limit = 100,
) -> None:
    """What runs where."""
    with call.client() as client:
        found = client.jobs(JobFilter(ended=ended, peer=peer, limit=limit))
        clock_ms = 0 if call.as_json else client.raft_state().clock_ms
        call.emit(found, lambda value: _job_lines(value, clock_ms))


def _job_lines(value: JobList, clock_ms: int) -> Iterable[RenderableType]:
    yield _jobs_table([*value.active_jobs, *value.ended_jobs], clock_ms)
    yield f"{value.active_total} running in the whole cluster"


def _jobs_table(rows: Iterable[Job], clock_ms: int) -> RenderableType:
    return table(
        ["job", "type", "config", "node", "wanted", "actual", "for ", "counts", "reason"],
        (
            [
                row.job,
                row.work_type,
                row.config,
                row.peer,
                row.desired,
                row.actual,
                _since(row, clock_ms),
                pairs(row.counts),
                row.error or row.reason or _restarts(row),
            ]
            for row in rows
        ),
    )


def _restarts(row: Job) -> str:
    """How often a job's program was started again, and of what it failed before."""
    again = row.restarts
    return "" if isinstance(again, UnsetType) else f"restart {again.count} after {again.error_class}: {again.error}"


def _since(row: Job, clock_ms: int) -> str:
    end_ms = row.finished_at_ms or clock_ms
    return span(end_ms - row.started_at_ms) if row.started_at_ms and end_ms else ""


@asks
def logs(
    call: Call,
    job_id: Annotated[str, Argument(help="The job, as `ringrift-node jobs` names it.")],
    follow: Annotated[bool, Option("--follow", "-f", help="The whole log, and what is added to it.")] = False,
    tail: Annotated[int, Option(help="How many of the last lines.", min=0, max=100_000)] = 200,
    stream: Annotated[str, Option(help="stdout, stderr, or shim.")] = "stdout",
) -> None:
    """A job's log, from whichever node has it."""
    with call.client() as client:
        for chunk in client.job_log(job_id, tail=tail, follow=follow, stream=stream):
            if call.as_json:
                emit_json({"job": job_id, "text": chunk.decode(errors="replace")})
            else:
                sys.stdout.write(chunk.decode(errors="replace"))
                sys.stdout.flush()
