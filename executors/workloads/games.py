"""From a config key to the rules."""

from __future__ import annotations

import torch

from executors.workloads.boards import CONFIGS, board
from executors.workloads.contract import WorkloadError
from executors.workloads.dropk import DropK


def load(key: str, device: torch.device | str = "cpu") -> DropK:
    """Return the game of a config key such as ``hex8_3p``; raises WorkloadError for an unknown key."""
    config = CONFIGS.get(key)
    if config is None:
        raise WorkloadError(f"There is no config {key!r}; the known ones are {', '.join(CONFIGS)}.")
    return DropK(key, board(config.board), config.k, config.players, torch.device(device))
