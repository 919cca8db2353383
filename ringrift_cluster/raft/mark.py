"""How far a journal was known to be on disk: one line beside it, `journal.mark`.

It is written after each durable batch and never synced itself, so it may lag behind the journal (after a power
cut by some seconds) and never runs ahead of it. A journal that is behind its mark has lost what was on disk: its
end was cut, its write-ahead log is gone, or an older copy was put back.
"""

from __future__ import annotations

import mmap
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(rb"([0-9a-f]{1,32}|-) +(\d{20}) ([0-9a-f]{8})\n")


@dataclass(frozen=True, slots=True)
class Mark:
    """The log's id (empty while it has none) and the number of its last batch."""

    log_id: str
    batch: int


def mark_path(journal: Path) -> Path:
    return journal.with_suffix(".mark")


def encode_mark(mark: Mark) -> bytes:
    """A line of 63 bytes, within one sector."""
    body = f"{mark.log_id or '-':<32} {mark.batch:020d} ".encode("ascii")
    return body + f"{zlib.crc32(body):08x}\n".encode("ascii")


def read_mark(journal: Path) -> Mark | None:
    """The mark of a journal; None when there is none. Raises ValueError for one that cannot be read."""
    try:
        data = mark_path(journal).read_bytes()
    except FileNotFoundError:
        return None
    found = _LINE.fullmatch(data)
    if found is None or zlib.crc32(data[: found.start(3)]) != int(found[3], 16):
        raise ValueError(f"the mark {mark_path(journal)} cannot be read")
    log_id = found[1].decode("ascii")
    return Mark("" if log_id == "-" else log_id, int(found[2]))


class MarkFile:
    """The file mapped into memory, so that a mark is a copy of some bytes and outlives a killed process."""

    def __init__(self, journal: Path, mark: Mark) -> None:
        """Raises OSError."""
        line = encode_mark(mark)
        file = os.open(mark_path(journal), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(file, len(line))
            os.pwrite(file, line, 0)
            self._map = mmap.mmap(file, len(line))
        finally:
            os.close(file)

    def write(self, mark: Mark) -> None:
        self._map[:] = encode_mark(mark)

    def close(self) -> None:
        self._map.close()
