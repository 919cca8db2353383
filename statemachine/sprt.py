"""The sequential test of a gauntlet: how likely the counted groups are under two hypotheses.

Groups (an opening with all seat rotations) are the unit, since games of one opening depend on each other; for two
players their histogram is the pentanomial one. The log-likelihood ratio of "elo1 stronger" against "elo0 stronger"
is the generalised one in its normal approximation:

    LLR = N (s1 - s0) (2 m - s0 - s1) / (2 v)

with N groups, mean m and variance v of their scores and s0, s1 the expected scores; bounds by Wald,
log(beta / (1 - alpha)) and log((1 - beta) / alpha). Reference: M. Van den Bergh, "A practical introduction to the
GSPRT" (2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

from statemachine.commands import StartGauntlet
from statemachine.elo import expected_score
from statemachine.rows import Gauntlet, GauntletStatus
from statemachine.values import Evidence

#: weight given to every bin, so that a run of equal groups has a variance
PRIOR = 1e-3
#: variance below which a mean is not trusted to be that certain (one half point in a hundred groups)
MIN_VARIANCE = 1e-3


class Reading(Struct, frozen=True):
    """Where a test stands: `verdict` is empty while it goes on."""

    verdict: str
    games: int
    groups: int
    score: float
    llr: float
    lower: float
    upper: float

    def evidence(self, gauntlet: str) -> Evidence:
        return Evidence(
            kind="gauntlet",
            gauntlet=gauntlet,
            games=self.games,
            groups=self.groups,
            llr_milli=math.floor(self.llr * 1000),
            lower_milli=math.floor(self.lower * 1000),
            upper_milli=math.floor(self.upper * 1000),
        )


def llr(histogram: Sequence[int], elo0: float, elo1: float, players: int = 2) -> float:
    """Log-likelihood ratio of a histogram over half points (bin h of 0..2G is h half points in a group of G games)."""
    top = len(histogram) - 1
    if top < 1 or not sum(histogram):
        return 0.0
    weights = [count + PRIOR for count in histogram]
    total = sum(weights)
    mean = sum(w * h / top for h, w in enumerate(weights)) / total
    variance = max(sum(w * (h / top - mean) ** 2 for h, w in enumerate(weights)) / total, MIN_VARIANCE)
    s0, s1 = expected_score(elo0, players), expected_score(elo1, players)
    return sum(histogram) * (s1 - s0) * (2 * mean - s0 - s1) / (2 * variance)


def bounds(spec: StartGauntlet) -> tuple[float, float]:
    """Wald's bounds for the gauntlet's error rates."""
    alpha, beta = spec.alpha_milli / 1000, spec.beta_milli / 1000
    return math.log(beta / (1 - alpha)), math.log((1 - beta) / alpha)


def read(gauntlet: Gauntlet, players: int = 2) -> Reading:
    """Where a gauntlet's test stands; below the games floor it is always open."""
    spec = gauntlet.spec
    games = sum(t.games for t in gauntlet.tally)
    groups = sum(gauntlet.histogram)
    ratio = llr(gauntlet.histogram, spec.elo0, spec.elo1, players)
    lower, upper = bounds(spec)
    top = max(len(gauntlet.histogram) - 1, 1)
    score = sum(h * n for h, n in enumerate(gauntlet.histogram)) / (top * groups) if groups else 0.0
    verdict = ""
    if games >= spec.floor_games:
        if ratio >= upper:
            verdict = str(GauntletStatus.ACCEPTED)
        elif ratio <= lower:
            verdict = str(GauntletStatus.REJECTED)
        elif games >= spec.cap_games:
            verdict = str(GauntletStatus.INCONCLUSIVE)
    return Reading(verdict, games, groups, score, ratio, lower, upper)
