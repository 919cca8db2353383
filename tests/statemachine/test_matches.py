"""Matches: integers, counted once, summed per pair, taken back exactly."""

from __future__ import annotations

import pytest

from statemachine.commands import RecordMatch, VoidMatch
from statemachine.errors import Code
from statemachine.values import MatchResult, Tally
from tests.support.law import (
    CONFIG,
    claimed,
    completed,
    digest_of,
    given,
    item,
    pairs,
    participant,
    rows_digest,
    trained,
)


def record(name, result, config=CONFIG) -> RecordMatch:
    return RecordMatch(match=name, config=config, result=result)


def test_a_match_is_counted_once_by_its_id():
    cluster = given()
    once = record("m1", pairs("heuristic", "random", wins=3))
    assert cluster.do(once) == {"match": "m1"}
    assert cluster.do(once) == {"match": "m1", "repeat": True}
    (standing,) = cluster.state.standings.values()
    assert (standing.matches, standing.tally[0].wins_a) == (1, 6)


def test_the_same_id_with_other_results_is_refused():
    cluster = given(record("m1", pairs("heuristic", "random", wins=3)))
    cluster.refuses(record("m1", pairs("heuristic", "random", wins=4)), Code.CONFLICT, "'m1'")
    cluster.refuses(record("m1", pairs("heuristic", "random", wins=3), "hex8_3p"), Code.CONFLICT, "'m1'")


def test_a_pair_has_one_standing_whoever_was_named_first():
    cluster = given(
        record("m1", pairs("heuristic", "random", wins=3, draws=1)),
        record("m2", pairs("random", "heuristic", wins=2, losses=5)),
    )
    (standing,) = cluster.state.standings.values()
    assert (standing.a, standing.b, standing.matches) == ("heuristic", "random", 2)
    assert standing.tally == (Tally(1, 1, 16, 4, 2),)
    assert standing.histogram == (2, 0, 1, 0, 8)


def test_games_with_other_numbers_of_seats_are_summed_apart():
    first = MatchResult("a", "b", (Tally(1, 2, 1, 1, 0), Tally(2, 1, 2, 0, 0)))
    second = MatchResult("b", "a", (Tally(2, 1, 3, 0, 0),))
    cluster = given(record("m1", first), record("m2", second))
    (standing,) = cluster.state.standings.values()
    assert standing.tally == (Tally(1, 2, 1, 4, 0), Tally(2, 1, 2, 0, 0))


def test_a_match_without_games_is_no_result():
    given().refuses(record("m1", pairs("a", "b")), Code.INVALID, "no game was played")


def test_nobody_plays_against_oneself_for_a_rating():
    given().refuses(record("m1", pairs("a", "a", wins=1)), Code.INVALID, "itself")


def test_a_participant_whose_model_is_unknown_is_refused():
    given().refuses(record("m1", pairs(participant("ghost"), "random", wins=1)), Code.NOT_FOUND, "nobody registered")


def test_a_two_player_model_never_enters_a_four_player_table():
    cluster = given(*trained("m2p"))
    result = pairs(participant("m2p"), "random", wins=1)
    cluster.refuses(record("m1", result, "square8_4p"), Code.INVALID, CONFIG, "square8_4p")
    cluster.do(record("m1", result))


@pytest.mark.parametrize("histogram", [(0, 0, 0, 0, 1), (0, 1, 0, 0, 1), (0, 0, 0, 2), (0, 0, 0, 0, 2, 0)])
def test_groups_that_are_not_the_games_of_the_tally_are_refused(histogram):
    result = MatchResult("a", "b", (Tally(1, 1, 4, 0, 0),), histogram)
    given().refuses(record("m1", result), Code.INVALID, "half points")


def test_a_match_without_groups_is_a_result_for_the_table():
    cluster = given(record("m1", MatchResult("a", "b", (Tally(1, 1, 4, 1, 0),))))
    (standing,) = cluster.state.standings.values()
    assert standing.histogram == ()


def test_a_bad_workers_match_is_taken_back_exactly():
    cluster = given(record("m1", pairs("a", "b", wins=3, draws=1)))
    before = dict(cluster.state.standings)
    cluster.do(record("m2", MatchResult("b", "a", (Tally(1, 2, 5, 4, 3),))))
    assert cluster.do(VoidMatch("m2", "its engine was broken")) is True
    assert cluster.state.standings == before
    assert cluster.state.matches["m2"].voided == "its engine was broken"
    assert cluster.events("MatchVoided") == ["m2"]


def test_voiding_the_only_match_of_a_pair_leaves_no_trace_in_the_table():
    cluster = given(record("m1", pairs("a", "b", wins=3)), VoidMatch("m1", ""))
    assert cluster.state.standings == {}
    assert cluster.state.matches["m1"].voided == "void"


def test_a_match_is_voided_once():
    cluster = given(record("m1", pairs("a", "b", wins=3)), record("m2", pairs("a", "b", wins=1)), VoidMatch("m1", "x"))
    before = rows_digest(cluster.state)
    assert cluster.do(VoidMatch("m1", "x")) is False
    assert rows_digest(cluster.state) == before
    cluster.refuses(VoidMatch("m9", "x"), Code.NOT_FOUND, "'m9'")


def test_an_item_queued_anew_under_an_old_name_records_a_match_of_its_own():
    cluster = given(
        record("e1", pairs("x", "y", wins=1)), item("e1", "evaluation"), claimed("c1"),
        completed("e1", match=pairs("a", "b", wins=2)),
    )  # fmt: skip
    assert list(cluster.state.matches) == ["e1", "e1.1@1"]


def test_a_model_is_known_by_its_bytes_and_not_by_its_file_name():
    cluster = given(*trained("m1"), *trained("m2"))
    assert {digest_of("m1"), digest_of("m2")} == set(cluster.state.models)
