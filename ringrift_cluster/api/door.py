"""Where connections under TLS shake hands before HTTP hears of them: a bounded number, for a bounded time.

asyncio's own server would give every one a minute, and count none of them.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable

from ringrift_cluster.raft.lobby import Lobby, Stranger, origin_of
from ringrift_cluster.raft.wire import speaks_tls

log = logging.getLogger(__name__)

HANDSHAKE_S = 10.0
#: handshakes at one time; one more takes the place of the least promising (see `Lobby`)
HANDSHAKES = 256
#: connections taken in a row before anything else gets a turn
ACCEPT_RUN = 16
#: out of file descriptors, or the kernel is: look again after this
ACCEPT_PAUSE_S = 0.1


class Door:
    """One listening socket; to uvicorn it is a server like asyncio's."""

    def __init__(
        self,
        listener: socket.socket,
        tls: ssl.SSLContext,
        protocol: Callable[[], asyncio.Protocol],
        refusals: Counter[str],
        *,
        clear_too: bool = False,
    ) -> None:
        """Begins at once. `refusals` counts `tls` (no handshake) and `too_many_handshakes`. With `clear_too` whoever
        does not begin with TLS is let through without it."""
        self._listener = listener
        self._tls = tls
        self._protocol = protocol
        self._refusals = refusals
        self._clear_too = clear_too
        self._lobby = Lobby(HANDSHAKES)
        self._shaking: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    def close(self) -> None:
        """Take nobody else; who is not through the door is sent away."""
        for task in (self._accepting, *self._shaking):
            task.cancel()
        # Before it is closed: the socket lives on under another number when the node only changes its seat, and what is
        # watched would be so under the old number, which the next server's gets again.
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()

    async def wait_closed(self) -> None:
        await asyncio.wait({self._accepting, *self._shaking})

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        run = 0
        while True:
            try:
                taken, address = await loop.sock_accept(self._listener)
            except OSError as error:
                self._refusals["accept_failed"] += 1
                log.warning("event=http_accept_failed error=%r", error)
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            self._admit(taken, origin_of(str(address[0])))
            run = (run + 1) % ACCEPT_RUN
            if not run:
                await asyncio.sleep(0)

    def _admit(self, taken: socket.socket, origin: str) -> None:
        task = asyncio.get_running_loop().create_task(self._shake(taken))
        stranger = Stranger(origin, task.cancel)
        self._shaking.add(task)

        def done(_: asyncio.Task[None]) -> None:
            self._shaking.discard(task)
            self._lobby.leave(stranger)
            if task.cancelled():
                # One that never began its handshake closes nothing by itself.
                taken.close()

        task.add_done_callback(done)
        evicted = self._lobby.enter(stranger)
        if evicted is not None:
            self._refusals["too_many_handshakes"] += 1
            evicted.leave()

    async def _shake(self, taken: socket.socket) -> None:
        try:
            tls: ssl.SSLContext | None = self._tls
            if self._clear_too:
                async with asyncio.timeout(HANDSHAKE_S):
                    tls = tls if await speaks_tls(taken) else None
            await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol, taken, ssl=tls, ssl_handshake_timeout=HANDSHAKE_S if tls else None
            )
        except (OSError, TimeoutError) as error:
            taken.close()
            self._refusals["tls"] += 1
            log.debug("event=http_handshake_failed reason=%r", error)
