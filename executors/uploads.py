"""Files that are received in pieces: each sender's pieces of a file go one after the other into one unfinished file."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from executors.blobs import BlobError, Blobs, TooLarge, WrongDigest, digest_of

#: bytes gathered before a thread writes them
WRITE_BYTES = 1024 * 1024
#: an unfinished file that has not grown for so long takes nobody's place: a sender that goes on comes back sooner
ABANDONED_S = 120.0


class NoRoom(BlobError):  # noqa: N818
    """The store's quota does not allow so much more."""


class OutOfStep(BlobError):  # noqa: N818
    """The piece does not begin where the unfinished file ends."""

    def __init__(self, received_bytes: int) -> None:
        super().__init__(f"{received_bytes} bytes are here; the next piece begins there")
        self.received_bytes = received_bytes


class InUse(BlobError):  # noqa: N818
    """Another request writes to the same unfinished file, or too many files are on their way."""


class Uploads:
    """The receiving side of one node's store. Belongs to one event loop."""

    def __init__(self, blobs: Blobs, most: int = 64) -> None:
        self._blobs = blobs
        #: unfinished files at a time
        self._most = most
        self._writing: set[Path] = set()

    def received(self, digest: str, sender: str) -> int:
        """How much of a file has come from this sender; blocks on the disk."""
        path = self._path(digest, sender)
        return path.stat().st_size if path.exists() else 0

    def check_room(self, size_bytes: int) -> None:
        """Raises NoRoom."""
        blobs = self._blobs
        if blobs.quota_bytes and blobs.taken_bytes + size_bytes > blobs.quota_bytes:
            raise NoRoom(f"the file has {size_bytes} bytes, and the store's quota of {blobs.quota_bytes} is used up")

    async def take(
        self, digest: str, sender: str, start: int, size_bytes: int, body: AsyncIterator[bytes]
    ) -> tuple[int, bool]:
        """Append one piece; (bytes that are here, whether the file is whole, verified and stored).

        What came before the sender was lost is kept. Raises OutOfStep, InUse, NoRoom, TooLarge, WrongDigest, OSError.
        """
        path = self._path(digest, sender)
        others = self._writing | await self._blobs.run(self._recent)
        if path in self._writing or len(others - {path}) >= self._most:
            raise InUse("the same file is being received, or too many are; come back")
        self._writing.add(path)
        try:
            have = await self._blobs.run(partial(self.received, digest, sender))
            if start != have:
                raise OutOfStep(have)
            self.check_room(size_bytes - have)
            have = await self._append(path, have, size_bytes, body)
            if have < size_bytes:
                return have, False
            await self._blobs.run(partial(self._finish, path, digest))
            return have, True
        finally:
            self._writing.discard(path)

    def _recent(self) -> set[Path]:
        """Unfinished files that somebody has written to lately; blocks."""
        found, since_s = set(), time.time() - ABANDONED_S
        for path in self._blobs.partial.glob("push-*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime > since_s:
                    found.add(path)
        return found

    async def _append(self, path: Path, have: int, size_bytes: int, body: AsyncIterator[bytes]) -> int:
        file = await self._blobs.run(lambda: path.open("ab"))
        pending = bytearray()
        try:
            async for data in body:
                have += len(data)
                if have > size_bytes:
                    raise TooLarge(f"more came than the {size_bytes} bytes that were announced")
                pending += data
                if len(pending) >= WRITE_BYTES:
                    await self._blobs.run(partial(file.write, bytes(pending)))
                    pending.clear()
        finally:
            if have <= size_bytes and pending:
                await self._blobs.run(partial(file.write, bytes(pending)))
            await self._blobs.run(file.close)
        return have

    def _finish(self, path: Path, digest: str) -> None:
        actual = digest_of(path)
        if actual != digest:
            path.unlink(missing_ok=True)
            raise WrongDigest(f"the bytes have the digest {actual}, not {digest}; send the file again")
        self._blobs.settle(path, digest)

    def _path(self, digest: str, sender: str) -> Path:
        self._blobs.place(digest)  # a name that is no digest is refused
        # Nobody can spoil what another sends.
        tag = hashlib.blake2b(sender.encode(), digest_size=6).hexdigest()
        return self._blobs.partial / f"push-{digest}-{tag}"
