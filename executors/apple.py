"""The one GPU of an Apple machine, which shares the memory of the host and has no NVML."""

from __future__ import annotations

from statemachine.values import Gpu

#: share of the RAM that Metal lets programs use by default, in hundredths
METAL_SHARE = 75


def metal(system: str, machine: str, chip: str, ram_bytes: int) -> tuple[Gpu, ...]:
    """The GPU of a machine of this system and processor type; none when it has no Metal for PyTorch.

    `chip` is its brand, such as "Apple M2 Pro", by which placement knows its power.
    """
    if system != "Darwin" or machine != "arm64":
        return ()
    return (Gpu(uuid="MPS-0", name=f"{chip or 'Apple'} MPS", memory_bytes=ram_bytes * METAL_SHARE // 100),)
