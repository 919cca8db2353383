"""The positions that one training job learns from, split and dealt by pure functions of the seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from executors.workloads import shards
from executors.workloads.contract import WorkloadError
from executors.workloads.game import AnyGame
from executors.workloads.shards import Positions


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread 64-bit integers evenly: the finaliser of splitmix64 (Steele et al., OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def validates(positions: Positions, share: float) -> NDArray[np.bool_]:
    """Bool [rows]: held back from training.

    Decided for whole games by a hash of (seed, game), so a game stays on its side in every window.
    """
    name = mix(mix(positions.seed.astype(np.uint64)) + positions.game.astype(np.uint64))
    return (name >> np.uint64(11)).astype(np.float64) * 2.0**-53 < share


class Window:
    """Training and validation positions as tensors on one device."""

    def __init__(self, game: AnyGame, positions: Positions, share: float, device: torch.device) -> None:
        self.game = game
        self.device = device
        held_back = validates(positions, share)
        self.training = _tensors(positions.take(~held_back), device)
        self.validation = _tensors(positions.take(held_back), device)
        if len(self) == 0:
            raise WorkloadError("The data hold no position to train on; give shards with more games.")

    @classmethod
    def load(cls, game: AnyGame, paths: Sequence[Path], share: float, device: torch.device) -> Window:
        """Read all shards; raises WorkloadError for a missing or foreign one, or when there is no position."""
        parts = [shards.read(path, game.key, game.height, game.width, game.players) for path in paths]
        return cls(game, Positions.join(parts), share, device)

    def __len__(self) -> int:
        return len(self.training[0])

    def batch(self, seed: int, step: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Deal the batch of one step: every position once an epoch, each through a random symmetry.

        The same (seed, step, size) deals the same batch, which is what makes a resumed job exact.
        """
        rows = len(self)
        size = min(size, rows)
        batches = rows // size
        epoch, place = divmod(step, batches)
        order = torch.randperm(rows, generator=_generator(seed, 2 * epoch))
        index = order[place * size : (place + 1) * size].to(self.device)
        observation, policy, score = (tensor[index] for tensor in self.training)
        views = len(self.game.symmetries) + 1
        view = torch.randint(views, (size,), generator=_generator(seed, 2 * step + 1)).to(self.device)
        for number, symmetry in enumerate(self.game.symmetries, start=1):
            seen = view == number
            observation[seen] = observation[seen].flatten(1)[:, symmetry.cells].view_as(observation[seen])
            policy[seen] = policy[seen][:, symmetry.actions]
        return observation, policy, score

    def steps_per_epoch(self, size: int) -> int:
        return len(self) // min(size, len(self))


def _generator(seed: int, stream: int) -> torch.Generator:
    name = mix(mix(np.array([seed], np.uint64)) + np.array([stream], np.uint64))
    return torch.Generator().manual_seed(int(name[0] >> np.uint64(1)))


def _tensors(positions: Positions, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.from_numpy(positions.observation).to(device),
        torch.from_numpy(positions.policy).to(device, torch.float32),
        torch.from_numpy(positions.score).to(device, torch.float32),
    )
