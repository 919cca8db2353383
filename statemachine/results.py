"""What a completed attempt must show, what it counts for, and how a match is taken back."""

from __future__ import annotations

from msgspec.structs import replace

from statemachine import gauntlets, matches
from statemachine.commands import CompleteJob, VoidMatch
from statemachine.errors import Code, Refused
from statemachine.models import totals_of
from statemachine.rows import Work
from statemachine.state import Txn


def check(txn: Txn, work: Work, cmd: CompleteJob) -> None:
    """Refuse a success that made nothing: zero games is never a result."""
    spec = work.spec
    if spec.work_type == "selfplay" and not cmd.counts.get("games"):
        raise Refused(Code.INVALID, f"work {work.work!r} is selfplay and reports no games; report a failure instead")
    if spec.work_type in ("training", "initial") and not any(o.kind == "model" for o in cmd.outputs):
        raise Refused(Code.INVALID, f"work {work.work!r} is {spec.work_type} and reports no model")
    if spec.work_type == "evaluation" and cmd.match is None:
        raise Refused(Code.INVALID, f"work {work.work!r} is an evaluation and reports no match")


def count(txn: Txn, work: Work, cmd: CompleteJob) -> None:
    """Add the attempt's totals to its config, and its match to the table and the gauntlet."""
    spec = work.spec
    if cmd.match is not None:
        job = txn.jobs.require(cmd.job)
        counts = bool(spec.gauntlet) and gauntlets.take(txn, spec.gauntlet, cmd.match)
        # The fence makes the name new even when an item of an older one's name is evaluated.
        name = f"{cmd.job}@{cmd.fence}"
        matches.add(txn, name, spec.config, cmd.match, peer=job.peer, gauntlet=spec.gauntlet if counts else "")
    row = totals_of(txn, spec.config)
    if spec.work_type == "selfplay":
        row = replace(
            row,
            games=row.games + cmd.counts.get("games", 0),
            positions=row.positions + cmd.counts.get("positions", 0),
            selfplay_jobs=row.selfplay_jobs + 1,
        )
    elif spec.work_type == "training":
        seen = spec.params.get("games_seen", "")
        row = replace(
            row,
            training_jobs=row.training_jobs + 1,
            games_at_training=int(seen) if seen.isdecimal() and len(seen) < 18 else row.games,
        )
    elif cmd.match is not None:
        row = replace(row, evaluation_games=row.evaluation_games + sum(t.games for t in cmd.match.tally))
    else:
        return
    txn.totals.put(spec.config, row)


def void(txn: Txn, cmd: VoidMatch) -> bool:
    """Take a match out of the table, and out of its gauntlet while that is still open."""
    row = txn.matches.require(cmd.match)
    if row.voided:
        return False
    if row.gauntlet:
        gauntlets.take(txn, row.gauntlet, row.result, -1)
    matches.void(txn, row, cmd.reason)
    return True
