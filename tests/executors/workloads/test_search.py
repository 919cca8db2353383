from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from executors.workloads import games, net
from executors.workloads.dropk import Drop, DropK
from executors.workloads.search import (
    IMPOSSIBLE,
    Evaluation,
    GumbelSearch,
    evaluator,
    foreseeing,
    halving_schedule,
    winning,
)


def flat(game: DropK) -> Callable[[Drop], Evaluation]:
    """An evaluator that knows the rules and nothing else."""

    def evaluate(state: Drop) -> Evaluation:
        legal = game.legal(state)
        even = torch.full((len(legal), game.players), 1 / game.players)
        scores = torch.where(game.done(state)[:, None], game.scores(state), even)
        return Evaluation(torch.zeros(legal.shape).masked_fill(~legal, IMPOSSIBLE), scores)

    return evaluate


def after(game: DropK, *lines: list[int]) -> Drop:
    """Positions after these columns; one game a line, all of one length."""
    state = game.start(len(lines))
    for action in torch.tensor(lines).T:
        state = game.step(state, action)
    return state


def quiet(game: DropK, state: Drop) -> Tensor:
    return torch.zeros(game.legal(state).shape)


def test_halving_spends_every_simulation_and_halves_the_field() -> None:
    assert halving_schedule(4, 16) == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert halving_schedule(1, 3) == [0, 1, 2]
    for considered in range(20):
        assert len(halving_schedule(considered, 24)) == 24


@pytest.mark.parametrize("simulations", [8, 32])
def test_the_search_takes_a_win_at_once_in_every_game_of_the_batch(simulations: int) -> None:
    game = games.load("connect4_2p")
    state = after(game, [0, 1, 0, 1, 0, 1], [6, 5, 6, 5, 6, 5], [2, 2, 3, 3, 4, 4])
    search = GumbelSearch(game, flat(game), simulations)
    found = search.run(state, quiet(game, state))
    assert found.action[:2].tolist() == [0, 6]
    assert int(found.action[2]) in (1, 5)
    assert (found.score > 0.9).all()
    won = game.step(state, found.action)
    assert won.winner.tolist() == [0, 0, 0]


def test_the_search_blocks_a_threat_it_can_see() -> None:
    game = games.load("connect4_2p")
    state = after(game, [0, 1, 0, 1, 0], [6, 3, 6, 3, 6])
    found = GumbelSearch(game, flat(game), 256).run(state, quiet(game, state))
    assert found.action.tolist() == [0, 6]


def test_with_three_players_each_seat_wants_its_own_win() -> None:
    game = games.load("hex8_3p")
    # Seats 0, 1 and 2 build columns 2, 4 and 6; seat 0 is to move and completes four.
    state = after(game, [2, 4, 6, 2, 4, 6, 2, 4, 6])
    search = GumbelSearch(game, flat(game), 32)
    found = search.run(state, quiet(game, state))
    assert found.action.tolist() == [2]
    # Seat 0 elsewhere: seat 1 wins for itself rather than stopping seat 2.
    state = game.step(state, torch.tensor([0]))
    assert search.run(state, quiet(game, state)).action.tolist() == [4]


def test_the_improved_policy_is_a_distribution_over_legal_actions() -> None:
    game = games.load("hex8_3p")
    generator = torch.Generator().manual_seed(1)
    network = net.untrained(game, net.NetSpec(game.key, 8, 1), 4)
    state = game.start(16)
    with torch.inference_mode():
        for _ in range(30):
            noise = -torch.empty(16, game.actions).exponential_(generator=generator).log()
            going_on = state.take(~game.done(state))
            found = GumbelSearch(game, evaluator(game, network), 12).run(going_on, noise[: len(going_on.ply)])
            legal = game.legal(going_on)
            assert torch.allclose(found.policy.sum(1), torch.tensor(1.0))
            assert (found.policy[~legal] == 0).all()
            assert legal.gather(1, found.action[:, None]).all()
            state = game.step(going_on, found.action)
            if bool(game.done(state).all()):
                return
            state = state.take(torch.arange(16) % len(state.ply))


def test_the_network_speaks_of_seats_beginning_with_the_mover() -> None:
    game = games.load("square8_3p")
    network = net.untrained(game, net.NetSpec(game.key, 8, 1), 2)
    state = game.step(game.start(1), torch.tensor([3]))
    with torch.inference_mode():
        _, log_scores = network(game.observe(state))
        scores = evaluator(game, network)(state).scores
    assert torch.allclose(scores[0], log_scores.exp()[0, [2, 0, 1]])


def test_searches_of_one_batch_do_not_depend_on_each_other() -> None:
    game = games.load("connect4_2p")
    search = GumbelSearch(game, flat(game), 24)
    state = after(game, [3, 3, 2], [0, 6, 1], [5, 4, 4])
    noise = torch.rand((3, 7), generator=torch.Generator().manual_seed(5))
    together = search.run(state, noise)
    for row in range(3):
        alone = search.run(state.take(torch.tensor([row])), noise[row : row + 1])
        assert torch.allclose(alone.policy[0], together.policy[row])
        assert int(alone.action) == int(together.action[row])


def test_with_foresight_a_winning_action_is_the_only_one_and_worth_everything() -> None:
    game = games.load("connect4_2p")
    state = after(game, [0, 1, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5])
    wins = winning(game, state)
    assert wins.tolist() == [[True, *[False] * 6], [False] * 7]
    plain = flat(game)(state)
    seen = foreseeing(game, flat(game))(state)
    assert seen.logits[0].tolist() == [0.0, *[IMPOSSIBLE] * 6]
    assert seen.scores[0].tolist() == [1.0, 0.0]
    assert torch.equal(seen.logits[1], plain.logits[1])
    assert torch.equal(seen.scores[1], plain.scores[1])


def test_with_foresight_one_look_at_each_action_is_enough_to_block() -> None:
    game = games.load("connect4_2p")
    state = after(game, [0, 1, 0, 1, 0], [6, 3, 6, 3, 6])
    found = GumbelSearch(game, foreseeing(game, flat(game)), 8).run(state, quiet(game, state))
    assert found.action.tolist() == [0, 6]
    assert (found.policy.gather(1, found.action[:, None]) > 0.99).all()


def test_foresight_leaves_finished_games_alone() -> None:
    game = games.load("connect4_2p")
    over = after(game, [0, 1, 0, 1, 0, 1, 0])
    assert game.done(over).all()
    seen = foreseeing(game, flat(game))(over)
    assert seen.scores.tolist() == [[1.0, 0.0]]
