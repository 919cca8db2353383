"""Files named by the sha256 of their bytes.

    <root>/ab/abcdef...     a whole, verified file, read-only; its mtime is when it was last used
    <root>/partial/...      what is being written, fetched or received; a fetch goes on where it stopped
    <root>/quarantine/...   copies whose bytes went bad, kept for a while to be looked at

A file is in the store when it has its final name, and it gets that by one rename after its bytes were
verified and flushed. Nothing is ever changed in place.

A copy that the cluster counts on is deleted in three steps: `leave`, then the release of the holding in the log,
then `delete_left`, which deletes nothing when somebody stored or pinned the file again in the meantime.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import BinaryIO, TypeVar

from executors.arrivals import Arrivals
from executors.keepers import link_or_copy

T = TypeVar("T")

#: how long a copy that went bad is kept to be looked at
QUARANTINE_S = 7 * 86_400.0
#: unfinished files are kept at least this long, so that what writes them can go on
PARTIAL_S = 3600.0
_HEX = frozenset("0123456789abcdef")


class BlobError(Exception):
    """Base of what can go wrong with a file of the store."""


class WrongDigest(BlobError):  # noqa: N818
    """The bytes are not the ones their name promises."""


class TooLarge(BlobError):  # noqa: N818
    """More bytes came than were announced or are allowed."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A file of the store; `used_s` is wall time."""

    digest: str
    size_bytes: int
    used_s: float


def digest_of(path: Path) -> str:
    """The name that a file's bytes give it; blocks. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Writer:
    """One file on its way into the store; `commit` or `abandon` ends it."""

    def __init__(self, store: Blobs, path: Path, file: BinaryIO, most: int | None) -> None:
        self._store = store
        self._path = path
        self._file = file
        self._most = most
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: bytes) -> None:
        """Append bytes. Raises TooLarge and OSError."""
        self.size_bytes += len(data)
        if self._most is not None and self.size_bytes > self._most:
            raise TooLarge(f"the file is larger than the {self._most} bytes it may have")
        self._hash.update(data)
        self._file.write(data)

    def commit(self, expected: str | None = None) -> str:
        """Make the file part of the store; returns its digest. Raises WrongDigest and OSError."""
        digest = self._hash.hexdigest()
        if expected is not None and digest != expected:
            self.abandon()
            raise WrongDigest(f"the bytes have the digest {digest}, not {expected}; send the file again")
        self._file.close()
        self._store.settle(self._path, digest)
        return digest

    def abandon(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


class Blobs:
    """The store of one node. All calls but `run` may happen on any thread and block on the disk."""

    def __init__(self, root: Path, pool: Executor | None = None, quota_bytes: int = 0) -> None:
        self.root = root
        self.partial = root / "partial"
        self.partial.mkdir(parents=True, exist_ok=True)
        self._quarantine = root / "quarantine"
        #: threads for hashing and writing while a transfer goes on; None is the loop's own
        self.pool = pool
        #: how much may be stored; 0 is no bound
        self.quota_bytes = quota_bytes
        #: what the files take, by the last look at the directory and what came and went since
        self.taken_bytes = 0
        #: what is being fetched; the agents of a node and of its hosts share one store
        self.arrivals = Arrivals()
        self._pins: Counter[str] = Counter()
        #: held while a file gets or loses its final name
        self._names = Lock()
        self._leaving: set[str] = set()

    async def run(self, call: Callable[[], T]) -> T:
        """Do something with a file on the store's threads."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, call)

    def place(self, digest: str) -> Path:
        """Where a file with this digest is, or would be. Raises ValueError when it is no digest."""
        if len(digest) != 64 or not set(digest) <= _HEX:
            raise ValueError(f"{digest!r} is no sha256 in lower-case hex")
        return self.root / digest[:2] / digest

    def path(self, digest: str) -> Path | None:
        """The file, when the store has it."""
        path = self.place(digest)
        return path if path.is_file() else None

    def use(self, digest: str) -> Path | None:
        """The file, noted as used now; those used longest ago are the first to be evicted."""
        path = self.path(digest)
        if path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)
        return path

    def stored(self) -> list[Stored]:
        """Everything in the store; reads the directories."""
        found = []
        for path in self._files():
            with contextlib.suppress(FileNotFoundError):
                about = path.stat()
                found.append(Stored(path.name, about.st_size, about.st_mtime))
        return found

    def digests(self) -> set[str]:
        """The names of everything in the store; reads the directories."""
        return {path.name for path in self._files()}

    def used_bytes(self) -> int:
        """What the store takes, unfinished files included; reads the directories."""
        unfinished = 0
        for path in self.partial.iterdir():
            with contextlib.suppress(FileNotFoundError):
                unfinished += path.stat().st_size
        self.taken_bytes = unfinished + sum(one.size_bytes for one in self.stored())
        return self.taken_bytes

    def _files(self) -> Iterator[Path]:
        return (f for d in self.root.iterdir() if len(d.name) == 2 for f in d.iterdir() if len(f.name) == 64)

    def writer(self, most: int | None = None) -> Writer:
        """Begin a file of unknown digest, such as an upload, of at most `most` bytes."""
        handle, name = tempfile.mkstemp(prefix="write-", dir=self.partial)
        return Writer(self, Path(name), os.fdopen(handle, "wb"), most)

    def add(self, data: bytes) -> str:
        """Store bytes that are in memory; returns their digest."""
        writer = self.writer()
        writer.write(data)
        return writer.commit()

    def adopt(self, source: Path) -> tuple[str, int]:
        """Hash a local file and link it into the store; returns digest and size. Raises OSError.

        The link shares the file's bytes, so nothing may write to the source any more.
        """
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = os.fstat(file.fileno()).st_size
            if not self._again(digest):
                beside = self.partial / f"adopt-{digest}-{os.getpid()}-{time.monotonic_ns()}"
                link_or_copy(source, beside)
                self.settle(beside, digest)
        return digest, size

    def _again(self, digest: str) -> bool:
        """Whether the file is here already; if so it stays, whatever was to become of it."""
        with self._names:
            self._leaving.discard(digest)
            try:
                self.place(digest).chmod(0o444)  # renews its change time, by which `sweep` tells its age
            except FileNotFoundError:
                return False
            return self.use(digest) is not None

    def settle(self, beside: Path, digest: str) -> None:
        """Flush a verified file and give it its final name."""
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        final = self.place(digest)
        beside.chmod(0o444)
        if not final.parent.is_dir():
            final.parent.mkdir(exist_ok=True)
            _sync_dir(self.root)
        with self._names:
            self._leaving.discard(digest)
            self.taken_bytes += beside.stat().st_size
            beside.replace(final)
        _sync_dir(final.parent)

    def leave(self, digest: str) -> bool:
        """Begin to delete a file: false when it is pinned. Ended by `delete_left` or `keep_left`."""
        with self._names:
            if self._pins[digest] > 0:
                return False
            self._leaving.add(digest)
            return True

    def delete_left(self, digest: str) -> bool:
        """Delete a file whose holding is released: false when it was stored or pinned again since `leave`."""
        with self._names:
            if digest not in self._leaving or self._pins[digest] > 0:
                return False
            self._leaving.discard(digest)
            self._unlink(digest)
            return True

    def _unlink(self, digest: str) -> None:
        path = self.place(digest)
        with contextlib.suppress(FileNotFoundError):
            size_bytes = path.stat().st_size
            path.unlink()
            self.taken_bytes -= size_bytes

    def keep_left(self, digest: str) -> None:
        with self._names:
            self._leaving.discard(digest)

    def quarantine(self, digest: str) -> Path | None:
        """Take a copy whose bytes went bad out of the store; returns where it is kept."""
        self._quarantine.mkdir(exist_ok=True)
        aside = self._quarantine / f"{digest}-{time.time_ns()}"
        try:
            with self._names:
                self.place(digest).rename(aside)
        except FileNotFoundError:
            return None
        _sync_dir(self.place(digest).parent)
        os.utime(aside)
        return aside

    @contextmanager
    def pinned(self, digests: Collection[str]) -> Iterator[None]:
        """Keep files from `sweep` and eviction for a while, whatever the rows say."""
        with self._names:
            self._pins.update(digests)
        try:
            yield
        finally:
            with self._names:
                self._pins.subtract(digests)

    def unnamed(self, named: Collection[str], min_age_s: float) -> list[str]:
        """Files that are not among `named`, that no pin holds and that are older than `min_age_s`; blocks."""
        return [path.name for path in self._files() if path.name not in named and self._spare(path, min_age_s)]

    def _spare(self, path: Path, min_age_s: float) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return time.time() - path.stat().st_ctime >= min_age_s and self._pins[path.name] <= 0
        return False

    def sweep(self, unnamed: Collection[str], min_age_s: float) -> list[str]:
        """Delete those of `unnamed` that no pin holds and that are older than `min_age_s`; blocks.

        Unfinished files and those in quarantine go at an age of their own. Returns the deleted digests.
        """
        gone, now = [], time.time()
        for digest in unnamed:
            with self._names:
                if self._spare(self.place(digest), min_age_s):
                    self._unlink(digest)
                    gone.append(digest)
        for folder, age_s in ((self.partial, max(min_age_s, PARTIAL_S)), (self._quarantine, QUARANTINE_S)):
            for path in folder.iterdir() if folder.is_dir() else ():
                with contextlib.suppress(FileNotFoundError):
                    if now - path.stat().st_mtime >= age_s:
                        path.unlink()
        return gone


def _sync_dir(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
