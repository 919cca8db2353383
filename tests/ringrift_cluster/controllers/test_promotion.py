"""Gauntlets and ratings when files are lost, tests end, and rows are forgotten."""

from __future__ import annotations

from ringrift_cluster.controllers.items import GIVE_UP_AFTER_MS
from ringrift_cluster.controllers.promotion import judge, rate
from statemachine import settings as st
from statemachine.commands import (
    AddHolder,
    AddWork,
    CancelWork,
    ConcludeGauntlet,
    DropHolder,
    PromoteModel,
    RollbackModel,
)
from statemachine.rows import GauntletStatus, ModelStatus
from statemachine.values import Evidence
from tests.support.law import (
    CONFIG,
    Cluster,
    claimed,
    completed,
    digest_of,
    game_config,
    given,
    item,
    node,
    pairs,
    participant,
    setting,
    template,
    trained,
)

OLD, CHAMPION, CANDIDATE = digest_of("old"), digest_of("champion"), digest_of("candidate")


def league() -> Cluster:
    """A former champion on node a, the champion on b, a candidate on c."""
    cluster = given(template(), game_config(), node("a"), node("b"), node("c"))
    for name, holder in (("old", "a"), ("champion", "b"), ("candidate", "c")):
        cluster.do(*trained(name), DropHolder(digest_of(name), "trainer"), AddHolder(digest_of(name), holder))
    cluster.do(PromoteModel(CONFIG, OLD, "", Evidence("initial")))
    cluster.do(PromoteModel(CONFIG, CHAMPION, OLD, Evidence("operator", note="by hand")))
    return cluster


def decided(cluster: Cluster) -> Cluster:
    """Let the policy decide until it has nothing more to say."""
    while commands := judge(cluster.state):
        cluster.do(*commands)
    return cluster


def waiting(cluster: Cluster) -> list[AddWork]:
    return [row.spec for row in cluster.state.work.values() if row.spec.gauntlet and row.status == "pending"]


def verdicts(cluster: Cluster) -> list[str]:
    return [str(row.status) for row in cluster.state.gauntlets.values()]


def test_a_candidate_that_nobody_can_deliver_any_more_is_given_up_and_holds_up_nobody() -> None:
    cluster = decided(league())
    assert len(waiting(cluster)) == 2
    cluster.after(GIVE_UP_AFTER_MS - 2_000, beating=("a", "b"))
    assert judge(cluster.state) == [], "its node may come back"
    cluster.after(2_000, beating=("a", "b"))
    decided(cluster)
    assert verdicts(cluster) == [GauntletStatus.ABANDONED]
    assert cluster.state.models[CANDIDATE].status is ModelStatus.REJECTED
    assert waiting(cluster) == []


def test_the_test_of_a_champion_that_is_lost_waits_and_is_begun_anew_after_the_rollback() -> None:
    cluster = decided(league()).after(GIVE_UP_AFTER_MS, beating=("a", "c"))
    assert (judge(cluster.state), rate(cluster.state)) == ([], [])
    cluster.do(RollbackModel(CONFIG, OLD, CHAMPION, "it is lost"))
    decided(cluster)
    assert verdicts(cluster) == [GauntletStatus.SUPERSEDED, GauntletStatus.RUNNING]
    assert {i.digest for one in waiting(cluster) for i in one.inputs} == {CANDIDATE, OLD}


def test_a_candidate_that_a_worker_without_a_node_has_is_tested() -> None:
    cluster = league()
    cluster.do(DropHolder(CANDIDATE, "c"), AddHolder(CANDIDATE, "worker"))
    decided(cluster).after(GIVE_UP_AFTER_MS, beating=("a", "b"))
    assert (verdicts(cluster), len(waiting(decided(cluster)))) == ([GauntletStatus.RUNNING], 2)


def test_evaluations_that_wait_for_a_test_that_is_over_are_cancelled_but_not_those_that_somebody_added() -> None:
    cluster = decided(league())
    (test,) = cluster.state.gauntlets
    cluster.do(item("mine", "evaluation", gauntlet=test))
    cluster.do(ConcludeGauntlet(test, "abandoned", Evidence("gauntlet")))
    cancelled = [command for command in judge(cluster.state) if isinstance(command, CancelWork)]
    assert [command.work for command in cancelled] == [f"{test}-0", f"{test}-1"]
    assert cancelled[0].reason == "its test is over: abandoned"


def test_a_test_that_outlives_the_rows_of_its_evaluations_never_plays_the_same_games_again() -> None:
    cluster = league()
    cluster.do(setting("retention", st.Retention(work_ms=60_000)))
    seeds: list[str] = []
    for number in range(3):
        decided(cluster)
        first = waiting(cluster)[0]
        seeds += [spec.params["seed"] for spec in waiting(cluster)]
        cluster.do(claimed(f"c{number}", work_types=("evaluation",), limit=2))
        for spec in [row.spec for row in cluster.state.work.values() if row.status == "claimed"]:
            drawn = pairs(participant("candidate"), participant("champion"), draws=1)
            cluster.do(completed(spec.work, match=drawn))
        cluster.after(62_000, beating=("a", "b", "c"))
        assert first.work not in cluster.state.work
    assert len(set(seeds)) == len(seeds) == 6


def test_a_rating_that_waits_for_a_lost_champion_is_taken_back() -> None:
    cluster = league()
    cluster.do(*rate(cluster.state))
    (name,) = (work for work in cluster.state.work if work.startswith("rating-"))
    cluster.after(GIVE_UP_AFTER_MS, beating=("a", "c"))
    assert [command.work for command in rate(cluster.state) if isinstance(command, CancelWork)] == [name]
    cluster.do(*rate(cluster.state))
    assert rate(cluster.state) == []
