"""Ratings: closed forms, a published implementation and a numerical Hessian must agree with them."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import choix
import numpy as np
import pytest

from statemachine.commands import RecordMatch, VoidMatch
from statemachine.elo import PINNED, SCALE, UNANCHORED_ELO, VIRTUAL_DRAWS, Table, expected_score, rankings, table_of
from statemachine.rows import Standing
from statemachine.values import Tally
from tests.support.law import CONFIG, given, pairs, participant, trained


def table(*results: tuple[str, str, int, int, int]) -> Table:
    """Standings of single-seat games: (a, b, wins of a, wins of b, draws)."""
    rows = tuple(Standing(CONFIG, a, b, (Tally(1, 1, w, v, d),), (), 1) for a, b, w, v, d in results)
    return Table(CONFIG, rows, {})


def rated(made: Table, pinned=None) -> dict[str, float]:
    return {r.participant: r.elo for r in rankings(made, {} if pinned is None else pinned)}


@pytest.mark.parametrize(("wins", "losses", "draws"), [(30, 10, 0), (7, 7, 3), (100, 0, 0), (1, 90, 9)])
def test_two_players_differ_by_the_closed_form_with_two_virtual_draws(wins, losses, draws):
    elo = rated(table(("a", "b", wins, losses, draws)))
    half = draws / 2 + VIRTUAL_DRAWS / 2
    assert elo["a"] - elo["b"] == pytest.approx(400 * math.log10((wins + half) / (losses + half)), abs=1e-6)


@pytest.mark.parametrize("games", [1, 2**30, 2**40])
def test_a_clean_sheet_stays_finite_even_after_a_million_million_games(games):
    """Newton's steps end at the precision of a float or at their number, whichever comes first."""
    rows = rankings(table(("a", "b", games, 0, 0)))
    assert rows[0].elo - rows[1].elo == pytest.approx(400 * math.log10(games + 1), rel=1e-6)
    assert all(math.isfinite(r.elo) and math.isfinite(r.stderr) for r in rows)


def test_those_who_never_met_a_pinned_baseline_are_centred_and_say_that_they_float():
    rows = rankings(table(("a", "b", 3, 1, 0), ("b", "c", 3, 1, 0)))
    assert sum(r.elo for r in rows) / 3 == pytest.approx(UNANCHORED_ELO)
    assert not any(r.anchored for r in rows)
    assert [r.participant for r in rows] == ["a", "b", "c"]


def test_a_pinned_baseline_never_drifts_whatever_is_played_against_it():
    rows = {r.participant: r for r in rankings(table(("a", "random", 500, 3, 0), ("random", "z", 0, 40, 1)))}
    assert (rows["random"].elo, rows["random"].stderr) == (PINNED["random"], 0.0)
    assert all(r.anchored for r in rows.values())
    assert rows["a"].elo - PINNED["random"] == pytest.approx(400 * math.log10(501 / 4), abs=1e-6)


def test_two_pinned_baselines_hold_both_and_a_newcomer_finds_its_place_between():
    pinned = {"weak": 400.0, "strong": 1_200.0}
    elo = rated(table(("strong", "weak", 50, 50, 0), ("new", "weak", 60, 20, 0), ("new", "strong", 20, 60, 0)), pinned)
    assert (elo["weak"], elo["strong"]) == (400.0, 1_200.0)
    assert elo["new"] == pytest.approx(800.0, abs=1e-6)


def test_islands_of_participants_do_not_move_each_other():
    alone = rated(table(("a", "random", 9, 3, 0)), PINNED)
    beside = rated(table(("a", "random", 9, 3, 0), ("x", "y", 4, 4, 0)), PINNED)
    assert beside["a"] == alone["a"]
    assert beside["x"] == pytest.approx(UNANCHORED_ELO)


def test_strengths_agree_with_the_published_bradley_terry_implementation():
    rng = random.Random(11)
    names = [f"p{n}" for n in range(6)]
    strength = {n: rng.uniform(-1.5, 1.5) for n in names}
    results, data = [], []
    for i, a in enumerate(names):
        for j in range(i + 1, len(names)):
            b = names[j]
            p = 1 / (1 + math.exp(strength[b] - strength[a]))
            wins = sum(rng.random() < p for _ in range(40))
            results.append((a, b, wins, 40 - wins, 0))
            # A virtual draw is half a win for both; two of them are one win each.
            data += [(i, j)] * (wins + 1) + [(j, i)] * (40 - wins + 1)
    theirs = choix.ilsr_pairwise(len(names), data, alpha=0.0, tol=1e-12)
    ours = rated(table(*results))
    for name, theta in zip(names, theirs - theirs.mean(), strict=True):
        assert (ours[name] - UNANCHORED_ELO) / SCALE == pytest.approx(theta, abs=1e-6)


def test_more_seats_are_an_advantage_that_is_not_counted_as_strength():
    """Equals win in proportion to their seats (Plackett-Luce), and are rated equal then."""
    even = Table(CONFIG, (Standing(CONFIG, "a", "b", (Tally(1, 2, 100, 200, 0), Tally(2, 1, 200, 100, 0))),), {})
    elo = rated(even)
    assert elo["a"] == pytest.approx(elo["b"], abs=1e-6)


def test_the_likelihood_of_multi_seat_games_is_the_one_of_plackett_luce():
    """At the maximum, expected wins equal counted wins; with a strength ratio g one seat beats two g : 2."""
    ratio = 3.0
    games = 10**9
    first = round(games * ratio / (ratio + 2))
    second = round(games * 2 * ratio / (2 * ratio + 1))
    tally = (Tally(1, 2, first, games - first, 0), Tally(2, 1, second, games - second, 0))
    elo = rated(Table(CONFIG, (Standing(CONFIG, "a", "b", tally),), {}))
    assert elo["a"] - elo["b"] == pytest.approx(400 * math.log10(ratio), abs=1e-3)


def log_likelihood(theta: np.ndarray, results: list[tuple[int, int, float, float]]) -> float:
    return sum(
        w * -math.log1p(math.exp(theta[j] - theta[i])) + v * -math.log1p(math.exp(theta[i] - theta[j]))
        for i, j, w, v in results
    )


def test_standard_errors_are_those_of_a_numerical_hessian():
    played = table(("a", "b", 30, 12, 4), ("b", "random", 25, 5, 0), ("a", "random", 40, 2, 2))
    rows = {r.participant: r for r in rankings(played)}
    names = ["a", "b"]
    place = {"a": 0, "b": 1, "random": 2}
    results = [
        (place[s.a], place[s.b], t.wins_a + t.draws / 2 + VIRTUAL_DRAWS / 2, t.wins_b + t.draws / 2 + VIRTUAL_DRAWS / 2)
        for s in played.standings
        for t in s.tally
    ]
    at = np.array([rows[n].elo / SCALE for n in ("a", "b", "random")])
    h = 1e-4
    hessian = np.zeros((2, 2))
    for i in range(2):
        for j in range(2):
            total = 0.0
            for si in (1, -1):
                for sj in (1, -1):
                    moved = at.copy()
                    moved[i] += si * h
                    moved[j] += sj * h
                    total += si * sj * log_likelihood(moved, results)
            hessian[i, j] = total / (4 * h * h)
    errors = SCALE * np.sqrt(np.diag(np.linalg.inv(-hessian)))
    assert [rows[n].stderr for n in names] == pytest.approx(errors, rel=1e-3)


def test_more_games_make_smaller_errors_by_the_square_root():
    few = rankings(table(("a", "random", 300, 100, 0)))[0].stderr
    many = rankings(table(("a", "random", 30_000, 10_000, 0)))[0].stderr
    assert few / many == pytest.approx(10, rel=0.01)


def test_wins_and_losses_add_up_over_the_table():
    rows = rankings(table(("a", "b", 30, 12, 4), ("b", "c", 25, 5, 0), ("a", "c", 40, 2, 2)))
    assert sum(r.wins for r in rows) == sum(r.losses for r in rows) == 114
    assert [(r.participant, r.games, r.draws) for r in rows] == [("a", 90, 6), ("b", 76, 4), ("c", 74, 2)]


def test_the_same_counts_give_the_same_table_in_any_order_of_matches():
    matches = [
        RecordMatch("m1", CONFIG, pairs("a", "random", wins=5, draws=1)),
        RecordMatch("m2", CONFIG, pairs("b", "a", wins=3, losses=2)),
        RecordMatch("m3", CONFIG, pairs("random", "b", losses=9)),
    ]
    tables = [
        rankings(table_of(given(*(matches[n] for n in order)).state, CONFIG))
        for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0))
    ]
    for other in tables[1:]:
        for ours, theirs in zip(tables[0], other, strict=True):
            assert ours.participant == theirs.participant
            assert ours.elo == pytest.approx(theirs.elo, abs=1e-9)


def test_a_voided_match_is_gone_from_the_ratings():
    cluster = given(RecordMatch("m1", CONFIG, pairs("a", "random", wins=5)))
    before = rankings(table_of(cluster.state, CONFIG))
    cluster.do(RecordMatch("m2", CONFIG, pairs("a", "random", losses=90)), VoidMatch("m2", "broken"))
    assert rankings(table_of(cluster.state, CONFIG)) == before
    cluster.do(VoidMatch("m1", "broken too"))
    assert rankings(table_of(cluster.state, CONFIG)) == []


def test_a_table_holds_one_config_and_knows_its_models():
    cluster = given(*trained("m"), RecordMatch("m1", CONFIG, pairs(participant("m"), "random", wins=5)))
    cluster.do(RecordMatch("m2", "hex8_3p", pairs("a", "b", wins=5)))
    best, worst = rankings(table_of(cluster.state, CONFIG))
    assert (best.participant, best.generation, best.status) == (participant("m"), 1, "candidate")
    assert (worst.participant, worst.model, worst.generation, worst.status) == ("random", "", -1, "baseline")


def test_a_share_of_points_is_the_logistic_curve_for_two_players():
    assert expected_score(0) == 0.5
    assert expected_score(200) == pytest.approx(1 / (1 + 10 ** (-200 / 400)))
    assert expected_score(200) + expected_score(-200) == pytest.approx(1)


@pytest.mark.parametrize("players", [2, 3, 4])
def test_an_equal_gets_half_the_points_of_a_group_with_any_number_of_players(players):
    assert expected_score(0, players) == pytest.approx(0.5)
    assert expected_score(100, players) + expected_score(-100, players) == pytest.approx(1)
    assert expected_score(100, players) > 0.5


def test_absurd_counts_that_contradict_each_other_still_end_in_a_finite_table():
    huge = 2**40
    rows = rankings(
        table(("a", "b", huge // 1024, 1, 1), ("a", "c", 1, huge, huge), ("a", "d", 2, 2, 2), ("b", "c", huge, 1, 0))
    )
    assert {r.participant for r in rows} == set("abcd")
    assert all(math.isfinite(r.elo) and math.isfinite(r.stderr) for r in rows)


def test_hundreds_of_champions_one_after_the_other_are_rated_exactly_and_at_once():
    names = ["random", *(f"model{n:04d}" for n in range(500))]
    beaten = table(*((new, old, 60, 40, 0) for old, new in pairwise(names)))
    found = {row.participant: row for row in rankings(beaten)}
    gain, variance = 400 * math.log10(61 / 41), (400 / math.log(10)) ** 2 / (102 * (61 / 102) * (41 / 102))
    for number, name in enumerate(names):
        assert found[name].elo == pytest.approx(400 + number * gain, abs=1e-3)
        assert found[name].stderr == pytest.approx(math.sqrt(number * variance), rel=1e-6)
