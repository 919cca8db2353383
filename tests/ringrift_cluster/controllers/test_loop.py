"""The loop as a whole: real policies, real law, executors that only pretend."""

from __future__ import annotations

import pytest

from statemachine import queries
from statemachine.commands import AddHolder, ConcludeGauntlet, FailJob, PauseCluster, ReportJob, StartGauntlet
from statemachine.rows import GauntletStatus, ModelStatus
from statemachine.values import Evidence
from tests.support.fleet import POLICIES, Fleet


def test_a_fresh_cluster_reaches_its_first_promotions_without_help() -> None:
    fleet = Fleet()
    for _ in range(120):
        fleet.turn()
        if all(t.promotions >= 2 for t in fleet.state.totals.values()) and len(fleet.state.totals) == 3:
            break
    assert sorted(fleet.state.totals) == ["connect4_2p", "hex8_3p", "square8_2p"]
    assert all(t.promotions >= 2 for t in fleet.state.totals.values())
    assert fleet.refused == []


def test_games_in_the_totals_are_the_games_of_the_counted_files() -> None:
    fleet = Fleet()
    for _ in range(40):
        fleet.turn()
    for key, totals in fleet.state.totals.items():
        done = [w for w in fleet.state.work.values() if w.spec.config == key and w.spec.work_type == "selfplay"]
        assert totals.games == sum(w.counts.get("games", 0) for w in done)
        assert totals.games > 0


def test_a_policy_that_has_nothing_new_to_see_has_nothing_to_say() -> None:
    fleet = Fleet()
    for _ in range(10):
        fleet.turn()
    while fleet.decide():
        pass
    assert [policy(fleet.state) for policy in POLICIES] == [[] for _ in POLICIES]


def test_a_candidate_that_only_draws_level_is_not_promoted() -> None:
    fleet = Fleet(score=lambda work: 2)
    for _ in range(80):
        fleet.turn()
    assert all(t.promotions == 0 for t in fleet.state.totals.values())
    ended = [g for g in fleet.state.gauntlets.values() if g.status is not GauntletStatus.RUNNING]
    assert ended
    assert all(g.status in (GauntletStatus.REJECTED, GauntletStatus.INCONCLUSIVE) for g in ended)


def test_training_goes_on_after_a_rejected_candidate() -> None:
    fleet = Fleet(score=lambda work: 1 if "gauntlet" in work else 3)
    for _ in range(80):
        fleet.turn()
    rejected = [m for m in fleet.state.models.values() if m.status is ModelStatus.REJECTED]
    assert len(rejected) >= 3


def test_evaluations_that_fail_promote_nobody_and_hold_nothing_up() -> None:
    fleet = Fleet()
    for _ in range(400):
        fleet.decide()
        for job in fleet.live():
            if job.work_type == "evaluation" and job.work.startswith("gauntlet-connect4_2p"):
                fleet.apply(
                    ReportJob(job.job, job.fence, "running"),
                    FailJob(job.job, job.fence, "user", "the evaluator crashed", exit_code=1),
                )
            else:
                fleet.finish(job)
        fleet.beat(step_ms=2_000)
        abandoned = [g for g in fleet.state.gauntlets.values() if g.status is GauntletStatus.ABANDONED]
        if len(abandoned) >= 2:
            break
    assert len(abandoned) >= 2, "a second candidate got its turn after the first gauntlet was given up"
    assert fleet.state.totals["connect4_2p"].promotions == 0


def test_every_champion_gets_a_rating_against_the_pinned_baseline() -> None:
    fleet = Fleet()
    for _ in range(60):
        fleet.turn()
    for key, config in fleet.state.configs().items():
        champion = queries.champion(fleet.state, key)
        rows = [s for s in fleet.state.standings.values() if s.config == key and "random" in (s.a, s.b)]
        played = {s.a if s.b == "random" else s.b: sum(t.games for t in s.tally) for s in rows}
        rated = [name for name, games in played.items() if games >= config.gate.baseline_games]
        assert len(rated) >= 2, f"the untrained net and later champions of {key} are rated"
        assert champion


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.__name__)
def test_a_paused_cluster_starts_nothing_new(policy: object) -> None:
    fleet = Fleet()
    for _ in range(5):
        fleet.turn()
    fleet.apply(PauseCluster(paused=True, reason="maintenance"))
    assert callable(policy)
    assert policy(fleet.state) == []


def test_a_lost_node_costs_time_but_no_game_is_counted_twice() -> None:
    fleet = Fleet(peers=2)
    held = []
    for _ in range(40):
        fleet.decide()
        held = [j for j in fleet.live() if j.peer == "node-0" and j.work_type == "selfplay"]
        if held:
            break
        fleet.turn()
    assert held
    fleet.apply(ReportJob(held[0].job, held[0].fence, "running"))
    late = fleet.result(held[0])
    fleet.names = ["node-1"]
    fleet.apply(*(AddHolder(digest, "node-1") for digest in fleet.state.artifacts))
    for _ in range(60):
        fleet.turn()
    before = fleet.state.totals[held[0].config].games
    (answer,) = fleet.apply(late)
    assert getattr(answer, "code", "") == "stale_fence"
    assert fleet.state.totals[held[0].config].games == before
    assert fleet.state.work[held[0].work].status == "completed"
    assert fleet.state.work[held[0].work].job != held[0].job


def test_training_goes_on_without_the_files_that_died_with_their_node() -> None:
    fleet = Fleet(peers=2)
    for _ in range(10):
        fleet.turn()
    lost = [a.digest for a in fleet.state.artifacts.values() if a.kind == "games" and a.holders == ("node-0",)]
    assert lost
    fleet.names = ["node-1"]
    fleet.apply(*(AddHolder(digest, "node-1") for digest in fleet.state.models))
    before = {key: t.training_jobs for key, t in fleet.state.totals.items()}
    for _ in range(120):
        fleet.turn()
    for key, totals in fleet.state.totals.items():
        assert totals.training_jobs > before[key] + 1
    trained = [w for w in fleet.state.work.values() if w.spec.work_type == "training" and w.status == "completed"]
    newest = trained[-1]
    assert not {i.digest for i in newest.spec.inputs} & set(lost)


def test_a_training_that_became_a_dead_letter_is_tried_again_by_itself_after_a_while() -> None:
    fleet = Fleet()
    mended = False
    for _ in range(900):
        fleet.decide()
        for job in fleet.live():
            if job.work_type == "training" and not mended:
                fleet.apply(ReportJob(job.job, job.fence, "running"), FailJob(job.job, job.fence, "user", "no CUDA"))
            else:
                fleet.finish(job)
        fleet.beat(step_ms=2_000)
        dead = [w for w in fleet.state.work.values() if w.spec.work_type == "training" and w.status == "failed"]
        mended = mended or len(dead) >= 3
        if mended and fleet.state.totals["connect4_2p"].training_jobs:
            break
    assert mended
    assert fleet.state.totals["connect4_2p"].training_jobs > 0
    assert fleet.refused == []


def test_an_operators_gauntlet_against_a_baseline_is_played_and_rejects_nobody_in_haste() -> None:
    fleet = Fleet()
    while not fleet.state.index.champions.get("connect4_2p"):
        fleet.turn()
    candidate = None
    while candidate is None:
        fleet.turn()
        candidate = next(
            (m.digest for m in fleet.state.models.values() if m.config == "connect4_2p" and m.generation), None
        )
    spec = StartGauntlet("by-hand", "connect4_2p", candidate, "random", floor_games=100, cap_games=400)
    fleet.apply(spec)
    for _ in range(60):
        fleet.turn()
        if fleet.state.gauntlets["by-hand"].status is not GauntletStatus.RUNNING:
            break
    ended = fleet.state.gauntlets["by-hand"]
    assert ended.status is GauntletStatus.ACCEPTED
    assert sum(t.games for t in ended.tally) >= 100


def test_a_candidate_whose_champion_changed_under_the_test_is_tested_anew() -> None:
    fleet = Fleet(score=lambda work: 2)
    running = None
    while running is None:
        fleet.decide()
        running = next((g for g in fleet.state.gauntlets.values() if g.status is GauntletStatus.RUNNING), None)
        if running is None:
            fleet.turn()
    spec = running.spec
    fleet.apply(
        ConcludeGauntlet(spec.gauntlet, "superseded", Evidence(kind="gauntlet", note="another champion")),
    )
    fleet.decide()
    again = [g for g in fleet.state.gauntlets.values() if g.spec.candidate == spec.candidate]
    assert [g.status for g in again] == [GauntletStatus.SUPERSEDED, GauntletStatus.RUNNING]
