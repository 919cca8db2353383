"""Match results: integers, counted once by match id, summed per pair of participants.

A participant is a baseline ("random") or a model and the harness it is played by ("<sha256>@policy-only").
Standings are the sums of all matches that are not void, so voiding subtracts exactly what was added.
"""

from __future__ import annotations

from statemachine.commands import RecordMatch
from statemachine.errors import Code, Refused
from statemachine.rows import Match, Standing, standing_key
from statemachine.state import Txn
from statemachine.values import MatchResult, Tally


def model_of(participant: str) -> str:
    """The model's digest, or an empty text for a baseline."""
    digest, at, _ = participant.partition("@")
    return digest if at else ""


def record(txn: Txn, cmd: RecordMatch) -> dict[str, object]:
    return add(txn, cmd.match, cmd.config, cmd.result, peer=cmd.peer, gauntlet="")


def add(txn: Txn, match: str, config: str, result: MatchResult, *, peer: str, gauntlet: str) -> dict[str, object]:
    """Count a match once; a repeat with the same content is answered, other content is refused."""
    old = txn.matches.get(match)
    if old is not None:
        if old.result == result and old.config == config:
            return {"match": match, "repeat": True}
        raise Refused(Code.CONFLICT, f"match {match!r} was recorded with other results; void it first")
    check(txn, config, result)
    txn.matches.put(match, Match(match, config, result, txn.now_ms, peer, gauntlet))
    _shift(txn, config, result, 1)
    return {"match": match}


def check(txn: Txn, config: str, result: MatchResult) -> None:
    """Refuse a result that cannot be true: no games, oneself, groups that are not the games, another config's model."""
    games = sum(t.games for t in result.tally)
    if games == 0:
        raise Refused(Code.INVALID, f"{result.a[:20]} against {result.b[:20]}: no game was played, that is no result")
    if result.a == result.b:
        raise Refused(Code.INVALID, f"{result.a[:20]} cannot play against itself for a rating")
    points = sum(2 * t.wins_a + t.draws for t in result.tally)
    groups = sum(result.histogram)
    half_points = sum(h * n for h, n in enumerate(result.histogram))
    if result.histogram and (half_points != points or groups * (len(result.histogram) - 1) != 2 * games):
        raise Refused(
            Code.INVALID,
            f"{result.a[:20]} against {result.b[:20]}: the histogram holds {half_points} half points "
            f"in {groups} groups, the tally {points} in {games} games",
        )
    for participant in (result.a, result.b):
        digest = model_of(participant)
        if digest:
            model = txn.models.get(digest)
            if model is None:
                raise Refused(Code.NOT_FOUND, f"participant {participant[:20]} names a model nobody registered")
            if model.config != config:
                raise Refused(
                    Code.INVALID, f"participant {participant[:20]} plays {model.config}, the match is of {config}"
                )


def void(txn: Txn, row: Match, reason: str) -> None:
    """Take a match that is not void out of the sums of its pair."""
    _shift(txn, row.config, row.result, -1)
    txn.matches.change(row.match, voided=reason or "void")
    txn.emit("MatchVoided", row.match, config=row.config, reason=reason)


def flipped(result: MatchResult) -> MatchResult:
    """The same games from the other side."""
    tally = tuple(
        Tally(seats_a=t.seats_b, seats_b=t.seats_a, wins_a=t.wins_b, wins_b=t.wins_a, draws=t.draws)
        for t in result.tally
    )
    return MatchResult(a=result.b, b=result.a, tally=tally, histogram=result.histogram[::-1])


def added(old: tuple[Tally, ...], more: tuple[Tally, ...], sign: int) -> tuple[Tally, ...]:
    """Sum tallies by seats, in the order of the seats."""
    sums: dict[tuple[int, int], tuple[int, int, int]] = {
        (t.seats_a, t.seats_b): (t.wins_a, t.wins_b, t.draws) for t in old
    }
    for t in more:
        w, v, d = sums.get((t.seats_a, t.seats_b), (0, 0, 0))
        sums[t.seats_a, t.seats_b] = (w + sign * t.wins_a, v + sign * t.wins_b, d + sign * t.draws)
    return tuple(
        Tally(seats_a=a, seats_b=b, wins_a=w, wins_b=v, draws=d)
        for (a, b), (w, v, d) in sorted(sums.items())
        if w or v or d
    )


def summed(old: tuple[int, ...], more: tuple[int, ...], sign: int) -> tuple[int, ...]:
    """Add histograms bin by bin; an empty one adds nothing."""
    width = max(len(old), len(more))
    return tuple((old[i] if i < len(old) else 0) + sign * (more[i] if i < len(more) else 0) for i in range(width))


def _shift(txn: Txn, config: str, result: MatchResult, sign: int) -> None:
    side = result if result.a < result.b else flipped(result)
    fresh = Standing(config, side.a, side.b)
    key = standing_key(fresh)
    row = txn.standings.get(key) or txn.standings.put(key, fresh)
    if row.matches + sign == 0:
        txn.standings.delete(key)
        return
    txn.standings.change(
        key,
        tally=added(row.tally, side.tally, sign),
        histogram=summed(row.histogram, side.histogram, sign),
        matches=row.matches + sign,
    )
