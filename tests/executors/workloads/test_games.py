from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from executors.workloads import games
from executors.workloads.boards import CONFIGS
from executors.workloads.contract import WorkloadError
from executors.workloads.dropk import Drop, DropK
from tests.executors.workloads.reference import ReferencePlayer

DISTINCT_AFTER = [1, 7, 49, 238, 1120, 4263, 16422, 54859, 184275, 558186]  # oeis.org/A212693


def connect_four_code(state: Drop) -> Tensor:
    """The exact 49-bit code of a position: in each column the first seat's discs below one closing bit."""
    discs = (state.cells[:, :42].view(-1, 6, 7) == 1).to(torch.int64)
    rows, columns = torch.arange(6)[:, None], torch.arange(7)[None, :]
    own = (discs << (rows + 7 * columns)).sum((1, 2))
    return own + (torch.tensor(1) << (state.heights + 7 * torch.arange(7))).sum(1)


def children(game: DropK, state: Drop) -> Drop:
    parents, actions = game.legal(state).nonzero(as_tuple=True)
    return game.step(state.take(parents), actions)


def random_playout(game: DropK, seed: int, count: int) -> tuple[list[Tensor], Drop]:
    generator = torch.Generator().manual_seed(seed)
    state, moves = game.start(count), []
    while not game.done(state).all():
        weights = torch.rand((count, game.actions), generator=generator)
        action = weights.masked_fill(~game.legal(state), -1).argmax(1)
        moves.append(action)
        state = game.step(state, action)
    return moves, state


def test_connect_four_has_the_published_number_of_positions_after_each_ply() -> None:
    game = games.load("connect4_2p")
    state = game.start(1)
    counts = [1]
    for _ in range(9):
        state = children(game, state.take(~game.done(state)))
        codes = connect_four_code(state).numpy()
        order = codes.argsort(kind="stable")
        first = torch.from_numpy(order)[torch.from_numpy(codes[order]).diff(prepend=torch.tensor([-1])) != 0]
        state = state.take(first)
        counts.append(len(first))
    assert counts == DISTINCT_AFTER


@pytest.mark.parametrize("key", CONFIGS)
def test_the_batch_agrees_with_a_scalar_reference_player(key: str) -> None:
    game = games.load(key)
    count = 2 if "hexagonal" in key or "19" in key else 6
    generator = random.Random(key)
    references = [ReferencePlayer(key) for _ in range(count)]
    state = game.start(count)
    for ply in range(game.longest):
        legal = [reference.legal() for reference in references]
        assert game.legal(state).tolist() == legal
        if not any(any(row) for row in legal):
            break
        actions = []
        for row in legal:
            open_columns = [a for a, fits in enumerate(row) if fits]
            # Long games come from spreading out; a finished game gets any action and must ignore it.
            actions.append(generator.choice(open_columns) if open_columns else ply % game.actions)
        state = game.step(state, torch.tensor(actions))
        for reference, row, action in zip(references, legal, actions, strict=True):
            if any(row):
                reference.play(action)
        assert game.done(state).tolist() == [reference.done for reference in references]
    assert game.done(state).all()
    for row, reference in zip(game.scores(state).tolist(), references, strict=True):
        assert row == pytest.approx([float(score) for score in reference.scores()])
        assert sum(row) == pytest.approx(1)


@pytest.mark.parametrize("key", CONFIGS)
def test_mirrored_moves_give_the_mirrored_game(key: str) -> None:
    game = games.load(key)
    (mirror,) = game.symmetries
    moves, end = random_playout(game, seed=3, count=16)
    state, image = game.start(16), game.start(16)
    for action in moves:
        flat = game.observe(state).flatten(1)
        assert torch.equal(flat[:, mirror.cells], game.observe(image).flatten(1))
        assert torch.equal(game.legal(state)[:, mirror.actions], game.legal(image))
        state, image = game.step(state, action), game.step(image, game.actions - 1 - action)
    assert torch.equal(image.winner, end.winner)
    assert torch.equal(image.ply, end.ply)


@pytest.mark.parametrize("key", ["connect4_2p", "square8_3p", "hex8_4p"])
def test_a_full_board_without_a_line_is_an_even_split(key: str) -> None:
    game = games.load(key)
    _, state = random_playout(game, seed=0, count=3000)
    drawn = state.winner == -1
    assert drawn.any()
    assert (state.ply[drawn] == game.longest).all()
    assert torch.allclose(game.scores(state)[drawn], torch.tensor(1 / game.players))
    assert torch.allclose(game.scores(state).sum(1), torch.tensor(1.0))


def test_the_mover_sees_its_own_discs_under_the_same_code_in_every_seat() -> None:
    game = games.load("hex8_3p")
    state = game.start(1)
    for seat, column in enumerate((4, 4, 4)):
        assert int(game.mover(state)) == seat
        state = game.step(state, torch.tensor([column]))
    seen = game.observe(state)[0]
    # Column q = 0 starts at row 0 of the embedding: three discs, then the landing cell.
    assert seen[:5, 4].tolist() == [2, 3, 4, 1, 0]
    state = game.step(state, torch.tensor([0]))
    assert game.observe(state)[0, :3, 4].tolist() == [4, 2, 3]


def test_boards_have_the_published_number_of_cells() -> None:
    cells = {
        key: games.load(key).longest for key in ("connect4_2p", "square8_2p", "square19_2p", "hex8_2p", "hexagonal_2p")
    }
    assert list(cells.values()) == [42, 64, 361, 61, 469]


def test_an_unknown_config_names_the_known_ones() -> None:
    with pytest.raises(WorkloadError, match=r"'chess_2p'.*connect4_2p.*hexagonal_4p"):
        games.load("chess_2p")


def test_positions_are_taken_joined_and_overwritten_row_by_row() -> None:
    game = games.load("connect4_2p")
    first = game.step(game.start(2), torch.tensor([0, 1]))
    second = game.step(game.start(1), torch.tensor([6]))
    joined = Drop.join([first, second])
    joined.put(torch.tensor([0]), second)
    assert joined.heights.tolist() == [
        [0, 0, 0, 0, 0, 0, 1],
        [0, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 1],
    ]
    assert torch.equal(joined.take(torch.tensor([True, False, True])).cells[0], second.cells[0])
