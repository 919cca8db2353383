"""What must be true of a run, whatever happened in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from tests.nemesis.clients import GAMES
from tests.nemesis.history import History, Op, Outcome
from tests.nemesis.linearizability import check
from tests.nemesis.models import QueueModel, RegisterModel

Row = dict[str, Any]
Tables = dict[str, dict[str, Row]]


def linearizable(history: History, lease_s: float) -> Iterator[str]:
    """Every key by itself; one sentence for each that nothing explains."""
    queue, register = QueueModel(lease_s), RegisterModel()
    for key, ops in sorted(history.by_key().items()):
        verdict = check(ops, queue) if key.startswith("queue/") else check(ops, register)
        if not verdict.ok:
            yield f"{key}: {verdict.reason}"


def nothing_lost(history: History, tables: Tables) -> Iterator[str]:
    """Everything acknowledged is in the state at the end."""
    for op in history.acknowledged():
        work = tables["work"].get(op.args.get("work", ""))
        if op.kind == "add" and work is None:
            yield f"the acknowledged item of [{op}] is gone"
        if op.kind == "complete" and op.output["published"] and not _completed_by(work, op):
            yield f"the acknowledged completion of [{op}] is gone: {work}"
        if op.kind == "write-setting":
            row = tables["settings"].get(f"template/{op.key.partition('/')[2]}")
            if row is None or row["version"] < op.output["version"]:
                yield f"the acknowledged change of [{op}] is gone: {row}"


def _completed_by(work: Row | None, op: Op) -> bool:
    job = f"{op.args['work']}.{op.args['job']}"
    return work is not None and work["status"] == "completed" and work["job"] == job


def nothing_doubled(history: History, tables: Tables) -> Iterator[str]:
    """Each item counts once in the totals, and each acknowledged change made a version of its own."""
    completed = Counter(w["spec"]["config"] for w in tables["work"].values() if w["status"] == "completed")
    for config, total in tables["totals"].items():
        if total["games"] != GAMES * completed[config] or total["selfplay_jobs"] != completed[config]:
            yield f"{config}: {completed[config]} items are completed, the totals say {total}"
    versions = Counter((op.key, op.output["version"]) for op in history.acknowledged() if op.kind == "write-setting")
    for (key, version), count in versions.items():
        if count > 1:
            yield f"{key}: {count} changes were acknowledged as version {version}"
    first = Counter(
        op.args["work"] for op in history.acknowledged() if op.kind == "complete" and not op.output["repeat"]
    )
    for work, count in first.items():
        if count > 1:
            yield f"{work}: {count} completions were acknowledged as the first one"


def fences_grow(history: History, tables: Tables) -> Iterator[str]:
    """No fence is given twice, and a claim that began after another one ended has the larger one."""
    claims = [op for op in history.acknowledged() if op.kind == "claim" and op.output.get("work")]
    holders: dict[int, Op] = {}
    for op in claims:
        other = holders.setdefault(op.output["fence"], op)
        if other is not op:
            yield f"fence {op.output['fence']} was given twice: [{other}] and [{op}]"
    highest, events = 0, []
    for op in claims:
        events += [(op.invoked_at, 1, op, 0), (op.returned_at, 0, op, op.output["fence"])]
    floor: dict[int, int] = {}
    for _, begins, op, fence in sorted(events, key=lambda event: event[:2]):
        if begins:
            floor[op.number] = highest
        else:
            if fence <= floor[op.number]:
                yield f"fence {fence} of [{op}] is not above {floor[op.number]}, given before it began"
            highest = max(highest, fence)
    twice = [f for f, n in Counter(j["fence"] for j in tables["jobs"].values()).items() if n > 1]
    if twice:
        yield f"jobs share the fences {twice}"


def answered(history: History) -> Iterator[str]:
    """A run without successful writes proves nothing."""
    if not any(op.outcome is Outcome.OK for op in history.ops):
        yield "no operation was answered"


def all_of(history: History, tables: Tables, lease_s: float) -> list[str]:
    """Every violation; the tables are the state at the end, which `history` has read already."""
    found = [*answered(history), *nothing_lost(history, tables), *nothing_doubled(history, tables)]
    return [*found, *fences_grow(history, tables), *linearizable(history, lease_s)]
