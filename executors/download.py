"""The download of one file from one holder: what is missing of it, hashed as it is written.

What came before a holder was lost is kept for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpcore
import httpx

from executors.blobs import BlobError, Blobs, TooLarge, digest_of
from executors.pace import Pace

#: bytes gathered before a thread writes and hashes them, while the next ones arrive
WRITE_BYTES = 2 * 1024 * 1024
#: says that the asker can go to another holder, so that none has to send a file more often than its share
SPREAD = "ringrift-spread"
# The library asks a socket for 64 KiB, a turn of the loop each. asyncio gives four times that at once, which saves a
# third of the CPU time of a fetch.
httpcore.AsyncHTTP11Connection.READ_NUM_BYTES = 256 * 1024


class BusyError(BlobError):
    """The holder sends enough already."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("it sends enough already")
        self.retry_after_s = retry_after_s


@dataclass
class Download:
    """One file and one of its holders. Who shares the store has it `blobs.arrivals.alone`."""

    http: httpx.AsyncClient
    blobs: Blobs
    pace: Pace
    digest: str
    #: 0: not known
    size_bytes: int
    #: name and address
    holder: tuple[str, str]
    #: this holder may send its asker on to others
    spread: bool
    #: told how much of the file is here
    tell: Callable[[int], None]
    #: what the last `get` brought
    got_bytes: int = 0

    def __post_init__(self) -> None:
        self.path = self.blobs.partial / f"fetch-{self.digest}"

    @property
    def senders(self) -> set[str]:
        """Who sent what is in the unfinished file."""
        earlier = {"an earlier process"} if self.path.exists() else set()
        return self.blobs.arrivals.senders.setdefault(self.digest, earlier)

    async def get(self) -> str:
        """Get what is missing; the digest of the whole. Raises BlobError, BusyError, httpx.HTTPError and OSError."""
        self.got_bytes = 0
        have = self.path.stat().st_size if self.path.exists() else 0
        if self.size_bytes and have == self.size_bytes:
            return await self.blobs.run(partial(digest_of, self.path))
        if self.size_bytes and have > self.size_bytes:
            have = 0
        async with self._request(have) as response:
            have = self._begin(response, have)
            sink = await self.blobs.run(partial(_Sink, self.path, have))
            try:
                await self._receive(response, sink)
            finally:
                await self.blobs.run(sink.close)
                self.got_bytes = sink.size_bytes - have
        if self.size_bytes and sink.size_bytes < self.size_bytes:
            raise BlobError(f"it stopped after {sink.size_bytes} of {self.size_bytes} bytes")
        return sink.digest()

    def _request(self, have: int) -> AbstractAsyncContextManager[httpx.Response]:
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        return self.http.stream("GET", self._url, headers=headers | ({SPREAD: "1"} if self.spread else {}))

    @property
    def _url(self) -> str:
        return f"{self.holder[1].rstrip('/')}/artifacts/{self.digest}"

    def _begin(self, response: httpx.Response, have: int) -> int:
        """How much of the file is kept, by what the holder answers."""
        if response.status_code == httpx.codes.PARTIAL_CONTENT and have:
            if not response.headers.get("content-range", "").startswith(f"bytes {have}-"):
                raise BlobError("it answered with another range than the one asked for")
        elif response.status_code == httpx.codes.OK:
            have = 0
        elif response.status_code in (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.TOO_MANY_REQUESTS):
            raise BusyError(_retry_after_s(response))
        else:
            raise BlobError(f"it answered {response.status_code} to GET {self._url}")
        senders = self.senders
        if not have:
            senders.clear()
        senders.add(self.holder[0])
        return have

    async def _receive(self, response: httpx.Response, sink: _Sink) -> None:
        """Write and hash on another thread what arrived, while the next bytes arrive."""
        buffer = bytearray()
        writing: asyncio.Future[None] | None = None
        arrived = sink.size_bytes
        try:
            async for chunk in response.aiter_raw():
                arrived += len(chunk)
                if self.size_bytes and arrived > self.size_bytes:
                    raise TooLarge(f"more than the {self.size_bytes} bytes it should have arrived")
                buffer += chunk
                if len(buffer) >= WRITE_BYTES:
                    await self.pace.take(len(buffer))
                    self.tell(arrived)
                    if writing is not None:
                        # A thread cannot be cancelled: the next one who fetches must not meet its last bytes.
                        await asyncio.shield(writing)
                    writing = asyncio.ensure_future(self.blobs.run(partial(sink.write, buffer)))
                    buffer = bytearray()
        finally:
            if writing is not None:
                await writing
            if buffer:
                await self.blobs.run(partial(sink.write, buffer))

    async def settle(self) -> Path:
        """The bytes are the right ones: the file gets its name. Raises OSError."""
        await self.blobs.run(partial(self.blobs.settle, self.path, self.digest))
        self.blobs.arrivals.senders.pop(self.digest, None)
        return self.blobs.place(self.digest)

    async def forget(self) -> None:
        """Throw away what is here of the file."""
        self.blobs.arrivals.senders.pop(self.digest, None)
        await self.blobs.run(lambda: self.path.unlink(missing_ok=True))


class _Sink:
    """An unfinished file and the hash of what is in it. One thread at a time."""

    def __init__(self, path: Path, have: int) -> None:
        self._hash = hashlib.sha256()
        if have:
            with path.open("rb") as file:
                while chunk := file.read(WRITE_BYTES):
                    self._hash.update(chunk)
        self.size_bytes = have
        self._file = path.open("ab" if have else "wb", buffering=0)

    def write(self, data: bytearray) -> None:
        with memoryview(data) as rest:
            done = 0
            while done < len(rest):
                done += self._file.write(rest[done:]) or 0
        self._hash.update(data)
        self.size_bytes += len(data)

    def digest(self) -> str:
        return self._hash.hexdigest()

    def close(self) -> None:
        self._file.close()


def _retry_after_s(response: httpx.Response) -> float:
    with contextlib.suppress(ValueError):
        return min(max(float(response.headers.get("retry-after", "1")), 0.05), 30.0)
    return 1.0
