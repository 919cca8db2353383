from __future__ import annotations

import sqlite3
import zipfile
from pathlib import Path

import numpy as np
import pytest

from executors import counting
from executors.counting import Uncountable, count


def test_only_complete_lines_count_and_a_torn_one_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    path.write_bytes(b"1\n2\n3")
    assert count(path, "lines") == 2
    counting.cut_torn_line(path)
    assert path.read_bytes() == b"1\n2\n"
    counting.cut_torn_line(path)
    assert path.read_bytes() == b"1\n2\n"


@pytest.mark.parametrize("length", [0, 1, counting.CHUNK_BYTES - 1, counting.CHUNK_BYTES, 2 * counting.CHUNK_BYTES + 7])
def test_a_torn_line_is_found_however_long_it_is(tmp_path: Path, length: int) -> None:
    path = tmp_path / "g.jsonl"
    path.write_bytes(b"whole\n" + b"x" * length)
    counting.cut_torn_line(path)
    assert path.read_bytes() == b"whole\n"
    path.write_bytes(b"x" * length)
    counting.cut_torn_line(path)
    assert path.read_bytes() == b""


def test_rows_that_a_killed_writer_left_in_its_log_count_and_end_up_in_the_file(tmp_path: Path) -> None:
    live, path = tmp_path / "live.db", tmp_path / "g.db"
    writer = sqlite3.connect(live)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute('CREATE TABLE "odd ""name" (a)')
    writer.executemany('INSERT INTO "odd ""name" VALUES (?)', [(n,) for n in range(5)])
    writer.commit()
    for suffix in ("", "-wal"):  # what a kill leaves: no checkpoint, no clean close
        Path(f"{path}{suffix}").write_bytes(Path(f"{live}{suffix}").read_bytes())
    writer.close()
    assert count(path, 'rows:odd "name') == 5
    assert not Path(f"{path}-wal").exists()
    alone = tmp_path / "alone.db"
    alone.write_bytes(path.read_bytes())
    assert count(alone, 'rows:odd "name') == 5


def test_an_array_is_counted_along_its_first_axis(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez_compressed(path, features=np.zeros((12, 3, 2)), value=np.zeros(12), scalar=np.float32(1))
    assert count(path, "npz:features") == count(path, "npz:value") == 12
    assert count(path, "npz:scalar") == 1


def test_a_number_is_read_from_json(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text('{"total_games": 12, "draws": true, "rate": 0.5, "below": -1}')
    assert count(path, "json:total_games") == 12
    for key in ("draws", "rate", "below", "absent"):
        with pytest.raises(Uncountable, match="no whole number"):
            count(path, f"json:{key}")


def _torn_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"x" * 1000)
    data = bytearray(path.read_bytes())
    data[200] ^= 0xFF
    path.write_bytes(bytes(data))


def test_what_is_torn_or_something_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for content, how, words in (
        (b"no database", "rows:games", "SQLite says"),
        (b"", "rows:games", "no such table"),
        (b"no archive", "npz:a", "no NPZ file"),
        (b"[1", "json:k", "no JSON"),
        (b"[1]", "json:k", "no whole number"),
        (b" " * (counting.MAX_JSON_BYTES + 1), "json:k", "larger than"),
        (b"", "words", "no way to count"),
    ):
        path.write_bytes(content)
        with pytest.raises(Uncountable, match=words):
            count(path, how)
    _torn_zip(path)
    with pytest.raises(Uncountable, match="torn"):
        count(path, "npz:a")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00\x02\x00{}")
        archive.writestr("b.npy", b"other")
    for array in ("a", "b"):
        with pytest.raises(Uncountable, match="without"):
            count(path, f"npz:{array}")
    with pytest.raises(Uncountable, match="no array 'c'"):
        count(path, "npz:c")
