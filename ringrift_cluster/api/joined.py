"""Small writes of one moment leave in one packet."""

from __future__ import annotations

import asyncio
from typing import Any

#: what is at least so large leaves at once, with what waited before it
LARGE_BYTES = 16 * 1024


class Joined:
    """An asyncio transport whose small writes wait for the end of the loop's present turn.

    uvicorn writes the head and the body of an answer apart: two system calls here, two packets, and a client that
    wakes twice.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []
        self._bytes = 0

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._send)
        self._parts.append(data)
        self._bytes += len(data)
        if self._bytes >= LARGE_BYTES:
            self._send()

    def _send(self) -> None:
        parts, self._parts, self._bytes = self._parts, [], 0
        if parts:
            self._transport.write(b"".join(parts))

    def write_eof(self) -> None:
        self._send()
        self._transport.write_eof()

    def close(self) -> None:
        self._send()
        self._transport.close()

    def abort(self) -> None:
        self._parts.clear()
        self._transport.abort()

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size() + self._bytes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
