"""The sequential test: its sign, its symmetry, its bounds, and its error rates measured."""

from __future__ import annotations

import math
import random

import pytest

from statemachine.commands import StartGauntlet
from statemachine.rows import Gauntlet, GauntletStatus
from statemachine.sprt import MIN_VARIANCE, bounds, llr, read
from statemachine.values import Tally
from tests.support.law import digest_of

SPEC = StartGauntlet("g", "square8_2p", digest_of("new"), "random", elo0=0, elo1=70, floor_games=40, cap_games=4_000)


def gauntlet(histogram, spec=SPEC) -> Gauntlet:
    """A running gauntlet of two-player pairs with this pentanomial histogram."""
    points = sum(h * n for h, n in enumerate(histogram))
    games = 2 * sum(histogram)
    wins, odd = divmod(points, 2)
    tally = Tally(1, 1, wins, games - wins - odd, odd)
    return Gauntlet(spec, GauntletStatus.RUNNING, 1, 0, (tally,), tuple(histogram))


def test_a_winner_has_a_positive_ratio_and_a_loser_a_negative_one():
    assert llr((0, 2, 10, 20, 8), 0, 70) > 0
    assert llr((8, 20, 10, 2, 0), 0, 70) < 0


def test_the_ratio_is_symmetric_about_the_middle_of_both_hypotheses():
    histogram = (3, 5, 20, 14, 8)
    assert llr(histogram, -35, 35) == pytest.approx(-llr(histogram[::-1], -35, 35))
    assert llr((5, 5, 5, 5, 5), -35, 35) == pytest.approx(0, abs=1e-9)


def test_the_ratio_grows_with_the_number_of_groups_of_one_mixture():
    once, tenfold = llr((0, 2, 10, 20, 8), 0, 70), llr((0, 20, 100, 200, 80), 0, 70)
    assert tenfold == pytest.approx(10 * once, rel=1e-2)


def test_correlated_games_of_one_opening_weigh_less_than_independent_ones():
    """Pairs that are won or lost whole vary more, so the same score is worth less."""
    correlated, independent = (40, 0, 0, 0, 60), (4, 16, 30, 36, 14)
    scores = [sum(h * n for h, n in enumerate(x)) / (4 * sum(x)) for x in (correlated, independent)]
    assert scores[0] == scores[1]
    assert 0 < llr(correlated, 0, 70) < llr(independent, 0, 70)


def test_the_normal_approximation_is_the_formula_it_claims_to_be():
    histogram = (10, 20, 40, 20, 30)
    n = sum(histogram)
    mean = sum(h / 4 * k for h, k in enumerate(histogram)) / n
    variance = sum(k * (h / 4 - mean) ** 2 for h, k in enumerate(histogram)) / n
    s0, s1 = 0.5, 1 / (1 + 10 ** (-70 / 400))
    assert llr(histogram, 0, 70) == pytest.approx(n * (s1 - s0) * (2 * mean - s0 - s1) / (2 * variance), rel=1e-3)


@pytest.mark.parametrize("histogram", [(), (5,), (0, 0, 0, 0, 0)])
def test_nothing_played_says_nothing(histogram):
    assert llr(histogram, 0, 70) == 0.0


def test_a_run_of_equal_groups_has_a_least_variance_and_not_none():
    s1 = 1 / (1 + 10 ** (-70 / 400))
    assert llr((0, 0, 50, 0, 0), 0, 70) == pytest.approx(50 * (s1 - 0.5) * (0.5 - s1) / (2 * MIN_VARIANCE), rel=1e-3)
    assert math.isfinite(llr((0, 0, 0, 0, 500), 0, 70))


def test_bounds_are_walds():
    lower, upper = bounds(SPEC)
    assert (lower, upper) == (pytest.approx(math.log(0.05 / 0.95)), pytest.approx(math.log(0.95 / 0.05)))


def test_below_the_floor_the_test_is_open_however_clear_it_looks():
    reading = read(gauntlet((0, 0, 0, 0, 19)))
    assert (reading.verdict, reading.games, reading.groups, reading.score) == ("", 38, 19, 1.0)
    assert read(gauntlet((0, 0, 0, 0, 20))).verdict == "accepted"
    assert read(gauntlet((20, 0, 0, 0, 0))).verdict == "rejected"


def test_nothing_played_is_an_open_test():
    empty = Gauntlet(SPEC, GauntletStatus.RUNNING, 1, 0)
    assert (read(empty).verdict, read(empty).score, read(empty).games) == ("", 0.0, 0)


def test_at_the_cap_an_undecided_test_is_inconclusive():
    spec = StartGauntlet("g", "square8_2p", digest_of("new"), "random", elo1=70, floor_games=4, cap_games=60)
    undecided = (3, 7, 7, 9, 4)
    assert read(gauntlet(undecided, spec)).verdict == "inconclusive"
    assert read(gauntlet((3, 7, 7, 8, 4), spec)).verdict == ""


def test_a_readings_evidence_passes_the_bound_exactly_when_the_reading_did():
    for wins in range(20, 60):
        reading = read(gauntlet((10, 0, 0, 10, wins)))
        evidence = reading.evidence("g")
        assert (evidence.llr_milli >= evidence.upper_milli) == (reading.llr >= reading.upper)
        assert (evidence.games, evidence.groups, evidence.gauntlet) == (reading.games, reading.groups, "g")


def outcome(elo: float, rng: random.Random, draws: float = 0.2) -> str:
    """One simulated test: pairs with an opening that favours one side, until a verdict."""
    histogram = [0] * 5
    score = 1 / (1 + 10 ** (-elo / 400))
    while True:
        lean = rng.uniform(-0.2, 0.2)
        points = 0
        for side in (lean, -lean):
            p = score + side
            win = p - draws / 2
            r = rng.random()
            points += 2 if r < win else 1 if r < win + draws else 0
        histogram[points] += 1
        if sum(histogram) % 10 == 0:
            verdict = read(gauntlet(histogram)).verdict
            if verdict:
                return verdict


@pytest.mark.parametrize(("elo", "wrong"), [(0, "accepted"), (70, "rejected")])
def test_the_error_rates_are_about_those_that_were_asked_for(elo, wrong):
    rng = random.Random(2024)
    runs = 400
    mistakes = sum(outcome(elo, rng) == wrong for _ in range(runs))
    assert mistakes / runs <= 0.05 * 1.5
    assert mistakes > 0, "a test without any mistake is not the one that was asked for"
