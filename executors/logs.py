"""Reads the logs of attempts, and drops old ones.

What a program prints goes straight into files (no pipe to break when the node process restarts); its
keeper halves a file that grows too long and leaves the older part in `<stream>.log.1`.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Literal

from executors import keepers
from executors.folder import file_name

Stream = Literal["stdout", "stderr", "shim"]
MAX_TAIL_BYTES = 1024 * 1024
#: what moves a terminal's cursor or colours its letters, and other characters that nobody sees
_CONTROLS = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
)
#: of a program's last words on one stream
MAX_WORDS_BYTES = 16 * 1024
CHUNK_BYTES = 64 * 1024
#: what is shown again of a log that was halved while nobody read it
AGAIN_BYTES = 64 * 1024


class NoLogs(Exception):  # noqa: N818
    """This node has no folder of that job: it ran elsewhere, or its logs are older than the retention."""


class Logs:
    """The logs below `<data>/jobs`, and those of hosts without an agent. The calls read at most MAX_TAIL_BYTES each."""

    def __init__(self, data_dir: Path) -> None:
        self._jobs = data_dir / "jobs"
        #: the folders of hosts that this node speaks for
        self._hosts = data_dir / "hosts"

    def folder(self, job: str) -> Path:
        """The folder of a job, of its highest fence and its last restart. Raises NoLogs."""
        prefix = file_name(job) + "-"
        found: list[tuple[int, int, Path]] = []
        for jobs in (self._jobs, *self._hosts.glob("*/jobs")):
            for entry in jobs.iterdir() if jobs.is_dir() else ():
                fence, _, restarts = entry.name.removeprefix(prefix).partition(".")
                if entry.name.startswith(prefix) and fence.isdecimal() and (restarts or "0").isdecimal():
                    found.append((int(fence), int(restarts or 0), entry))
        if not found:
            raise NoLogs(f"no logs of job {job!r} are on this node; ask the node that ran it")
        return max(found)[2]

    def tail(self, job: str, stream: Stream = "stdout", lines: int = 100) -> str:
        """The last lines a job's program wrote. Raises NoLogs."""
        return tail_of(self.folder(job), stream, lines)

    async def follow(
        self, job: str, stream: Stream = "stdout", poll_s: float = 0.25, offset: int = 0
    ) -> AsyncIterator[bytes]:
        """What the file holds after `offset`, then what is added to it, until the attempt has ended. Raises NoLogs.

        A file that is shorter than that was halved meanwhile, and nobody knows where its reader stood: the last
        AGAIN_BYTES of it are shown. One that is halved while it is followed is shown from where it begins now.
        """
        folder = await asyncio.to_thread(self.folder, job)
        path = folder / f"{stream}.log"
        size = path.stat().st_size if path.exists() else 0
        at = offset if offset <= size else max(0, size - AGAIN_BYTES)
        while True:
            ended = (folder / "exit.json").exists()  # looked at before the read: nothing is written after it
            if path.exists() and path.stat().st_size < at:
                at = 0  # its keeper halved it
            while chunk := _read(path, at):
                at += len(chunk)
                yield chunk
            if ended or not folder.exists():
                return
            await asyncio.sleep(poll_s)

    def sweep(self, keep: Collection[Path], max_age_s: float, max_bytes: int) -> list[Path]:
        """Delete folders of ended attempts that are too old, then the oldest until they fit; blocks.

        Returns the deleted folders. `keep` holds the folders of attempts that still matter.
        """
        if not self._jobs.is_dir():
            return []
        kept = {path.name for path in keep}
        found = []
        for entry in self._jobs.iterdir():
            if entry.name not in kept and entry.is_dir() and not entry.is_symlink():
                ended = entry / "exit.json"
                stamp = (ended if ended.exists() else entry).stat().st_mtime
                found.append((stamp, entry, _size(entry)))
        found.sort(key=lambda item: item[0])
        total, now, gone = sum(size for _, _, size in found), time.time(), []
        for stamp, entry, size in found:
            if now - stamp > max_age_s or total > max_bytes:
                keepers.remove(entry)
                gone.append(entry)
                total -= size
        return gone


def tail_of(folder: Path, stream: Stream, lines: int, max_bytes: int = MAX_TAIL_BYTES) -> str:
    """The last lines of one stream, reaching into the older file when the newer one was just begun."""
    data = b""
    for path in (folder / f"{stream}.log", folder / f"{stream}.log.1"):
        if data.count(b"\n") > lines or len(data) >= max_bytes:
            break
        data = _read(path, -(max_bytes - len(data)), max_bytes - len(data)) + data
    text = data.decode("utf-8", "replace")
    # A bar of progress that is drawn again and again is one line.
    return "\n".join(text.split("\n")[-(lines + text.endswith("\n")) :]) if lines > 0 else ""


def last_words(folder: Path, lines: int) -> str:
    """The end of what a program said, on stderr, else on stdout: some print their complaints there."""
    said = words_of(folder, "stderr", lines)
    return said if said.strip() else words_of(folder, "stdout", lines)


def words_of(folder: Path, stream: Stream, lines: int) -> str:
    """The end of one stream as people read it: without colours, and of a line that was redrawn what became of it."""
    text = _CONTROLS.sub("", tail_of(folder, stream, lines, MAX_WORDS_BYTES))
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


def _read(path: Path, at: int, most: int = CHUNK_BYTES) -> bytes:
    """Up to `most` bytes from a position, negative ones counted from the end; empty when there is no file."""
    try:
        with path.open("rb") as file:
            if at < 0:
                at = max(file.seek(0, os.SEEK_END) + at, 0)
            file.seek(at)
            return file.read(most)
    except OSError:
        return b""


def _size(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += (Path(root) / name).lstat().st_size
            except OSError:
                continue
    return total
