"""Gauntlets: a candidate's evaluation against its champion, and baselines for its rating.

    running -> accepted | rejected | inconclusive | abandoned

The games arrive with completed evaluation items and are added here and to the standings in one step. The
verdict is a policy's, but it is refused when its numbers are not the ones in this table.
"""

from __future__ import annotations

from msgspec.structs import replace

from statemachine import models
from statemachine.commands import ConcludeGauntlet, StartGauntlet
from statemachine.errors import Code, Refused
from statemachine.matches import added, flipped, model_of, summed
from statemachine.rows import Gauntlet, GauntletStatus
from statemachine.state import Txn
from statemachine.values import MatchResult

VERDICTS = frozenset(GauntletStatus) - {GauntletStatus.RUNNING}
#: verdicts that are not read from the games
UNDECIDED = frozenset({GauntletStatus.ABANDONED, GauntletStatus.SUPERSEDED})
#: verdicts that leave the candidate what it is
SPARING = frozenset({GauntletStatus.ACCEPTED, GauntletStatus.SUPERSEDED})


def start(txn: Txn, cmd: StartGauntlet) -> dict[str, object]:
    old = txn.gauntlets.get(cmd.gauntlet)
    if old is not None:
        if old.spec == cmd:
            return {"gauntlet": cmd.gauntlet, "status": old.status, "repeat": True}
        raise Refused(Code.CONFLICT, f"gauntlet {cmd.gauntlet!r} exists with other content")
    model = txn.models.require(cmd.candidate)
    if model.config != cmd.config:
        raise Refused(Code.INVALID, f"model {cmd.candidate[:12]} plays {model.config}, not {cmd.config}")
    if model_of(cmd.opponent) == cmd.candidate:
        raise Refused(Code.INVALID, f"model {cmd.candidate[:12]} cannot be tested against itself")
    if cmd.elo1 <= cmd.elo0 or cmd.cap_games < cmd.floor_games:
        raise Refused(
            Code.INVALID, f"gauntlet {cmd.gauntlet!r}: elo1 must be above elo0, and the cap not below the floor"
        )
    txn.gauntlets.put(cmd.gauntlet, Gauntlet(cmd, GauntletStatus.RUNNING, txn.next_seq(), txn.now_ms))
    txn.emit("GauntletStarted", cmd.gauntlet, config=cmd.config, candidate=cmd.candidate)
    return {"gauntlet": cmd.gauntlet, "status": GauntletStatus.RUNNING}


def take(txn: Txn, name: str, result: MatchResult, sign: int = 1) -> bool:
    """Add a match to its gauntlet, or take it out again (-1); answers whether it counts there.

    Games that end after the verdict count for ratings only, and a verdict stays when games are voided after it.
    """
    row = txn.gauntlets.get(name)
    if row is None or row.status is not GauntletStatus.RUNNING:
        return False
    spec = row.spec
    ours = result if model_of(result.a) == spec.candidate else flipped(result)
    if model_of(ours.a) != spec.candidate:
        raise Refused(Code.INVALID, f"gauntlet {name!r} tests {spec.candidate[:12]}, which did not play in this match")
    if ours.b == spec.opponent:
        tally, histogram = added(row.tally, ours.tally, sign), summed(row.histogram, ours.histogram, sign)
        row = replace(row, tally=tally, histogram=histogram)
    else:
        games = row.baseline_games.get(ours.b, 0) + sign * sum(t.games for t in ours.tally)
        row = replace(row, baseline_games={**row.baseline_games, ours.b: games})
    txn.gauntlets.put(name, row)
    return True


def conclude(txn: Txn, cmd: ConcludeGauntlet) -> str:
    row = txn.gauntlets.require(cmd.gauntlet)
    if cmd.verdict not in VERDICTS:
        raise Refused(Code.INVALID, f"a verdict is one of {', '.join(sorted(VERDICTS))}, not {cmd.verdict!r}")
    verdict = GauntletStatus(cmd.verdict)
    if row.status is verdict:
        return verdict
    if row.status is not GauntletStatus.RUNNING:
        raise Refused(Code.ILLEGAL_TRANSITION, f"gauntlet {cmd.gauntlet!r} is {row.status} already")
    games = sum(t.games for t in row.tally)
    if verdict not in UNDECIDED:
        if cmd.evidence.games != games or cmd.evidence.groups != sum(row.histogram):
            raise Refused(
                Code.EVIDENCE,
                f"the verdict was made from {cmd.evidence.games} games, {cmd.gauntlet!r} has {games}; decide again",
            )
        if games < row.spec.floor_games:
            raise Refused(
                Code.EVIDENCE,
                f"{games} games are below the floor of {row.spec.floor_games}; an open test is no verdict",
            )
        if verdict is GauntletStatus.ACCEPTED and not cmd.evidence.llr_milli >= cmd.evidence.upper_milli > 0:
            raise Refused(Code.EVIDENCE, f"a log-likelihood ratio of {cmd.evidence.llr_milli} milli accepts nothing")
    txn.gauntlets.change(cmd.gauntlet, status=verdict, finished_at_ms=txn.now_ms, evidence=cmd.evidence)
    if verdict not in SPARING:
        models.reject(txn, row.spec.candidate)
    txn.emit("GauntletConcluded", cmd.gauntlet, config=row.spec.config, verdict=verdict, games=str(games))
    return verdict
