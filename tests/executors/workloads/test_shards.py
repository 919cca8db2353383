from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from executors.workloads import shards
from executors.workloads.contract import WorkloadError
from executors.workloads.shards import Positions


def positions(rows: int = 6) -> Positions:
    generator = np.random.default_rng(3)
    return Positions(
        generator.integers(-1, 4, (rows, 6, 7)).astype(np.int8),
        generator.random((rows, 7)).astype(np.float16),
        generator.random((rows, 2)).astype(np.float16),
        np.arange(rows, dtype=np.int64) // 2,
        np.arange(rows, dtype=np.int32) % 2,
        np.full(rows, 8, np.int64),
    )


def read(path: Path) -> Positions:
    return shards.read(path, "connect4_2p", 6, 7, 2)


def test_a_shard_gives_back_what_was_written_and_equal_content_is_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        shards.write(tmp_path / name, "connect4_2p", positions())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    found = read(tmp_path / "a.npz")
    for name in ("observation", "policy", "score", "game", "ply", "seed"):
        assert np.array_equal(getattr(found, name), getattr(positions(), name))


def test_a_shard_of_another_game_or_shape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    shards.write(path, "square8_2p", positions())
    with pytest.raises(WorkloadError, match="holds games of square8_2p, not connect4_2p"):
        read(path)
    shards.write(path, "connect4_2p", positions())
    with pytest.raises(WorkloadError, match="score of the wrong shape"):
        shards.read(path, "connect4_2p", 6, 7, 3)
    broken = positions()
    broken.policy[0, 0] = np.nan
    shards.write(path, "connect4_2p", broken)
    with pytest.raises(WorkloadError, match="policy that are not finite"):
        read(path)


def test_a_missing_or_damaged_shard_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(WorkloadError, match=re.escape(f"{path} cannot be read: No such file")):
        read(path)
    shards.write(path, "connect4_2p", positions())
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    with pytest.raises(WorkloadError, match="is not a selfplay shard"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(WorkloadError, match="is not a selfplay shard"):
        read(path)
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0xFF
    path.write_bytes(flipped)
    with pytest.raises(WorkloadError, match="is not a selfplay shard"):
        read(path)
