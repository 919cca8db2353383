"""Gauntlets: an error or zero games is never a pass, and a verdict's numbers are the table's."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from statemachine.commands import ConcludeGauntlet, PromoteModel, StartGauntlet, VoidMatch
from statemachine.errors import Code
from statemachine.rows import GauntletStatus, ModelStatus
from statemachine.values import Evidence, MatchResult, Tally
from tests.statemachine.invariants import plain_indexes
from tests.support.law import (
    CONFIG,
    Cluster,
    claimed,
    completed,
    digest_of,
    given,
    item,
    pairs,
    participant,
    trained,
)

START = StartGauntlet("g", CONFIG, digest_of("new"), participant("old"), floor_games=10, cap_games=40)
NEW, OLD = participant("new"), participant("old")


def gauntlet() -> Cluster:
    return given(*trained("old"), *trained("new"), START)


def played(cluster: Cluster, work: str, result: MatchResult, gauntlet: str = "g") -> Cluster:
    """An evaluation of the gauntlet ends with this result."""
    cluster.do(
        item(work, "evaluation", gauntlet=gauntlet),
        claimed(f"claim-{work}", work_types=("evaluation",)),
        completed(work, match=result),
    )
    return cluster


def verdict(word: str, games: int = 0, groups: int = 0, llr: int = 3_000, upper: int = 2_944) -> ConcludeGauntlet:
    return ConcludeGauntlet("g", word, Evidence("gauntlet", "g", games, groups, llr, -2_944, upper))


def test_a_gauntlet_is_started_once():
    cluster = gauntlet()
    assert cluster.do(START) == {"gauntlet": "g", "status": "running", "repeat": True}
    cluster.refuses(replace(START, cap_games=50), Code.CONFLICT, "'g'")
    assert cluster.events("GauntletStarted") == ["g"]


def test_a_candidate_is_a_known_model_of_the_config_and_not_its_own_opponent():
    cluster = given(*trained("new"))
    cluster.refuses(replace(START, candidate=digest_of("ghost")), Code.NOT_FOUND)
    cluster.refuses(replace(START, config="hex8_3p"), Code.INVALID, "hex8_3p", CONFIG)
    cluster.refuses(replace(START, opponent=NEW), Code.INVALID, "itself")


def test_a_test_that_could_decide_nothing_is_refused():
    cluster = given(*trained("old"), *trained("new"))
    cluster.refuses(replace(START, elo0=70, elo1=70), Code.INVALID, "elo1")
    cluster.refuses(replace(START, cap_games=9), Code.INVALID, "floor")


def test_games_are_added_from_the_candidates_side_whoever_was_named_first():
    cluster = played(gauntlet(), "e1", pairs(NEW, OLD, wins=3, draws=1))
    played(cluster, "e2", pairs(OLD, NEW, wins=2))
    row = cluster.state.gauntlets["g"]
    assert row.tally == (Tally(1, 1, 6, 4, 2),)
    assert row.histogram == (2, 0, 1, 0, 3)
    assert [m.gauntlet for m in cluster.state.matches.values()] == ["g", "g"]


def test_games_against_baselines_are_counted_apart():
    cluster = played(gauntlet(), "e1", pairs("random", NEW, losses=5))
    played(cluster, "e2", pairs(NEW, "random", wins=1))
    row = cluster.state.gauntlets["g"]
    assert (row.tally, row.baseline_games) == ((), {"random": 12})


def test_a_match_without_the_candidate_does_not_belong_to_its_gauntlet():
    cluster = gauntlet()
    cluster.do(item("e1", "evaluation", gauntlet="g"), claimed("c", work_types=("evaluation",)))
    cluster.refuses(completed("e1", match=pairs(OLD, "random", wins=9)), Code.INVALID, "'g'")
    assert cluster.status("e1") == "claimed"


def test_a_match_counts_for_ratings_when_its_gauntlet_is_over_or_unknown():
    cluster = gauntlet().when(verdict("abandoned"))
    played(cluster, "e1", pairs(NEW, OLD, wins=3))
    played(cluster, "e2", pairs(NEW, OLD, wins=3), gauntlet="nobody")
    assert cluster.state.gauntlets["g"].tally == ()
    assert [m.gauntlet for m in cluster.state.matches.values()] == ["", ""]
    assert len(cluster.state.standings) == 1


def test_a_voided_match_is_taken_out_of_a_gauntlet_that_is_still_open():
    cluster = played(gauntlet(), "e1", pairs(NEW, OLD, wins=3, draws=1))
    before = cluster.state.gauntlets["g"]
    played(cluster, "e2", pairs(OLD, NEW, wins=9))
    played(cluster, "e3", pairs(NEW, "random", wins=2))
    second, third = list(cluster.state.matches)[1:]
    cluster.do(VoidMatch(second, "broken engine"), VoidMatch(third, "broken engine"))
    assert replace(cluster.state.gauntlets["g"], baseline_games={}) == before
    assert cluster.state.gauntlets["g"].baseline_games == {"random": 0}


def test_a_verdict_stays_when_a_match_is_voided_after_it():
    cluster = played(gauntlet(), "e1", pairs(NEW, OLD, wins=10))
    cluster.do(verdict("accepted", 20, 10))
    before = cluster.state.gauntlets["g"]
    cluster.do(VoidMatch(next(iter(cluster.state.matches)), "too late"))
    assert cluster.state.gauntlets["g"] == before


def test_a_match_that_no_gauntlet_counted_is_not_taken_out_of_a_later_one():
    cluster = given(*trained("old"), *trained("new"))
    played(cluster, "early", pairs(NEW, OLD, wins=2))
    cluster.do(START, VoidMatch(next(iter(cluster.state.matches)), "early"))
    assert cluster.state.gauntlets["g"].tally == ()


@pytest.mark.parametrize("word", ["accepted", "rejected", "inconclusive"])
def test_zero_games_are_no_verdict(word):
    gauntlet().refuses(verdict(word), Code.EVIDENCE, "0 games", "floor of 10")


def test_a_verdict_made_from_other_games_than_the_table_holds_is_refused():
    cluster = played(gauntlet(), "e1", pairs(NEW, OLD, wins=10))
    for games, groups in ((18, 10), (20, 9), (22, 11), (0, 0)):
        cluster.refuses(verdict("accepted", games, groups), Code.EVIDENCE, f"{games} games", "20")


@pytest.mark.parametrize(("llr", "upper"), [(2_943, 2_944), (0, 0), (-1, -2)])
def test_a_likelihood_ratio_below_the_bound_accepts_nobody(llr, upper):
    cluster = played(gauntlet(), "e1", pairs(NEW, OLD, wins=10))
    cluster.refuses(verdict("accepted", 20, 10, llr, upper), Code.EVIDENCE, str(llr))


@pytest.mark.parametrize("word", ["rejected", "inconclusive", "abandoned"])
def test_a_candidate_that_is_not_accepted_is_rejected(word):
    cluster = played(gauntlet(), "e1", pairs(NEW, OLD, losses=10))
    assert cluster.do(verdict(word, 20, 10)) == word
    assert cluster.do(verdict(word, 20, 10)) == word
    assert cluster.state.models[digest_of("new")].status is ModelStatus.REJECTED
    assert cluster.events("CandidateRejected") == [digest_of("new")]
    assert cluster.state.gauntlets["g"].finished_at_ms == cluster.now_ms


def test_a_model_that_an_operator_promoted_meanwhile_is_not_rejected_by_its_gauntlet():
    cluster = gauntlet()
    cluster.do(PromoteModel(CONFIG, digest_of("new"), "", Evidence("initial")), verdict("abandoned"))
    assert cluster.state.models[digest_of("new")].status is ModelStatus.CHAMPION


def test_an_accepted_candidate_waits_for_its_promotion():
    cluster = played(gauntlet(), "e1", pairs(NEW, OLD, wins=10))
    cluster.do(verdict("accepted", 20, 10))
    assert cluster.state.gauntlets["g"].status is GauntletStatus.ACCEPTED
    assert cluster.state.models[digest_of("new")].status is ModelStatus.CANDIDATE


def test_a_second_verdict_is_refused_and_so_is_an_unknown_word():
    cluster = gauntlet()
    cluster.refuses(verdict("passed"), Code.INVALID, "'passed'", "accepted")
    cluster.refuses(verdict("running"), Code.INVALID, "'running'")
    cluster.refuses(replace(verdict("abandoned"), gauntlet="x"), Code.NOT_FOUND, "'x'")
    cluster.do(verdict("abandoned"))
    cluster.refuses(verdict("accepted"), Code.ILLEGAL_TRANSITION, "abandoned")


def test_the_indexes_do_not_remember_in_which_order_evaluations_were_taken_up():
    cluster = gauntlet().when(item("e1", "evaluation", gauntlet="g"), item("e2", "evaluation", gauntlet="g"))
    cluster.do(claimed("c1", work_types=("evaluation",)))
    assert cluster.state.index.gauntlet_work == {"g": 2}
    assert plain_indexes(cluster.state.index) == plain_indexes(cluster.restored().state.index)


def test_a_superseded_gauntlet_leaves_its_candidate_to_be_tested_anew():
    cluster = gauntlet()
    assert cluster.do(verdict("superseded")) == "superseded"
    assert cluster.state.models[digest_of("new")].status is ModelStatus.CANDIDATE
    assert cluster.events("CandidateRejected") == []
