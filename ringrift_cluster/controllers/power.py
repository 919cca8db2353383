"""The power table: which GPU is worth how much, by its name."""

from __future__ import annotations

from collections.abc import Sequence

from statemachine.rows import Peer

#: Relative selfplay power by GPU name; the first match wins, so longer names come first.
GPU_POWER: tuple[tuple[str, int], ...] = (
    ("GH200", 2000),
    ("H200", 2500),
    ("H100", 2000),
    ("A100", 624),
    ("5090", 419),
    ("L40", 362),
    ("4090", 330),
    ("5080", 300),
    ("A10", 250),
    ("4080", 242),
    ("5070", 200),
    ("4070", 184),
    ("A40", 150),
    ("3090", 142),
    ("V100", 125),
    ("4060", 120),
    ("3080", 119),
    ("2080", 108),
    ("3070", 81),
    ("3060", 51),
    ("M3", 30),
    ("M2", 25),
    ("M1", 20),
    ("MPS", 15),
)
UNKNOWN_GPU_POWER = 10


def gpu_power(name: str) -> int:
    """Relative power of a GPU by its driver's name for it."""
    upper = name.upper()
    return next((power for part, power in GPU_POWER if part in upper), UNKNOWN_GPU_POWER)


def strongest(peer: Peer, free: Sequence[str], count: int) -> tuple[str, ...]:
    """The `count` best of a peer's free GPUs: by power, among equals in the order they come in."""
    power = {gpu.uuid: gpu_power(gpu.name) for gpu in peer.facts.gpus}
    return tuple(sorted(free, key=lambda uuid: -power[uuid])[:count])
