"""Counts what is in a file that some program made: lines, rows of a table, the length of an array, a number.

    lines         complete lines, whatever they hold
    rows:TABLE    rows of an SQLite table; the file is made whole first (its log is written back into it)
    npz:ARRAY     the first axis of an array of an NPZ file, from its header
    json:KEY      a whole number in a JSON object

Every function raises Uncountable with the reason in words; none loads a file whole.
"""

from __future__ import annotations

import ast
import contextlib
import json
import sqlite3
import zipfile
import zlib
from pathlib import Path

CHUNK_BYTES = 1024 * 1024
MAX_JSON_BYTES = 1024 * 1024
MAX_HEADER_BYTES = 64 * 1024


class Uncountable(Exception):  # noqa: N818
    """The file is not what it should be, or is torn."""


def count(path: Path, how: str) -> int:
    """Count in a file by a rule of the module's table. Raises Uncountable and OSError."""
    kind, _, what = how.partition(":")
    match kind:
        case "lines":
            return lines(path)
        case "rows":
            return rows(path, what)
        case "npz":
            return axis(path, what)
        case "json":
            return number(path, what)
    raise Uncountable(f"{how!r} is no way to count")


def lines(path: Path) -> int:
    """Complete lines: a last one without its end is torn and does not count."""
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            total += chunk.count(b"\n")
    return total


def cut_torn_line(path: Path) -> None:
    """Take a last line without its end off a file, as its writer was killed in the middle of it."""
    with path.open("rb+") as file:
        at = size = file.seek(0, 2)
        while at > 0:
            start = max(at - CHUNK_BYTES, 0)
            file.seek(start)
            end = file.read(at - start).rfind(b"\n")
            if end >= 0:
                if start + end + 1 < size:
                    file.truncate(start + end + 1)
                return
            at = start
        file.truncate(0)


def rows(path: Path, table: str) -> int:
    """Rows of a table. What a writer left in the database's own log is brought into the file first."""
    quoted = '"' + table.replace('"', '""') + '"'
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=5.0)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            database.execute("PRAGMA journal_mode=DELETE")
            (found,) = database.execute(f"SELECT count(*) FROM {quoted}").fetchone()  # noqa: S608 - quoted above
    except sqlite3.Error as error:
        raise Uncountable(f"SQLite says: {error}") from error
    return int(found)


def axis(path: Path, array: str) -> int:
    """The length of an array's first axis; the archive's checksums are verified on the way."""
    try:
        with zipfile.ZipFile(path) as archive:
            if (torn := archive.testzip()) is not None:
                raise Uncountable(f"its member {torn} is torn")
            with archive.open(f"{array}.npy") as member:
                shape = _shape(member.read(MAX_HEADER_BYTES))
    except KeyError as error:
        raise Uncountable(f"it has no array {array!r}") from error
    # NotImplementedError is the library's word for an unknown compression, SyntaxError for a header that is no literal.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, SyntaxError) as error:
        raise Uncountable(f"it is no NPZ file: {error}") from error
    return shape[0] if shape else 1


def _shape(head: bytes) -> tuple[int, ...]:
    """The shape that an NPY header tells: magic, version, length, a Python dict as text."""
    if head[:6] != b"\x93NUMPY":
        raise ValueError("an array without NumPy's magic bytes")
    width = 2 if head[6] == 1 else 4
    length = int.from_bytes(head[8 : 8 + width], "little")
    text = head[8 + width : 8 + width + length].decode("latin-1")
    shape = ast.literal_eval(text.strip()).get("shape")
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError("an array without a shape")
    return shape


def number(path: Path, key: str) -> int:
    """A whole number in a JSON object."""
    with path.open("rb") as file:
        raw = file.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise Uncountable(f"it is larger than the {MAX_JSON_BYTES} bytes that are read")
    try:
        value = json.loads(raw)
    except ValueError as error:
        raise Uncountable(f"it is no JSON: {error}") from error
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, int) or isinstance(found, bool) or found < 0:
        raise Uncountable(f"it holds no whole number under {key!r}")
    return found
