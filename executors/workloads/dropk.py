"""Drop-k: a disc falls along a column, k in a row win, a full board is a draw."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from executors.workloads.boards import OFF_BOARD, Board
from executors.workloads.game import State, Symmetry

NOBODY = -1


@dataclass(frozen=True, slots=True)
class Drop(State):
    """Positions of drop-k.

    ``cells`` int8 [batch, height * width + 1]: OFF_BOARD, 0 for empty, seat + 1 for a disc; the last place is
    a sentinel outside the board. ``heights`` int64 [batch, columns] counts discs, ``ply`` int64 [batch],
    ``winner`` int64 [batch] is a seat or NOBODY.
    """

    cells: Tensor
    heights: Tensor
    ply: Tensor
    winner: Tensor


class DropK:
    """Implements ``Game[Drop]``.

    Observation codes: -1 outside the board, 0 empty, 1 the cell where the next disc of its column lands, then
    2 for the mover's discs, 3 for those of the next seat, and so on.
    """

    def __init__(self, key: str, board: Board, k: int, players: int, device: torch.device) -> None:
        self.key = key
        self.k = k
        self.players = players
        self.actions = self.width = board.width
        self.height = board.height
        self.codes = 2 + players
        self.longest = board.cells
        self.device = device
        self._sentinel = board.height * board.width
        tallest = max(len(column) for column in board.columns)
        # A full column leads to the sentinel, so that reading "the next cell" needs no condition.
        falls = [[*column, *([self._sentinel] * (tallest + 1 - len(column)))] for column in board.columns]
        self._falls = torch.tensor(falls, device=device)
        self._capacity = torch.tensor([len(column) for column in board.columns], device=device)
        self._columns = torch.arange(board.width, device=device)
        windows = torch.full((self._sentinel + 1, len(board.directions), 2 * k - 1), self._sentinel)
        for cell, lines in board.windows(k).items():
            line = torch.tensor(lines)
            windows[cell] = torch.where(line == OFF_BOARD, self._sentinel, line)
        self._windows = windows.flatten(1).to(device)
        self._directions = len(board.directions)
        empty = torch.full((self._sentinel + 1,), OFF_BOARD, dtype=torch.int8)
        empty[[cell for column in board.columns for cell in column]] = 0
        self._empty = empty.to(device)
        middle = (board.width - 1) / 2
        self.preference = 1.0 / (1.0 + (self._columns - middle).abs())
        self.symmetries = (Symmetry(torch.tensor(board.mirror(), device=device), self._columns.flip(0)),)

    def start(self, count: int) -> Drop:
        zeros = torch.zeros(count, dtype=torch.int64, device=self.device)
        return Drop(
            self._empty.repeat(count, 1),
            torch.zeros((count, self.actions), dtype=torch.int64, device=self.device),
            zeros,
            zeros + NOBODY,
        )

    def legal(self, state: Drop) -> Tensor:
        return (state.heights < self._capacity) & ~self.done(state)[:, None]

    def step(self, state: Drop, action: Tensor) -> Drop:
        over = self.done(state)
        column = action[:, None]
        landing = self._falls[action, state.heights.gather(1, column)[:, 0]]
        seat = self.mover(state)
        # A finished game writes its sentinel's own value back to the sentinel.
        landing = torch.where(over, self._sentinel, landing)
        disc = torch.where(over, OFF_BOARD, seat + 1).to(torch.int8)[:, None]
        cells = state.cells.scatter(1, landing[:, None], disc)
        # A new line can only run through the new disc.
        own = cells.gather(1, self._windows[landing]) == disc
        runs = own.view(-1, self._directions, 2 * self.k - 1).unfold(2, self.k, 1).all(3)
        won = runs.flatten(1).any(1) & ~over
        played = (~over).to(torch.int64)
        return Drop(
            cells,
            state.heights.scatter_add(1, column, played[:, None]),
            state.ply + played,
            torch.where(won, seat, state.winner),
        )

    def observe(self, state: Drop) -> Tensor:
        cells = state.cells
        mover = self.mover(state).to(torch.int8)[:, None]
        codes = torch.where(cells > 0, (cells - 1 - mover) % self.players + 2, cells)
        codes.scatter_(1, self._falls[self._columns, state.heights], 1)
        return codes[:, :-1].view(-1, self.height, self.width)

    def mover(self, state: Drop) -> Tensor:
        return state.ply % self.players

    def done(self, state: Drop) -> Tensor:
        return (state.winner != NOBODY) | (state.ply == self.longest)

    def scores(self, state: Drop) -> Tensor:
        seats = torch.arange(self.players, device=self.device)
        wins = (state.winner[:, None] == seats).to(torch.float32)
        return torch.where((state.winner == NOBODY)[:, None], 1.0 / self.players, wins)
