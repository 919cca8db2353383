"""Drop-k once more, one position at a time, written from the geometry of real boards and sharing no code."""

from __future__ import annotations

from fractions import Fraction

Point = tuple[int, int]

SIZES = {"connect4": (7, 6), "square8": (8, 8), "square19": (19, 19)}
RADII = {"hex8": 4, "hexagonal": 12}
IN_A_ROW = {"connect4": 4, "square8": 4, "hex8": 4, "square19": 5, "hexagonal": 5}


class ReferencePlayer:
    """Square cells are (x, y); hexagons are (q, r) in axial coordinates with gravity along -r."""

    def __init__(self, key: str) -> None:
        name, _, seats = key.rpartition("_")
        self.players = int(seats.removesuffix("p"))
        self.k = IN_A_ROW[name]
        if name in SIZES:
            width, height = SIZES[name]
            self.board = {(x, y) for x in range(width) for y in range(height)}
            self.steps = [(1, 0), (0, 1), (1, 1), (1, -1)]
        else:
            radius = RADII[name]
            span = range(-radius, radius + 1)
            self.board = {(q, r) for q in span for r in span if abs(q + r) <= radius}
            self.steps = [(1, 0), (0, 1), (1, -1)]
        self.files = sorted({x for x, _ in self.board})
        self.discs: dict[Point, int] = {}
        self.winner: int | None = None

    def landing(self, action: int) -> Point | None:
        column = sorted(y for x, y in self.board if x == self.files[action])
        free = [y for y in column if (self.files[action], y) not in self.discs]
        return (self.files[action], free[0]) if free else None

    @property
    def mover(self) -> int:
        return len(self.discs) % self.players

    @property
    def done(self) -> bool:
        return self.winner is not None or len(self.discs) == len(self.board)

    def legal(self) -> list[bool]:
        return [not self.done and self.landing(action) is not None for action in range(len(self.files))]

    def play(self, action: int) -> None:
        place = self.landing(action)
        assert place is not None
        seat = self.mover
        self.discs[place] = seat
        for dx, dy in self.steps:
            length = 1
            for sign in (1, -1):
                x, y = place[0] + sign * dx, place[1] + sign * dy
                while self.discs.get((x, y)) == seat:
                    length += 1
                    x, y = x + sign * dx, y + sign * dy
            if length >= self.k:
                self.winner = seat

    def scores(self) -> list[Fraction]:
        if self.winner is None:
            return [Fraction(1, self.players)] * self.players
        return [Fraction(int(seat == self.winner)) for seat in range(self.players)]
