"""Where connections under TLS shake hands before HTTP hears of them: a bounded number, for a bounded time."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable

from ringrift_cluster.raft.accepting import accept, connect
from ringrift_cluster.raft.lobby import Lobby, Stranger

log = logging.getLogger(__name__)

HANDSHAKE_S = 10.0
#: handshakes at one time; one more takes the place of the least promising (see `Lobby`)
HANDSHAKES = 256


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
        self._accepting = asyncio.get_running_loop().create_task(accept(listener, refusals, self._admit))

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
            await connect(taken, self._protocol, self._tls, HANDSHAKE_S, clear_too=self._clear_too)
        except (OSError, TimeoutError) as error:
            taken.close()
            self._refusals["tls"] += 1
            log.debug("event=http_handshake_failed reason=%s", error)
