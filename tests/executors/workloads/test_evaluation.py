from __future__ import annotations

from pathlib import Path

import pytest
import torch

from executors.workloads import evaluation, games, init, players
from executors.workloads.contract import StopSignal, WorkloadError
from executors.workloads.evaluation import openings, score, seatings
from tests.executors.workloads import programs


def run(job_dir: Path, *words: str) -> dict[str, object]:
    assert evaluation.main(["--job-dir", str(job_dir), *words], StopSignal()) == 0
    return programs.result(job_dir)


def test_two_players_swap_seats_and_more_rotate_alone_against_the_rest() -> None:
    assert seatings(2).tolist() == [[True, False], [False, True]]
    three = seatings(3)
    assert three.sum(1).tolist() == [1, 1, 1, 2, 2, 2]
    assert three.sum(0).tolist() == [3, 3, 3]


def test_groups_become_a_tally_and_a_histogram_of_half_points() -> None:
    # Group by group: A wins both; A loses both; a win and a draw; two draws.
    outcome = score(torch.tensor([[0, 1], [1, 0], [0, -1], [-1, -1]]), seatings(2))
    assert outcome.histogram == [1, 0, 1, 1, 1]
    assert outcome.tally == [{"seats_a": 1, "seats_b": 1, "wins_a": 3, "wins_b": 2, "draws": 3}]
    assert (outcome.games, outcome.half_points) == (8, 9)


def test_three_players_are_tallied_by_the_size_of_the_team() -> None:
    # A alone wins its first game; the pair of A's wins when seat 0 is B's and seat 1 wins.
    outcome = score(torch.tensor([[0, 0, -1, 1, 1, 2]]), seatings(3))
    assert outcome.tally == [
        {"seats_a": 1, "seats_b": 2, "wins_a": 1, "wins_b": 1, "draws": 1},
        {"seats_a": 2, "seats_b": 1, "wins_a": 1, "wins_b": 2, "draws": 0},
    ]
    assert len(outcome.histogram) == 13
    assert outcome.histogram[2 + 1 + 2] == 1


@pytest.mark.parametrize(("key", "size"), [("connect4_2p", 2), ("hex8_3p", 6), ("square8_4p", 8)])
def test_equal_players_share_the_points(tmp_path: Path, key: str, size: int) -> None:
    found = run(tmp_path, "--config", key, "--a", "random", "--b", "random", "--groups", "80", "--seed", "4")
    assert found["counts"] == {"games": 80 * size, "groups": 80}
    histogram = found["histogram"]
    assert isinstance(histogram, list)
    assert len(histogram) == 2 * size + 1
    assert sum(histogram) == 80
    assert sum(h * count for h, count in enumerate(histogram)) / (160 * size) == pytest.approx(0.5, abs=0.1)


def test_the_heuristic_beats_random_play_and_the_order_of_names_matters(tmp_path: Path) -> None:
    shares = []
    for a, b in (("heuristic", "random"), ("random", "heuristic")):
        found = run(tmp_path, "--config", "square8_2p", "--a", a, "--b", b, "--groups", "30")
        metrics = found["metrics"]
        assert isinstance(metrics, dict)
        shares.append(float(metrics["score"]))
    assert shares[0] > 0.8
    assert shares[1] < 0.2


def test_a_model_against_itself_without_randomness_wins_as_often_as_it_loses(tmp_path: Path) -> None:
    words = ["--config", "connect4_2p", "--channels", "4", "--blocks", "1", "--job-dir", str(tmp_path / "m")]
    assert init.main(words, StopSignal()) == 0
    model = str(tmp_path / "m" / "out" / "model.pt")
    search = ["--engine", "gumbel-mcts", "--simulations", "2", "--groups", "8"]
    found = run(tmp_path, "--config", "connect4_2p", "--a", model, "--b", model, *search)
    # One engine without noise plays both games of a pair alike, so every pair is shared.
    assert found["histogram"] == [0, 0, 8, 0, 0]
    assert run(tmp_path, "--config", "connect4_2p", "--a", model, "--b", model, *search) == found


def test_openings_are_unfinished_and_of_the_length_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    game = games.load("connect4_2p")
    state = openings(game, 300, 9, players.generator(1, 0, torch.device("cpu")))
    assert state.ply.tolist() == [9] * 300  # type: ignore[attr-defined]
    assert not game.done(state).any()  # type: ignore[arg-type]
    monkeypatch.setattr(evaluation, "OPENING_TRIES", 3)
    with pytest.raises(WorkloadError, match="last 42 random plies; lower --opening-plies"):
        openings(game, 1, 42, players.generator(1, 0, torch.device("cpu")))


def test_zero_finished_groups_are_an_error_and_no_result(tmp_path: Path) -> None:
    stop = StopSignal()
    stop.requested = True
    words = ["--config", "connect4_2p", "--a", "random", "--b", "random", "--job-dir", str(tmp_path)]
    with pytest.raises(WorkloadError, match="stopped before its first group"):
        evaluation.main(words, stop)
    assert not (tmp_path / "result.json").exists()
