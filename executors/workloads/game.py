"""What a game is to the rest of the workloads: a batch of positions held in tensors, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class State:
    """A batch of positions; every field of a subclass is a tensor whose first axis is the batch."""

    def take(self, index: Tensor) -> Self:
        """Copy the positions that ``index`` names: int64 positions, or a bool mask of the batch."""
        return type(self)(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))

    def put(self, index: Tensor, other: Self) -> None:
        """Overwrite the positions at ``index`` (int64, no duplicates) by those of ``other``, in place."""
        for field in dataclasses.fields(self):
            getattr(self, field.name)[index] = getattr(other, field.name)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Concatenate batches in order."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in dataclasses.fields(cls)))


@dataclass(frozen=True, slots=True)
class Symmetry:
    """One way of looking at the same game: ``new[i] = old[cells[i]]`` and ``new[a] = old[actions[a]]``.

    ``cells`` is int64 [height * width] over the flattened observation, ``actions`` is int64 [actions].
    """

    cells: Tensor
    actions: Tensor


S = TypeVar("S", bound=State)


class Game(Protocol[S]):
    """The rules of one game for a whole batch of positions on one device.

    An observation is int8 [batch, height, width] of codes: -1 for a place that does not exist, otherwise
    0 <= code < ``codes``. Its last axis is as long as the list of actions: action ``a`` belongs to column
    ``a``.
    Seats are numbered from 0 in the order of play.
    """

    @property
    def key(self) -> str:
        """The config key, such as ``connect4_2p``."""
        ...

    @property
    def players(self) -> int: ...

    @property
    def actions(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def codes(self) -> int: ...

    @property
    def longest(self) -> int:
        """No game has more plies than this."""
        ...

    @property
    def preference(self) -> Tensor:
        """Float [actions]: how attractive an action is before anybody looks at the position."""
        ...

    @property
    def symmetries(self) -> tuple[Symmetry, ...]:
        """The symmetries besides the identity."""
        ...

    def start(self, count: int) -> S:
        """Return ``count`` games before their first ply."""
        ...

    def legal(self, state: S) -> Tensor:
        """Bool [batch, actions]; all false where the game is over."""
        ...

    def step(self, state: S, action: Tensor) -> S:
        """Play int64 [batch] actions, legal where the game goes on; a finished game stays as it is."""
        ...

    def observe(self, state: S) -> Tensor:
        """Int8 [batch, height, width] from the side of the mover."""
        ...

    def mover(self, state: S) -> Tensor:
        """Int64 [batch]: the seat whose turn it is."""
        ...

    def done(self, state: S) -> Tensor:
        """Bool [batch]."""
        ...

    def scores(self, state: S) -> Tensor:
        """Float32 [batch, players] by seat, each row summing to one; meaningful where the game is over."""
        ...


AnyGame = Game[Any]
