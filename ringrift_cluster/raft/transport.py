"""Voters on TCP: length-prefixed msgpack frames, known peers only, one connection a pair.

The voter whose id sorts first dials; where it does not (it has not heard of the other yet), the other one does.
A handshake may take five seconds, and who has not proven itself waits in the lobby.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import socket
import ssl
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Protocol

from ringrift_cluster.raft.accepting import accept, connect
from ringrift_cluster.raft.counters import Counters
from ringrift_cluster.raft.errors import PortTaken
from ringrift_cluster.raft.handshake import Greetings, Handshake, Judge, Security
from ringrift_cluster.raft.lobby import Lobby, Stranger
from ringrift_cluster.raft.messages import AppendEntries, Message, Ping, Raft, decode, encode
from ringrift_cluster.raft.wire import Link, Refused, Wire, split_address
from statemachine.errors import UNDECODABLE

log = logging.getLogger(__name__)

HANDSHAKE_S = 5.0
#: a connection that says nothing for this long is dead (pings go out every second)
SILENCE_S = 5.0
RETRY_MIN_S, RETRY_MAX_S = 0.1, 0.5
#: what a dialler sees of a voter that takes its TLS for a bad greeting (while a cluster moves to TLS)
NO_TLS = (ssl.SSLError, ConnectionResetError, ConnectionAbortedError)
#: the voter whose id sorts second dials only when the first one has not for this long
LET_DIAL_S = 1.0
BACKLOG = 1024


class Home(Judge, Protocol):
    """What the transport asks of the voter it serves; all on the transport's loop."""

    def connected(self, peer: str) -> None: ...

    def disconnected(self, peer: str) -> None: ...

    def deliver(self, peer: str, message: Raft) -> None: ...


class Transport:
    """The links of one voter. `send` never blocks; what cannot be sent is dropped and Raft repeats it."""

    def __init__(
        self,
        node_id: str,
        bind: str,
        security: Security,
        outbound_bytes: int,
        counters: Counters,
        home: Home,
        elsewhere: Mapping[str, str] | None = None,
    ) -> None:
        """`elsewhere` is where a peer is tried, too, that does not answer where it is said to be."""
        self._node_id = node_id
        self._bind = bind
        #: peers to keep a connection to, and those of them that a task is at
        self._addresses: dict[str, str] = {}
        self._elsewhere = elsewhere or {}
        self._dialing: set[str] = set()
        self._security = security
        self._outbound_bytes = outbound_bytes
        self._counters = counters
        self._home = home
        self._links: dict[str, Link] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._lobby = Lobby()
        self._handshake = Handshake(security, home, counters, self._lobby, self._dials)
        self._listeners: list[socket.socket] = []
        self._encoded: tuple[tuple[int, ...], bytes] | None = None
        self._stopping = False
        #: the first failure of a task, for the voter to stop on
        self.failure: BaseException | None = None

    async def start(self) -> None:
        """Listen; `reach` says whom to dial. Raises PortTaken."""
        host, port = split_address(self._bind)
        try:
            await self._listen(host, port)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
                raise
            raise PortTaken(
                f"the raft address {self._bind} of {self._node_id} cannot be used ({error.strerror}); "
                "stop the process that listens there, or configure another port"
            ) from error
        for listener in self._listeners:
            self._spawn(accept(listener, self._counters.refusals, self._admit))
        self._spawn(self._keep_alive())

    def reach(self, addresses: Mapping[str, str]) -> None:
        """Keep connections to these peers; one that is left out keeps the connection it has until that ends."""
        self._addresses = dict(addresses)
        for peer in sorted(self._addresses.keys() - self._dialing):
            self._dialing.add(peer)
            self._spawn(self._dial(peer))

    def _dials(self, name: str) -> bool:
        return name in self._addresses

    async def _listen(self, host: str, port: int) -> None:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listener = socket.socket(family, kind, protocol)
            self._listeners.append(listener)
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                listener.bind(address)
                listener.listen(BACKLOG)
            except OSError:
                self._stop_listening()
                raise

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and self.failure is None:
            self.failure = task.exception()

    async def stop(self) -> None:
        """Close everything; returns when no task is left."""
        self._stopping = True
        for link in list(self._links.values()):
            link.writer.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5.0)
        self._stop_listening()

    # Out

    def send(self, peer: str, message: Message) -> None:
        link = self._links.get(peer)
        if link is None:
            return
        self._counters.frames_out += 1
        self._counters.bytes_out += link.write(self._encode(message))
        if link.writer.transport.get_write_buffer_size() > self._outbound_bytes:
            self._counters.refusals["outbound_full"] += 1
            log.warning("event=link_closed peer=%s reason=outbound_full", peer)
            self._drop(peer, link)

    def _encode(self, message: Message) -> bytes:
        if not isinstance(message, AppendEntries) or not message.entries:
            return encode(message)
        # The library builds one message a peer; equal ones are encoded once.
        key = (
            message.term,
            message.commit,
            message.prev_index,
            message.prev_term,
            len(message.entries),
            message.entries[-1][2],
        )
        if self._encoded is None or self._encoded[0] != key:
            self._encoded = (key, encode(message))
        return self._encoded[1]

    # In

    def _admit(self, taken: socket.socket, origin: str) -> None:
        task: asyncio.Task[None] | None = None
        stranger = Stranger(origin, lambda: task is not None and task.cancel())
        task = self._spawn(self._serve(taken, stranger))

        def gone(_: asyncio.Task[None]) -> None:
            # A cancelled task keeps its traceback, and that this stranger: in a circle the buffers of TLS would wait
            # for the collector, which in a process with a large state comes seldom.
            nonlocal task
            task = None
            # Here and not in the task: one that is cancelled before it began runs no `finally`.
            self._lobby.leave(stranger)
            taken.close()

        task.add_done_callback(gone)
        evicted = self._lobby.enter(stranger)
        if evicted is not None:
            self._counters.refusals["too_many_strangers"] += 1
            evicted.leave()

    async def _serve(self, taken: socket.socket, stranger: Stranger) -> None:
        tls = self._security.server_tls() if self._security.server_tls else None
        try:
            transport, wire = await connect(taken, Wire, tls, HANDSHAKE_S, clear_too=self._security.clear_too)
        except (OSError, TimeoutError) as error:
            self._counters.refusals["tls"] += 1
            log.debug("event=link_refused origin=%s reason=%s", stranger.origin, error)
            return
        await self._run(wire, transport, None, stranger)

    async def _dial(self, peer: str) -> None:
        wait_s = RETRY_MIN_S
        failures = 0
        #: this time without TLS: it was told that the other end does not speak it
        clear = False
        while not self._stopping and peer in self._addresses:
            if peer < self._node_id and peer not in self._links:
                # It dials us, unless it has not heard of us yet.
                await asyncio.sleep(LET_DIAL_S)
            if peer in self._links:
                await asyncio.sleep(RETRY_MAX_S)
                continue
            address = self._addresses.get(peer)
            if address is None:
                break
            if failures % 2:
                address = self._elsewhere.get(peer, address)
            host, port = split_address(address)
            tls = self._security.client_tls() if self._security.client_tls and not clear else None
            try:
                async with asyncio.timeout(HANDSHAKE_S):
                    loop = asyncio.get_running_loop()
                    transport, wire = await loop.create_connection(Wire, host, port, ssl=tls)
            except (OSError, TimeoutError) as error:
                established = False
                clear = self._security.clear_too and tls is not None and isinstance(error, NO_TLS)
            else:
                established = await self._run(wire, transport, peer)
                clear = False
            failures = 0 if established else failures + 1
            wait_s = RETRY_MIN_S if established else min(2 * wait_s, RETRY_MAX_S)
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
        self._dialing.discard(peer)

    async def _run(
        self,
        wire: Wire,
        transport: asyncio.Transport,
        dialed: str | None,
        stranger: Stranger | None = None,
    ) -> bool:
        """Greet, then read until the connection ends; whether it was ever established."""
        loop = asyncio.get_running_loop()
        greetings = Greetings(wire.reader)
        writer = asyncio.StreamWriter(transport, wire, wire.reader, loop)
        peer: str | None = None
        try:
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(HANDSHAKE_S):
                peer, seals = await self._handshake.shake(greetings, writer, dialed, stranger)
            link = Link(writer, loop.time(), seals)
            old = self._links.get(peer)
            if old is not None:
                self._drop(peer, old)
            self._links[peer] = link
            self._counters.connections += 1
            log.info("event=link_up peer=%s", peer)
            self._home.connected(peer)
            await wire.hand_over(partial(self._take, peer, link), greetings.read_bytes)
        except Refused as refused:
            self._counters.refusals["handshake"] += 1
            log.debug("event=link_refused peer=%s reason=%s", dialed or "?", refused)
        except UNDECODABLE:
            self._counters.refusals["undecodable"] += 1
            # No louder: a stranger could fill the disk with these lines.
            log.debug("event=link_closed peer=%s reason=undecodable", dialed or "?")
        except (OSError, EOFError, TimeoutError) as error:
            if stranger is not None and peer is None:
                self._counters.refusals["slow" if isinstance(error, TimeoutError) else "left_early"] += 1
            log.debug("event=link_closed peer=%s reason=lost", peer or dialed or "?")
        finally:
            if peer is None and (stranger is not None or self._security.client_tls is not None):
                # What it did not read is not kept for it, nor does TLS wait for its goodbye.
                writer.transport.abort()
            # A TLS transport that is closed twice no longer hears `abort`.
            if not writer.transport.is_closing():
                writer.close()
            if peer is not None and (current := self._links.get(peer)) and current.writer is writer:
                self._drop(peer, current)
        return peer is not None

    def _take(self, peer: str, link: Link, chunk: bytes) -> None:
        """Deliver the frames that are whole; a bad one ends the connection."""
        if self._links.get(peer) is not link:
            # Replaced or dropped: what an old connection still carries may be out of order.
            return
        counters = self._counters
        link.heard_at = asyncio.get_running_loop().time()
        counters.bytes_in += len(chunk)
        try:
            for data in link.frames(chunk):
                counters.frames_in += 1
                self._home.deliver(peer, decode(data))
        except Refused as refused:
            self._break(peer, link, str(refused))
        except UNDECODABLE:
            self._break(peer, link, "undecodable")

    def _break(self, peer: str, link: Link, reason: str) -> None:
        self._counters.refusals[reason] += 1
        log.warning("event=link_closed peer=%s reason=%s", peer, reason)
        self._drop(peer, link)

    def _drop(self, peer: str, link: Link) -> None:
        if self._links.get(peer) is link:
            del self._links[peer]
            log.info("event=link_down peer=%s", peer)
            self._home.disconnected(peer)
        link.writer.transport.abort()

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            slept_at = loop.time()
            await asyncio.sleep(1.0)
            # While this thread waited for a slow disk, it heard nobody.
            deaf_s = loop.time() - slept_at - 1.0
            for peer, link in list(self._links.items()):
                if loop.time() - link.heard_at > SILENCE_S + deaf_s:
                    self._drop(peer, link)
                else:
                    self.send(peer, Ping())
