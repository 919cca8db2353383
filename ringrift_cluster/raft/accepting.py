"""Connections as they come in: taken in short runs, and under TLS before anybody reads them.

asyncio's own server would count none of them and give each a minute to shake hands.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from ringrift_cluster.raft.lobby import origin_of

log = logging.getLogger(__name__)
P = TypeVar("P", bound=asyncio.BaseProtocol)

#: connections taken in a row before anything else gets a turn
RUN = 16
#: out of file descriptors, or the kernel is: look again after this
PAUSE_S = 0.1


async def accept(listener: socket.socket, refusals: Counter[str], admit: Callable[[socket.socket, str], None]) -> None:
    """Give each connection to `admit`, with whom it counts for, until cancelled. Counts `accept_failed`."""
    loop = asyncio.get_running_loop()
    run = 0
    while True:
        try:
            taken, address = await loop.sock_accept(listener)
        except OSError as error:
            refusals["accept_failed"] += 1
            log.warning("event=accept_failed error=%s", error)
            await asyncio.sleep(PAUSE_S)
            continue
        admit(taken, origin_of(str(address[0])))
        run = (run + 1) % RUN
        if not run:
            await asyncio.sleep(0)


async def connect(
    taken: socket.socket, protocol: Callable[[], P], tls: ssl.SSLContext | None, handshake_s: float, *, clear_too: bool
) -> tuple[asyncio.Transport, P]:
    """Shake hands under TLS, in at most so many seconds; with `clear_too` only with who begins so.

    Raises OSError and TimeoutError.
    """
    if tls is not None and clear_too:
        async with asyncio.timeout(handshake_s):
            tls = tls if await _speaks_tls(taken) else None
    loop = asyncio.get_running_loop()
    return await loop.connect_accepted_socket(
        protocol, taken, ssl=tls, ssl_handshake_timeout=handshake_s if tls else None
    )


async def _speaks_tls(taken: socket.socket) -> bool:
    """Whether a connection begins with a TLS record; waits for its first byte."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return taken.recv(1, socket.MSG_PEEK) == b"\x16"
        except BlockingIOError:
            arrived = asyncio.Event()
            loop.add_reader(taken, arrived.set)
            try:
                await arrived.wait()
            finally:
                loop.remove_reader(taken)
