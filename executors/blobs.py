"""Files named by the sha256 of their bytes.

    <root>/ab/abcdef...     a whole, verified file, read-only
    <root>/partial/...      what is being written or fetched; a fetch goes on where it stopped

A file is in the store when it has its final name, and it gets that by one rename after its bytes were
verified and flushed. Nothing is ever changed in place.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

import httpx

from executors.folder import link_or_copy

CHUNK_BYTES = 1024 * 1024
_HEX = frozenset("0123456789abcdef")
T = TypeVar("T")


class BlobError(Exception):
    """Base of what can go wrong with a file of the store."""


class WrongDigest(BlobError):  # noqa: N818
    """The bytes are not the ones their name promises."""


class HoldersGone(BlobError):  # noqa: N818
    """No holder could deliver the file; the text says what each of them answered."""


class TooLarge(BlobError):  # noqa: N818
    """More bytes came than were announced or are allowed."""


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
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._store.settle(self._path, digest)
        return digest

    def abandon(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


class Blobs:
    """The store of one node. Sync calls block on the disk; `fetch` does not.

    Reading, writing and pinning may happen on any thread; `fetch` belongs to one event loop.
    """

    def __init__(self, root: Path, pool: Executor | None = None) -> None:
        self.root = root
        self._partial = root / "partial"
        self._partial.mkdir(parents=True, exist_ok=True)
        #: threads for hashing and writing while a fetch goes on; None is the loop's own
        self.pool = pool
        self._pins: Counter[str] = Counter()
        self._fetching: dict[str, asyncio.Lock] = {}
        self._waiting: Counter[str] = Counter()

    def place(self, digest: str) -> Path:
        """Where a file with this digest is, or would be. Raises ValueError when it is no digest."""
        if len(digest) != 64 or not set(digest) <= _HEX:
            raise ValueError(f"{digest!r} is no sha256 in lower-case hex")
        return self.root / digest[:2] / digest

    def path(self, digest: str) -> Path | None:
        """The file, when the store has it."""
        path = self.place(digest)
        return path if path.is_file() else None

    def digests(self) -> set[str]:
        """Everything in the store; reads the directories."""
        return {f.name for d in self.root.iterdir() if len(d.name) == 2 for f in d.iterdir() if len(f.name) == 64}

    def writer(self, most: int | None = None) -> Writer:
        """Begin a file of unknown digest, such as an upload, of at most `most` bytes."""
        handle, name = tempfile.mkstemp(prefix="write-", dir=self._partial)
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
            try:
                self.place(digest).chmod(0o444)  # renews its change time, by which `sweep` tells its age
            except FileNotFoundError:
                os.fsync(file.fileno())
                beside = self._partial / f"adopt-{digest}-{os.getpid()}-{time.monotonic_ns()}"
                link_or_copy(source, beside)
                self.settle(beside, digest)
        return digest, size

    def settle(self, beside: Path, digest: str) -> None:
        """Give a verified file its final name."""
        final = self.place(digest)
        final.parent.mkdir(exist_ok=True)
        beside.chmod(0o444)
        beside.replace(final)
        folder = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def drop(self, digest: str) -> None:
        self.place(digest).unlink(missing_ok=True)

    @contextmanager
    def pinned(self, digests: Collection[str]) -> Iterator[None]:
        """Keep files from `sweep` for a while, whatever the rows say."""
        self._pins.update(digests)
        try:
            yield
        finally:
            self._pins.subtract(digests)

    def sweep(self, named: Collection[str], min_age_s: float) -> list[str]:
        """Delete files that no row names, no pin holds and that are older than `min_age_s`; blocks.

        Unfinished files of the same age go as well. Returns the deleted digests.
        """
        gone, now = [], time.time()
        for digest in self.digests():
            path = self.place(digest)
            with contextlib.suppress(FileNotFoundError):
                if digest not in named and self._pins[digest] <= 0 and now - path.stat().st_ctime >= min_age_s:
                    path.unlink()
                    gone.append(digest)
        for path in self._partial.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if now - path.stat().st_mtime >= max(min_age_s, 3600.0):
                    path.unlink()
        return gone

    async def fetch(
        self, digest: str, size_bytes: int, holders: Sequence[tuple[str, str]], client: httpx.AsyncClient
    ) -> Path:
        """The file, from here or from the first of `holders` (name, address) that delivers it whole.

        What arrived before a holder was lost is kept and the next one is asked for the rest. A holder
        whose bytes do not fit the digest is not asked again. Raises HoldersGone and OSError.
        """
        lock = self._fetching.setdefault(digest, asyncio.Lock())
        self._waiting[digest] += 1
        try:
            async with lock:
                found = self.path(digest)
                return found if found else await self._fetch(digest, size_bytes, holders, client)
        finally:
            self._waiting[digest] -= 1
            if not self._waiting[digest]:
                del self._fetching[digest], self._waiting[digest]

    async def _fetch(
        self, digest: str, size_bytes: int, holders: Sequence[tuple[str, str]], client: httpx.AsyncClient
    ) -> Path:
        unfinished = self._partial / f"fetch-{digest}"
        said = []
        for name, address in holders:
            try:
                await self._download(unfinished, f"{address.rstrip('/')}/artifacts/{digest}", size_bytes, client)
                actual = await self._run(lambda: _digest_of(unfinished))
                if actual == digest:
                    await self._run(lambda: self._accept(unfinished, digest))
                    return self.place(digest)
                await self._run(lambda: unfinished.unlink(missing_ok=True))
                said.append(f"{name} delivered other bytes (digest {actual[:12]}...)")
            except TooLarge as error:
                await self._run(lambda: unfinished.unlink(missing_ok=True))
                said.append(f"{name}: {error}")
            except (httpx.HTTPError, httpx.InvalidURL, BlobError) as error:
                said.append(f"{name} at {address}: {str(error) or type(error).__name__}")
        raise HoldersGone(f"the file {digest} could not be fetched: " + ("; ".join(said) or "no live node holds it"))

    async def _download(self, unfinished: Path, url: str, size_bytes: int, client: httpx.AsyncClient) -> None:
        have = unfinished.stat().st_size if unfinished.exists() else 0
        if size_bytes and have == size_bytes:
            return
        if size_bytes and have > size_bytes:
            have = 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        async with client.stream("GET", url, headers=headers) as response:
            if response.status_code == httpx.codes.PARTIAL_CONTENT and have:
                expected = f"bytes {have}-"
                if not response.headers.get("content-range", "").startswith(expected):
                    raise BlobError("it answered with another range than the one asked for")
            elif response.status_code == httpx.codes.OK:
                have = 0
            else:
                raise BlobError(f"it answered {response.status_code} to GET {url}")
            file = await self._run(lambda: unfinished.open("ab" if have else "wb"))
            buffer = bytearray()
            try:
                async for chunk in response.aiter_raw():
                    have += len(chunk)
                    if size_bytes and have > size_bytes:
                        raise TooLarge(f"more than the {size_bytes} bytes it should have arrived")
                    buffer += chunk
                    if len(buffer) >= CHUNK_BYTES:
                        await self._run(partial(file.write, bytes(buffer)))
                        buffer.clear()
            finally:
                # What came before a holder was lost is kept for the next one.
                await self._run(partial(_write_and_close, file, bytes(buffer)))
        if size_bytes and have < size_bytes:
            raise BlobError(f"it stopped after {have} of {size_bytes} bytes")

    def _accept(self, unfinished: Path, digest: str) -> None:
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        self.settle(unfinished, digest)

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.pool, call)


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_and_close(file: BinaryIO, data: bytes) -> None:
    with file:
        file.write(data)
