"""Sending a file to a storage node, piece by piece: for nodes that nobody can reach."""

from __future__ import annotations

from pathlib import Path

import httpx
import msgspec
from msgspec import Struct

from executors.blobs import BlobError
from executors.transfers import Transfers
from statemachine.copies import Copy
from statemachine.errors import UNDECODABLE

#: bytes in one request: what is lost at most when a connection breaks on the way through a proxy
PIECE_BYTES = 8 * 1024 * 1024
#: answers that brought nothing forward, before it is given up for now
TRIES = 4


class NotSent(BlobError):  # noqa: N818
    """The file could not be sent; the text says what the target answered."""


class Progress(Struct, frozen=True):
    """What a target says it has of a file."""

    received_bytes: int
    stored: bool


class Sender:
    """Sends files of one node. Belongs to one event loop."""

    def __init__(self, transfers: Transfers) -> None:
        self._transfers = transfers

    async def send(self, path: Path, copy: Copy) -> None:
        """Return when the target has stored and verified the file; what it has already is not sent again.

        Raises NotSent and OSError.
        """
        url = f"{copy.address.rstrip('/')}/artifacts/{copy.digest}"
        book = self._transfers.book
        try:
            await self._send(path, url, copy)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            book.failed(copy.target)
            raise NotSent(f"{copy.target} at {copy.address}: {str(error) or type(error).__name__}") from error
        except NotSent:
            book.failed(copy.target)
            raise
        book.answered(copy.target)

    async def _send(self, path: Path, url: str, copy: Copy) -> None:
        http = self._transfers.http
        at = self._read(await http.get(f"{url}/upload"), url)
        idle = 0
        while not at.stored:
            if at.received_bytes > copy.size_bytes or idle >= TRIES:
                raise NotSent(f"{copy.target} takes nothing more of {copy.digest} after {at.received_bytes} bytes")
            data = await self._piece(path, at.received_bytes)
            await self._transfers.pace.take(len(data))
            first, before = at.received_bytes, at
            part = f"{first}-{first + len(data) - 1}" if data else "*"
            headers = {"Content-Range": f"bytes {part}/{copy.size_bytes}"}
            answer = await http.put(url, content=data, headers=headers)
            if answer.status_code == httpx.codes.CONFLICT:
                answer = await http.get(f"{url}/upload")
            at = self._read(answer, url)
            idle = idle + 1 if at.received_bytes <= before.received_bytes else 0

    def _read(self, response: httpx.Response, url: str) -> Progress:
        if response.status_code not in (200, 201, 202):
            raise NotSent(f"it answered {response.status_code} to {response.request.method} {url}: {_detail(response)}")
        if response.status_code == 201:
            return Progress(0, True)
        try:
            return msgspec.json.decode(response.content, type=Progress)
        except UNDECODABLE as error:
            raise NotSent(f"it answered {response.status_code} to {url} with something else: {error}") from error

    async def _piece(self, path: Path, start: int) -> bytes:
        def read() -> bytes:
            with path.open("rb") as file:
                file.seek(start)
                return file.read(PIECE_BYTES)

        return await self._transfers.blobs.run(read)


def _detail(response: httpx.Response) -> str:
    try:
        return str(msgspec.json.decode(response.content).get("detail", ""))[:300]
    except (*UNDECODABLE, AttributeError):
        return response.text[:100]
