"""Models: candidates become champions on evidence alone, and former champions can return."""

from __future__ import annotations

import pytest

from statemachine.commands import CompleteJob, ConcludeGauntlet, PromoteModel, RollbackModel, StartGauntlet
from statemachine.errors import Code
from statemachine.rows import ModelStatus
from statemachine.values import Evidence, Input
from tests.support.law import (
    CONFIG,
    Cluster,
    claimed,
    completed,
    digest_of,
    given,
    item,
    model_file,
    pairs,
    participant,
    trained,
)

INITIAL = Evidence("initial")


def promoted(name, previous="", evidence=INITIAL, config=CONFIG) -> PromoteModel:
    return PromoteModel(config, digest_of(name), digest_of(previous) if previous else "", evidence)


def crowned(*names: str) -> Cluster:
    """A cluster whose first model is the champion; the others are candidates."""
    cluster = given(*(step for name in names for step in trained(name)))
    cluster.do(promoted(names[0]))
    return cluster


def passed(cluster: Cluster, gauntlet: str, candidate: str, against: str, pairs_won: int = 60) -> Evidence:
    """A gauntlet that the candidate won, up to its accepting verdict; the evidence to promote it."""
    work = f"eval-{gauntlet}"
    cluster.do(
        StartGauntlet(gauntlet, CONFIG, digest_of(candidate), participant(against)),
        item(work, "evaluation", gauntlet=gauntlet),
        claimed(f"claim-{gauntlet}", work_types=("evaluation",)),
        completed(work, match=pairs(participant(candidate), participant(against), wins=pairs_won)),
    )
    evidence = Evidence("gauntlet", gauntlet, 2 * pairs_won, pairs_won, llr_milli=3_000, upper_milli=2_944)
    cluster.do(ConcludeGauntlet(gauntlet, "accepted", evidence))
    return evidence


def status(cluster: Cluster, name: str) -> ModelStatus:
    return cluster.state.models[digest_of(name)].status


def test_a_training_makes_a_candidate_with_the_next_generation():
    cluster = given(item("s"), claimed("c"), completed("s", games=7), *trained("first", work_type="initial"))
    cluster.do(*trained("second"))
    first, second = (cluster.state.models[digest_of(n)] for n in ("first", "second"))
    assert (first.generation, second.generation) == (0, 1)
    assert (second.status, second.config, second.work, second.games_seen) == ("candidate", CONFIG, "train-second", 7)
    assert cluster.state.totals[CONFIG].generations == 1
    assert cluster.events("ModelTrained") == [digest_of("first"), digest_of("second")]


def test_the_same_weights_trained_again_stay_one_model():
    cluster = given(*trained("m"), item("again", "training"), claimed("c"))
    cluster.do(completed("again", counts={}, outputs=(model_file("m"),)))
    assert cluster.state.models[digest_of("m")].work == "train-m"
    assert cluster.state.totals[CONFIG].generations == 1


def test_weights_that_belong_to_another_config_are_not_silently_swallowed():
    cluster = given(*trained("m"), item("other", "training", "hex8_3p"), claimed("c"))
    job = cluster.job("other")
    report = CompleteJob(job.job, job.fence, outputs=(model_file("m"),))
    cluster.refuses(report, Code.CONFLICT, "'other'", CONFIG, "hex8_3p")


def test_a_model_names_the_one_it_was_trained_from():
    cluster = given(item("t", "training", inputs=(Input("init", digest_of("old")),)), claimed("c"))
    cluster.do(completed("t", counts={}, outputs=(model_file("new"),)))
    assert cluster.state.models[digest_of("new")].parent == digest_of("old")


def test_the_first_model_of_a_config_becomes_champion_without_a_test():
    cluster = given(*trained("m"))
    assert cluster.do(promoted("m")) == {"model": digest_of("m"), "previous": ""}
    assert cluster.do(promoted("m")) == {"model": digest_of("m"), "repeat": True}
    assert cluster.state.index.champions == {CONFIG: digest_of("m")}
    assert cluster.state.totals[CONFIG].promotions == 0


def test_an_accepted_gauntlet_promotes_its_candidate_and_the_champion_becomes_a_former_one():
    cluster = crowned("old", "new")
    evidence = passed(cluster, "g1", "new", "old")
    cluster.do(promoted("new", "old", evidence))
    assert (status(cluster, "old"), status(cluster, "new")) == (ModelStatus.FORMER, ModelStatus.CHAMPION)
    assert cluster.state.models[digest_of("new")].evidence == evidence
    assert cluster.state.totals[CONFIG].promotions == 1
    assert cluster.events("ModelPromoted") == [digest_of("old"), digest_of("new")]


def test_a_promotion_tested_against_a_former_champion_is_refused():
    cluster = crowned("old", "first", "second")
    for_first, for_second = passed(cluster, "g1", "first", "old"), passed(cluster, "g2", "second", "old")
    cluster.do(promoted("first", "old", for_first))
    cluster.refuses(promoted("second", "old", for_second), Code.CONFLICT, "test again")
    cluster.refuses(promoted("second", "first", for_second), Code.EVIDENCE, "'g2'", "test again")


def test_a_second_initial_champion_is_refused():
    cluster = crowned("old", "new")
    cluster.refuses(promoted("new", "old"), Code.EVIDENCE, "needs a gauntlet")


def test_an_operator_must_say_why():
    cluster = crowned("old", "new")
    cluster.refuses(promoted("new", "old", Evidence("operator")), Code.EVIDENCE, "note")
    cluster.do(promoted("new", "old", Evidence("operator", note="the gauntlet machine is broken")))


def test_evidence_of_another_kind_is_refused():
    cluster = given(*trained("m"))
    cluster.refuses(promoted("m", evidence=Evidence("trust me")), Code.INVALID, "'trust me'")


def test_evidence_must_be_a_gauntlet_that_accepts_this_very_model():
    cluster = crowned("old", "new", "other")
    evidence = passed(cluster, "g1", "new", "old")
    cluster.refuses(promoted("other", "old", evidence), Code.EVIDENCE, "does not accept")
    cluster.refuses(promoted("new", "old", Evidence("gauntlet", "g9", 120)), Code.NOT_FOUND, "'g9'")
    cluster.do(StartGauntlet("g2", CONFIG, digest_of("other"), participant("old")))
    cluster.refuses(promoted("other", "old", Evidence("gauntlet", "g2", 120)), Code.EVIDENCE, "running")


def test_evidence_must_name_the_games_that_the_table_counted():
    cluster = crowned("old", "new")
    passed(cluster, "g1", "new", "old")
    for games in (0, 119, 1_000):
        cluster.refuses(promoted("new", "old", Evidence("gauntlet", "g1", games)), Code.EVIDENCE, "counted 120")


def test_a_promotion_is_of_a_known_model_of_that_config():
    cluster = given(*trained("m"))
    cluster.refuses(promoted("ghost"), Code.NOT_FOUND)
    cluster.refuses(promoted("m", config="hex8_3p"), Code.INVALID, CONFIG, "hex8_3p")


def test_only_a_candidate_is_promoted():
    cluster = crowned("old", "new")
    cluster.do(StartGauntlet("g", CONFIG, digest_of("new"), participant("old")))
    cluster.do(ConcludeGauntlet("g", "abandoned", Evidence("gauntlet")))
    why = Evidence("operator", note="I like it")
    cluster.refuses(promoted("new", "old", why), Code.ILLEGAL_TRANSITION, "rejected")


def test_a_rollback_puts_a_former_champion_back():
    cluster = crowned("old", "new")
    cluster.do(promoted("new", "old", passed(cluster, "g", "new", "old")))
    back = RollbackModel(CONFIG, digest_of("old"), digest_of("new"), "it blunders")
    assert cluster.do(back) == {"model": digest_of("old"), "previous": digest_of("new")}
    assert cluster.do(back) == {"model": digest_of("old"), "repeat": True}
    assert (status(cluster, "old"), status(cluster, "new")) == (ModelStatus.CHAMPION, ModelStatus.FORMER)
    assert cluster.state.totals[CONFIG].promotions == 1
    assert cluster.events("PromotionRolledBack") == [digest_of("old")]


def test_a_rollback_needs_a_former_champion_and_the_present_one():
    cluster = crowned("old", "new")
    old, new = digest_of("old"), digest_of("new")
    cluster.refuses(RollbackModel(CONFIG, new, old, "x"), Code.ILLEGAL_TRANSITION, "candidate")
    cluster.do(promoted("new", "old", passed(cluster, "g", "new", "old")))
    cluster.refuses(RollbackModel(CONFIG, old, old, "x"), Code.CONFLICT, new[:12])
    cluster.refuses(RollbackModel("hex8_3p", old, new, "x"), Code.INVALID, "hex8_3p")
    cluster.refuses(RollbackModel(CONFIG, digest_of("ghost"), new, "x"), Code.NOT_FOUND)


@pytest.mark.parametrize("work_type", ["selfplay", "export"])
def test_any_work_that_makes_a_model_file_makes_a_candidate(work_type):
    cluster = given(item("w", work_type), claimed("c"), completed("w", outputs=(model_file("m"),)))
    assert status(cluster, "m") is ModelStatus.CANDIDATE
