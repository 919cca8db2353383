"""Ratings: a pure function of the counted results, computed by whoever reads them.

Floating point never enters the replicated state. The log holds integers; this module turns them into the
same table on every node, because it reads the same sums in the same order.

Model: in a game of two teams with seats s_a and s_b and strengths g_a and g_b, a's team wins with probability
s_a g_a / (s_a g_a + s_b g_b): Bradley-Terry for one seat each, Plackett-Luce's first place for more. A draw is half
a win for both. Each pair that met gets two virtual draws, so a clean sheet stays finite. Baselines that are
pinned hold their rating; everything else is the maximum of the likelihood, by Newton's method on its
concave logarithm. Standard errors are from the inverse of the Fisher information.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import islice

from msgspec import Struct

from statemachine.matches import model_of
from statemachine.rows import ModelStatus, Standing
from statemachine.state import State

#: Elo points per natural-logarithm unit of strength
SCALE = 400 / math.log(10)
#: where a set of participants that never met a pinned one is centred
UNANCHORED_ELO = 1500.0
PINNED: Mapping[str, float] = {"random": 400.0}
VIRTUAL_DRAWS = 2.0
MAX_STEPS = 200
#: no longer step is left to go, in units of log strength
CLOSE = 1e-9
#: a Newton step is cut to this many units of log strength, about 500 Elo
STEP_LIMIT = 3.0


class Ranking(Struct, frozen=True):
    """One participant's place: `elo` and `stderr` in Elo points, games as counted."""

    participant: str
    elo: float
    stderr: float
    games: int
    wins: int
    losses: int
    draws: int
    #: it is connected by games to a pinned baseline
    anchored: bool
    model: str = ""
    generation: int = -1
    status: str = ""


class Table(Struct, frozen=True):
    """What a rating needs to know of one config."""

    config: str
    standings: tuple[Standing, ...]
    models: dict[str, tuple[int, str]]


def table_of(state: State, config: str) -> Table:
    """The sums of one config and its models' generations and statuses; a short query."""
    standings = tuple(row for row in state.standings.values() if row.config == config and row.tally)
    shelf = state.index.models.get(config)
    models = {d: (state.models[d].generation, str(state.models[d].status)) for _, d in shelf or ()}
    return Table(config, standings, models)


class _Meeting(Struct, frozen=True):
    """Games of i against j: i's share of the wins, all games, and log(seats_j / seats_i)."""

    i: int
    j: int
    won: float
    games: float
    bias: float


def rankings(table: Table, pinned: Mapping[str, float] = PINNED) -> list[Ranking]:
    """Rate the participants of one config, best first."""
    names = sorted({n for row in table.standings for n in (row.a, row.b)})
    place = {name: k for k, name in enumerate(names)}
    meetings = list(_meetings(table.standings, place))
    theta, errors, anchored = rate(len(names), meetings, {place[n]: e for n, e in pinned.items() if n in place})
    totals = _totals(table.standings)
    rows = []
    for name, k in place.items():
        wins, losses, draws = totals[name]
        digest = model_of(name)
        generation, status = table.models.get(digest, (-1, "baseline" if not digest else str(ModelStatus.FORMER)))
        rows.append(
            Ranking(
                participant=name,
                elo=theta[k],
                stderr=errors[k],
                games=wins + losses + draws,
                wins=wins,
                losses=losses,
                draws=draws,
                anchored=anchored[k],
                model=digest,
                generation=generation,
                status=status,
            )
        )
    return sorted(rows, key=lambda r: (-r.elo, r.participant))


def rate(
    n: int, meetings: Sequence[_Meeting], pinned: Mapping[int, float]
) -> tuple[list[float], list[float], list[bool]]:
    """Maximum-likelihood Elo, standard error and anchoring of n participants."""
    elo = [0.0] * n
    errors = [0.0] * n
    anchored = [False] * n
    for part in _components(n, meetings):
        inside = set(part)
        met = [m for m in meetings if m.i in inside]
        held = {k: pinned[k] / SCALE for k in part if k in pinned}
        centred = not held
        if centred:
            # Only differences are known: hold one, then move the set to its centre.
            held = {part[0]: 0.0}
        theta, variance = _newton(part, met, held)
        shift = UNANCHORED_ELO - SCALE * sum(theta.values()) / len(part) if centred else 0.0
        for k in part:
            elo[k] = pinned[k] if k in pinned else SCALE * theta[k] + shift
            errors[k] = SCALE * math.sqrt(max(variance.get(k, 0.0), 0.0))
            anchored[k] = not centred
    return elo, errors, anchored


def expected_score(elo: float, players: int = 2) -> float:
    """Share of a group's points for a participant that is `elo` stronger.

    For two players the logistic curve; for n the mean of one seat against n - 1 and n - 1 seats against one.
    """
    g = 10 ** (elo / 400)
    others = players - 1
    return (g / (g + others) + others * g / (others * g + 1)) / 2


def _meetings(standings: Iterable[Standing], place: Mapping[str, int]) -> Iterable[_Meeting]:
    for row in standings:
        i, j = place[row.a], place[row.b]
        for t in row.tally:
            yield _Meeting(i, j, t.wins_a + t.draws / 2, float(t.games), math.log(t.seats_b / t.seats_a))
        yield _Meeting(i, j, VIRTUAL_DRAWS / 2, VIRTUAL_DRAWS, 0.0)


def _totals(standings: Iterable[Standing]) -> dict[str, tuple[int, int, int]]:
    totals: dict[str, tuple[int, int, int]] = {}
    for row in standings:
        for t in row.tally:
            for name, won, lost in ((row.a, t.wins_a, t.wins_b), (row.b, t.wins_b, t.wins_a)):
                w, v, d = totals.get(name, (0, 0, 0))
                totals[name] = (w + won, v + lost, d + t.draws)
    return totals


def _components(n: int, meetings: Iterable[_Meeting]) -> list[list[int]]:
    """Sets of participants connected by games, each in ascending order."""
    root = list(range(n))

    def find(k: int) -> int:
        while root[k] != k:
            root[k] = root[root[k]]
            k = root[k]
        return k

    for m in meetings:
        a, b = find(m.i), find(m.j)
        root[max(a, b)] = min(a, b)
    parts: dict[int, list[int]] = {}
    for k in range(n):
        parts.setdefault(find(k), []).append(k)
    return list(parts.values())


def _newton(
    part: list[int], meetings: Sequence[_Meeting], held: Mapping[int, float]
) -> tuple[dict[int, float], dict[int, float]]:
    """Strengths in log units, and variances of those that are not held."""
    start = sum(held.values()) / len(held)
    theta = {k: held.get(k, start) for k in part}
    free = [k for k in part if k not in held]
    factors: list[_Factor] = []
    for _ in range(MAX_STEPS):
        gradient = dict.fromkeys(free, 0.0)
        information = {k: {k: 0.0} for k in free}
        for m in meetings:
            p = 1 / (1 + math.exp(theta[m.j] - theta[m.i] + m.bias))
            slope = m.won - m.games * p
            weight = m.games * p * (1 - p)
            for k, sign in ((m.i, 1), (m.j, -1)):
                if k in gradient:
                    gradient[k] += sign * slope
                    information[k][k] += weight
            if m.i in gradient and m.j in gradient:
                for k, other in ((m.i, m.j), (m.j, m.i)):
                    information[k][other] = information[k].get(other, 0.0) - weight
        factors = _factors(information)
        step = _solved(factors, gradient)
        longest = max((abs(s) for s in step.values()), default=0.0)
        cut = min(1.0, STEP_LIMIT / longest) if longest else 1.0
        for k, s in step.items():
            theta[k] += cut * s
        if longest < CLOSE:
            break
    return theta, _variances(factors)


#: an eliminated row: its number, its pivot, and what of it is taken from each row that came after it
_Factor = tuple[int, float, list[tuple[int, float]]]


def _factors(rows: dict[int, dict[int, float]]) -> list[_Factor]:
    """Eliminate a symmetric positive definite matrix of sparse rows, used up by it.

    The row with the fewest others first: most models met a champion or two, so next to nothing is filled in and
    hundreds of models take milliseconds.
    """
    queue = [(len(row), k) for k, row in rows.items()]
    heapify(queue)
    factors: list[_Factor] = []
    while queue:
        size, k = heappop(queue)
        if k not in rows or len(rows[k]) != size:
            continue  # it was eliminated, or has another place in the queue
        row = rows.pop(k)
        pivot = row.pop(k)
        shares = [(j, x / pivot) for j, x in row.items()]
        for j, share in shares:
            other = rows[j]
            del other[k]
            for i, x in row.items():
                other[i] = other.get(i, 0.0) - share * x
            heappush(queue, (len(other), j))
        factors.append((k, pivot, shares))
    return factors


def _solved(factors: Sequence[_Factor], right: Mapping[int, float]) -> dict[int, float]:
    """The solution of the eliminated system for one right side."""
    found = dict(right)
    for k, _, shares in factors:
        for j, share in shares:
            found[j] -= share * found[k]
    for k, pivot, shares in reversed(factors):
        found[k] = found[k] / pivot - sum(share * found[j] for j, share in shares)
    return found


def _variances(factors: Sequence[_Factor]) -> dict[int, float]:
    """The diagonal of the inverse."""
    found: dict[int, float] = {}
    for place, (k, _, _) in enumerate(factors):
        column, total = {k: 1.0}, 0.0
        for row, pivot, shares in islice(factors, place, None):
            x = column.get(row)
            if x is not None:
                total += x * x / pivot
                for j, share in shares:
                    column[j] = column.get(j, 0.0) - share * x
        found[k] = total
    return found
