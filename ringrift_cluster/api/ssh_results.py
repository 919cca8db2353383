"""What a tournament on hosts has come to: states and reasons of its items, results from what their attempts counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from msgspec import Struct

from ringrift_cluster.api.problems import Problem
from statemachine.errors import Code
from statemachine.rows import OPEN_WORK, Work, WorkStatus
from statemachine.state import State

#: items of a run that its status goes through
MAX_SHARDS = 10_000
#: what an attempt of a pair counts, from the side of its first participant
WON, DRAWN, LOST = "wins_a", "draws", "wins_b"


class ItemState(Struct, frozen=True, omit_defaults=True):
    """One item of a run. `host` has it, or had it last; `reason` is why it waits, is tried again or ended."""

    work_id: str
    a: str
    b: str
    games: int
    status: str
    attempts: int
    host: str = ""
    reason: str = ""
    failed_on: tuple[str, ...] = ()


class Pair(Struct, frozen=True):
    """Games of two participants that counted, from the side of `a`."""

    a: str
    b: str
    games: int
    wins_a: int
    draws: int
    wins_b: int


class Standing(Struct, frozen=True):
    """A win is one point, a draw half of one."""

    participant: str
    games: int
    wins: int
    draws: int
    losses: int
    points: float


class SshTournament(Struct, frozen=True):
    """`status` is running, completed, cancelled, or failed when something of it is over without a result."""

    run_id: str
    status: str
    items_done: int
    items_total: int
    by_status: dict[str, int]
    games_done: int
    games_total: int
    items: list[ItemState]
    pairs: list[Pair]
    standings: list[Standing]


def work_id(run_id: str, number: int) -> str:
    return f"ssh-tournament/{run_id}/{number}"


def _number(row: Work, name: str) -> int:
    """A parameter of an item as a number: whoever may add items may have given such an item any text."""
    said = row.spec.params.get(name, "")
    return int(said) if said.isascii() and said.isdecimal() and len(said) < 10 else 0


def items_of(state: State, run_id: str) -> tuple[list[Work], int]:
    """The items of a run that are known, and how many it has. Raises Problem when nothing of it is known."""
    first = state.work.get(work_id(run_id, 0))
    if first is None:
        raise Problem(Code.NOT_FOUND, f"no run {run_id!r} is known; it may be past its retention")
    total = max(1, min(_number(first, "shards"), MAX_SHARDS))
    return [row for n in range(total) if (row := state.work.get(work_id(run_id, n))) is not None], total


def _come_to(by_status: Counter[WorkStatus], total: int) -> str:
    if any(by_status[status] for status in OPEN_WORK):
        return "running"
    if by_status[WorkStatus.COMPLETED] == total:
        return "completed"
    return "cancelled" if by_status[WorkStatus.CANCELLED] else "failed"


def tournament(state: State, run_id: str) -> SshTournament:
    """What a run has come to. Raises Problem when nothing of it is known."""
    rows, total = items_of(state, run_id)
    scores: dict[tuple[str, str], Counter[str]] = {}
    for row in rows:
        score = scores.setdefault(_pair(row), Counter())
        if row.status is WorkStatus.COMPLETED:
            score.update(_score(state, row))
    pairs = [
        Pair(a, b, sum(s[name] for name in (WON, DRAWN, LOST)), s[WON], s[DRAWN], s[LOST])
        for (a, b), s in scores.items()
    ]
    by_status = Counter(row.status for row in rows)
    return SshTournament(
        run_id=run_id,
        status=_come_to(by_status, total),
        items_done=by_status[WorkStatus.COMPLETED],
        items_total=total,
        by_status={str(status): count for status, count in sorted(by_status.items())},
        games_done=sum(pair.games for pair in pairs),
        games_total=sum(_number(row, "games") for row in rows),
        items=[_item(state, row) for row in rows],
        pairs=pairs,
        standings=_standings(pairs),
    )


def _pair(row: Work) -> tuple[str, str]:
    return row.spec.params.get("participant_a", ""), row.spec.params.get("participant_b", "")


def _score(state: State, row: Work) -> dict[str, int]:
    """Games of a completed item: its match while that counts, else what its attempt counted."""
    job = state.jobs.get(row.job)
    match = state.matches.get(f"{row.job}@{job.fence}") if job is not None else None
    if match is None:
        return {name: row.counts.get(name, 0) for name in (WON, DRAWN, LOST)}
    if match.voided:
        return {}
    tally, swapped = match.result.tally, match.result.a != _pair(row)[0]
    won, lost = sum(t.wins_a for t in tally), sum(t.wins_b for t in tally)
    return {WON: lost if swapped else won, DRAWN: sum(t.draws for t in tally), LOST: won if swapped else lost}


def _item(state: State, row: Work) -> ItemState:
    job = state.jobs.get(row.job) or state.jobs.get(f"{row.work}.{row.grants}")
    games = _number(row, "games")
    host, reason = (job.peer if job else ""), row.reason if row.status is not WorkStatus.COMPLETED else ""
    return ItemState(row.work, *_pair(row), games, row.status, row.attempts, host, reason, row.failed_on)


def _standings(pairs: Iterable[Pair]) -> list[Standing]:
    sides: dict[str, Counter[str]] = {}
    for pair in pairs:
        sides.setdefault(pair.a, Counter()).update(won=pair.wins_a, drawn=pair.draws, lost=pair.wins_b)
        sides.setdefault(pair.b, Counter()).update(won=pair.wins_b, drawn=pair.draws, lost=pair.wins_a)
    rows = [
        Standing(name, s.total(), s["won"], s["drawn"], s["lost"], s["won"] + s["drawn"] / 2)
        for name, s in sides.items()
    ]
    return sorted(rows, key=lambda row: (-row.points, row.participant))
