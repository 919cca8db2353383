"""Selfplay data on disk: NPZ files whose bytes depend on nothing but their content."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from executors.workloads.contract import WorkloadError, read_bounded, write_atomically

FORMAT = 1
MAX_SHARD_BYTES = 4 << 30
_EPOCH = (1980, 1, 1, 0, 0, 0)
#: what zipfile raises for bytes that are no archive; the last one is its word for an unknown compression or flag
_DAMAGE = (zipfile.BadZipFile, zlib.error, NotImplementedError)

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Positions:
    """Positions to learn from, one row each.

    ``observation`` int8 [rows, height, width] as the game defines it; ``policy`` float16 [rows, actions];
    ``score`` float16 [rows, players], the game's outcome beginning with the mover; ``game`` int64 [rows] is
    unique within (``seed``, game), ``ply`` int32 [rows], ``seed`` int64 [rows] that of the job.
    """

    observation: Array
    policy: Array
    score: Array
    game: Array
    ply: Array
    seed: Array

    def __len__(self) -> int:
        return len(self.game)

    @property
    def games(self) -> int:
        """The number of different games; rows of one game stand together."""
        return int(len(self) > 0) + int(np.count_nonzero(np.diff(self.game)))

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def take(self, index: Array) -> Self:
        return type(self)(*(getattr(self, field.name)[index] for field in fields(self)))


_DTYPES = {
    "observation": np.int8,
    "policy": np.float16,
    "score": np.float16,
    "game": np.int64,
    "ply": np.int32,
    "seed": np.int64,
}


def write(path: Path, config: str, positions: Positions) -> None:
    """Write one shard; equal positions give equal bytes."""
    arrays: dict[str, Array] = {
        "format": np.array(FORMAT, np.int64),
        "config": np.frombuffer(config.encode(), np.uint8),
    }
    for name, dtype in _DTYPES.items():
        arrays[name] = np.ascontiguousarray(getattr(positions, name).astype(dtype, copy=False))
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED, compresslevel=4) as archive:
        for name, array in arrays.items():
            one = io.BytesIO()
            np.lib.format.write_array(one, array, allow_pickle=False)
            # numpy.savez would stamp the time of writing into every member.
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=_EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, one.getvalue())
    write_atomically(path, whole.getvalue())


def read(path: Path, config: str, height: int, width: int, players: int) -> Positions:
    """Read and check a shard.

    Raises WorkloadError when it is missing, damaged, of another game or of the wrong shape.
    """
    stored = read_bounded(path, MAX_SHARD_BYTES, "data file")
    try:
        with np.load(io.BytesIO(stored), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ("format", "config", *_DTYPES)}
    except (ValueError, KeyError, EOFError, OSError, AttributeError, TypeError, *_DAMAGE) as error:
        raise WorkloadError(f"The data file {path} is not a selfplay shard of this project.") from error
    if arrays.pop("format").tolist() != FORMAT:
        raise WorkloadError(f"The data file {path} has a format this release does not read.")
    found = arrays.pop("config").tobytes().decode(errors="replace")
    if found != config:
        raise WorkloadError(f"The data file {path} holds games of {found}, not {config}.")
    rows = arrays["game"].shape[:1]
    shapes = {"observation": (*rows, height, width), "policy": (*rows, width), "score": (*rows, players)}
    for name, array in arrays.items():
        if array.shape != shapes.get(name, rows) or array.dtype != _DTYPES[name]:
            raise WorkloadError(f"The data file {path} holds {name} of the wrong shape or type.")
        if array.dtype == np.float16 and not bool(np.isfinite(array).all()):
            raise WorkloadError(f"The data file {path} holds {name} that are not finite numbers.")
    return Positions(**arrays)
