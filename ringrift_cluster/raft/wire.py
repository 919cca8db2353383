"""What travels between voters: length-prefixed frames on a connection that is read where its bytes arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from ringrift_cluster.raft.messages import MAX_FRAME_BYTES
from ringrift_cluster.raft.seal import SEAL_BYTES, Seal

#: what may be read ahead of one connection, a stranger's included, is about twice this
READ_LIMIT = 128 * 1024


class Refused(Exception):  # noqa: N818 - an answer
    """A connection was not made, or is to end; says why."""


class Wire(asyncio.StreamReaderProtocol):
    """A connection that is read as a stream while both ends greet, and then by whoever takes what arrives.

    A task that reads costs two turns of the loop for each message; a command takes half a dozen of them.
    """

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader(limit=READ_LIMIT)
        self._taker: Callable[[bytes], None] | None = None
        self._fed_bytes = 0
        super().__init__(self.reader)

    def data_received(self, data: bytes) -> None:
        if self._taker is not None:
            self._taker(data)
            return
        self._fed_bytes += len(data)
        super().data_received(data)

    async def hand_over(self, taker: Callable[[bytes], None], read_bytes: int) -> None:
        """Give `taker` what was fed to the reader beyond `read_bytes`, and then all that arrives until the end."""
        ahead = self._fed_bytes - read_bytes
        if ahead:
            # It is there already, so this does not wait and nothing overtakes it.
            taker(await self.reader.readexactly(ahead))
        self._taker = taker
        await self.reader.read()


class Link:
    """One established connection; without a secret, and under TLS, its frames carry no seals."""

    __slots__ = ("buffer", "heard_at", "inbound", "outbound", "writer")

    def __init__(self, writer: asyncio.StreamWriter, now: float, seals: tuple[Seal, Seal] | None) -> None:
        self.writer = writer
        #: the beginning of a frame
        self.buffer = bytearray()
        self.heard_at = now
        self.outbound = seals[0] if seals else None
        self.inbound = seals[1] if seals else None

    def frames(self, chunk: bytes) -> Iterator[bytes]:
        """The frames that `chunk` completes. Raises Refused with the reason to count."""
        buffer, inbound = self.buffer, self.inbound
        seal_bytes = 0 if inbound is None else SEAL_BYTES
        buffer += chunk
        start = 0
        while len(buffer) - start >= 4:
            size = int.from_bytes(buffer[start : start + 4], "big")
            if size > MAX_FRAME_BYTES:
                raise Refused("frame_too_large")
            end = start + 4 + size + seal_bytes
            if end > len(buffer):
                break
            data = bytes(buffer[start + 4 : start + 4 + size])
            if inbound is not None and not inbound.fits(data, buffer[end - SEAL_BYTES : end]):
                raise Refused("broken_seal")
            start = end
            yield data
        del buffer[:start]

    def write(self, data: bytes) -> int:
        """Send one frame; returns the bytes it took."""
        seal = b"" if self.outbound is None else self.outbound.next(data)
        self.writer.write(b"".join((len(data).to_bytes(4, "big"), data, seal)))
        return 4 + len(data) + len(seal)


def prefixed(data: bytes) -> bytes:
    """One frame, as it travels before frames are sealed."""
    return len(data).to_bytes(4, "big") + data


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`; brackets around an IPv6 host are taken off."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{address!r} is not an address of the form host:port")
    return host.strip("[]"), int(port)
