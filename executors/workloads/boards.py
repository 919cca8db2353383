"""The boards of the drop-k family as plain integers, and the list of config keys."""

from __future__ import annotations

from dataclasses import dataclass

OFF_BOARD = -1


@dataclass(frozen=True, slots=True)
class Board:
    """A board of columns inside a rectangle of ``height`` rows and ``width`` columns.

    A cell is the number ``row * width + column``. ``columns[c]`` lists the cells of a column from its floor
    up. ``directions`` are the (row, column) steps along which a line may run, one of each opposite pair.
    """

    height: int
    width: int
    columns: tuple[tuple[int, ...], ...]
    directions: tuple[tuple[int, int], ...]

    @property
    def cells(self) -> int:
        return sum(len(column) for column in self.columns)

    def windows(self, k: int) -> dict[int, list[list[int]]]:
        """For each cell and direction the ``2k - 1`` cells centred on it, OFF_BOARD where there is none."""
        inside = {cell for column in self.columns for cell in column}

        def at(row: int, column: int) -> int:
            cell = row * self.width + column
            return cell if 0 <= row < self.height and 0 <= column < self.width and cell in inside else OFF_BOARD

        return {
            cell: [
                [at(cell // self.width + dr * i, cell % self.width + dc * i) for i in range(1 - k, k)]
                for dr, dc in self.directions
            ]
            for cell in sorted(inside)
        }

    def mirror(self) -> list[int]:
        """The permutation of the rectangle that swaps left and right: same height in the opposite column."""
        image = list(range(self.height * self.width))
        for column, opposite in zip(self.columns, reversed(self.columns), strict=True):
            for cell, other in zip(column, opposite, strict=True):
                image[cell] = other
        return image


def rectangle(height: int, width: int) -> Board:
    """Square cells; lines run along columns, rows and both diagonals."""
    columns = tuple(tuple(row * width + column for row in range(height)) for column in range(width))
    return Board(height, width, columns, ((1, 0), (0, 1), (1, 1), (1, -1)))


def hexagon(radius: int) -> Board:
    """Hexagonal cells (q, r) with max(abs(q), abs(r), abs(q + r)) <= radius in axial coordinates.

    Columns run along r; stored at row ``r + radius``, column ``q + radius``. A column's floor is slanted in
    this grid, level on the real board.
    """
    width = 2 * radius + 1
    columns = tuple(
        tuple((r + radius) * width + q + radius for r in range(max(-radius, -q - radius), min(radius, radius - q) + 1))
        for q in range(-radius, radius + 1)
    )
    return Board(width, width, columns, ((1, 0), (0, 1), (1, -1)))


@dataclass(frozen=True, slots=True)
class Config:
    """One game: a board, how many in a row win, how many play."""

    key: str
    board: str
    k: int
    players: int


# Four in a row is short enough for the boards of about 60 cells to be decided by play; with 361 and 469
# cells four comes up by accident within a few plies, five does not.
BOARDS = {"connect4": 4, "square8": 4, "square19": 5, "hex8": 4, "hexagonal": 5}


def _configs() -> dict[str, Config]:
    found = {"connect4_2p": Config("connect4_2p", "connect4", BOARDS["connect4"], 2)}
    for board in ("square8", "square19", "hex8", "hexagonal"):
        for players in (2, 3, 4):
            key = f"{board}_{players}p"
            found[key] = Config(key, board, BOARDS[board], players)
    return found


CONFIGS = _configs()


def board(name: str) -> Board:
    """Build the board of that name, one of BOARDS."""
    match name:
        case "connect4":
            return rectangle(6, 7)
        case "square8":
            return rectangle(8, 8)
        case "square19":
            return rectangle(19, 19)
        case "hex8":
            return hexagon(4)
        case "hexagonal":
            return hexagon(12)
    raise KeyError(name)
