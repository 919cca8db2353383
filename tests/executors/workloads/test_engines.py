from __future__ import annotations

import torch

from executors.workloads import games
from executors.workloads.engines import Heuristic, PolicyOnly, Random
from executors.workloads.net import NetSpec, untrained
from tests.executors.workloads.test_search import after


def test_the_heuristic_wins_when_it_can_and_blocks_when_it_must() -> None:
    game = games.load("connect4_2p")
    engine = Heuristic(game, torch.Generator().manual_seed(0))
    # To move with three in column 0 each; then one that must stop column 6 and one free to choose.
    wins = after(game, *[[0, 1, 0, 1, 0, 1]] * 20)
    assert engine.decide(wins).action.tolist() == [0] * 20
    blocks = after(game, *[[6, 1, 6, 2, 6]] * 20)
    assert engine.decide(blocks).action.tolist() == [6] * 20


def test_the_heuristic_prefers_the_middle_of_an_empty_board() -> None:
    game = games.load("connect4_2p")
    decision = Heuristic(game, torch.Generator().manual_seed(0)).decide(game.start(500))
    counts = torch.bincount(decision.action, minlength=7)
    assert int(counts.argmax()) == 3
    assert (counts > 0).all()
    assert decision.policy[0].argmax() == 3


def test_the_heuristic_of_three_players_stops_the_next_seat() -> None:
    game = games.load("hex8_3p")
    engine = Heuristic(game, torch.Generator().manual_seed(0))
    # Seat 0 spread out, seat 1 has three in column 4; seat 0 must close it.
    state = after(game, *[[0, 4, 8, 1, 4, 8, 7, 4, 6]] * 10)
    assert engine.decide(state).action.tolist() == [4] * 10


def test_random_play_is_legal_and_reaches_every_legal_action() -> None:
    game = games.load("connect4_2p")
    state = after(game, *[[0, 0, 0, 0, 0, 0]] * 300)
    decision = Random(game, torch.Generator().manual_seed(0)).decide(state)
    assert sorted(set(decision.action.tolist())) == [1, 2, 3, 4, 5, 6]
    assert torch.allclose(decision.policy[0], torch.tensor([0] + [1 / 6] * 6))


def test_an_untrained_policy_has_no_preference_at_any_temperature() -> None:
    game = games.load("square8_4p")
    network = untrained(game, NetSpec(game.key, 8, 2), 7)
    engine = PolicyOnly(game, network, torch.Generator().manual_seed(0), temperature=0.01)
    with torch.inference_mode():
        decision = engine.decide(game.start(2))
    assert torch.allclose(decision.policy, torch.tensor(1 / 8))
