"""Voters on TCP: length-prefixed msgpack frames, known peers only, one connection a pair.

The voter whose id sorts first dials; where it does not (it has not heard of the other yet), the other one does.
Both ends greet, prove that they know the cluster's secret (HMAC over both greetings, with each end's role in it,
so that a proof cannot be sent back), and say whether they take the other. Nothing before that may exceed 64 KiB
or take longer than five seconds, and who has not proven itself waits in the lobby. Without TLS every later frame
is sealed with a key of this connection.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import hmac
import logging
import random
import secrets
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from ringrift_cluster.raft.counters import Counters
from ringrift_cluster.raft.errors import PortTaken
from ringrift_cluster.raft.lobby import Lobby, Stranger, origin_of
from ringrift_cluster.raft.messages import (
    MAX_FRAME_BYTES,
    MAX_GREETING_BYTES,
    AppendEntries,
    Greeting,
    Hello,
    Message,
    Ping,
    Proof,
    Raft,
    Welcome,
    decode,
    decode_greeting,
    encode,
)
from ringrift_cluster.raft.seal import SEAL_BYTES, Seal
from ringrift_cluster.tls import certified
from statemachine.errors import UNDECODABLE

log = logging.getLogger(__name__)

HANDSHAKE_S = 5.0
#: a connection that says nothing for this long is dead (pings go out every second)
SILENCE_S = 5.0
RETRY_MIN_S, RETRY_MAX_S = 0.1, 0.5
#: the voter whose id sorts second dials only when the first one has not for this long
LET_DIAL_S = 1.0
#: what may be read ahead of one connection, a stranger's included, is about twice this
READ_LIMIT = 128 * 1024
BACKLOG = 1024
#: connections taken in a row before anything else gets a turn
ACCEPT_RUN = 16
#: out of file descriptors, or the kernel is: look again after this
ACCEPT_PAUSE_S = 0.1


class _Refused(Exception):  # noqa: N818 - an answer
    """The handshake ended without a connection."""


class Home(Protocol):
    """What the transport asks of the voter it serves; all on the transport's loop."""

    def hello(self, nonce: bytes) -> Hello: ...

    def judge(self, hello: Hello) -> Welcome: ...

    def welcomed(self, hello: Hello, answer: Welcome) -> None: ...

    async def durable(self) -> None:
        """Return once what was recorded so far is on disk."""
        ...

    def connected(self, peer: str) -> None: ...

    def disconnected(self, peer: str) -> None: ...

    def deliver(self, peer: str, message: Raft) -> None: ...


@dataclass(frozen=True, slots=True)
class Security:
    """How voters know each other: the shared secret, and mutual TLS. The contexts are asked for at each handshake."""

    secret: bytes | None = None
    server_tls: Callable[[], ssl.SSLContext] | None = None
    client_tls: Callable[[], ssl.SSLContext] | None = None


class _Wire(asyncio.StreamReaderProtocol):
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


class _Link:
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
        """The frames that `chunk` completes. Raises _Refused with the reason to count."""
        buffer, inbound = self.buffer, self.inbound
        seal_bytes = 0 if inbound is None else SEAL_BYTES
        buffer += chunk
        start = 0
        while len(buffer) - start >= 4:
            size = int.from_bytes(buffer[start : start + 4], "big")
            if size > MAX_FRAME_BYTES:
                raise _Refused("frame_too_large")
            end = start + 4 + size + seal_bytes
            if end > len(buffer):
                break
            data = bytes(buffer[start + 4 : start + 4 + size])
            if inbound is not None and not inbound.fits(data, buffer[end - SEAL_BYTES : end]):
                raise _Refused("broken_seal")
            start = end
            yield data
        del buffer[:start]

    def write(self, data: bytes) -> int:
        """Send one frame; returns the bytes it took."""
        seal = b"" if self.outbound is None else self.outbound.next(data)
        self.writer.write(b"".join((len(data).to_bytes(4, "big"), data, seal)))
        return 4 + len(data) + len(seal)


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
    ) -> None:
        self._node_id = node_id
        self._bind = bind
        #: peers to keep a connection to, and those of them that a task is at
        self._addresses: dict[str, str] = {}
        self._dialing: set[str] = set()
        self._security = security
        self._outbound_bytes = outbound_bytes
        self._counters = counters
        self._home = home
        self._links: dict[str, _Link] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._lobby = Lobby()
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
            self._spawn(self._accept(listener))
        self._spawn(self._keep_alive())

    def reach(self, addresses: Mapping[str, str]) -> None:
        """Keep connections to these peers; one that is left out keeps the connection it has until that ends."""
        self._addresses = dict(addresses)
        for peer in sorted(self._addresses.keys() - self._dialing):
            self._dialing.add(peer)
            self._spawn(self._dial(peer))

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

    async def _accept(self, listener: socket.socket) -> None:
        # Not asyncio's server: that one reads and shakes hands under TLS before anybody could count.
        loop = asyncio.get_running_loop()
        run = 0
        while True:
            try:
                taken, address = await loop.sock_accept(listener)
            except OSError as error:
                self._counters.refusals["accept_failed"] += 1
                log.warning("event=accept_failed error=%r", error)
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            self._admit(taken, origin_of(str(address[0])))
            run = (run + 1) % ACCEPT_RUN
            if not run:
                await asyncio.sleep(0)

    def _admit(self, taken: socket.socket, origin: str) -> None:
        task: asyncio.Task[None] | None = None
        stranger = Stranger(origin, lambda: task is not None and task.cancel())
        task = self._spawn(self._serve(taken, stranger))

        def gone(_: asyncio.Task[None]) -> None:
            # Here and not in the task: one that is cancelled before it began runs no `finally`.
            self._lobby.leave(stranger)
            taken.close()

        task.add_done_callback(gone)
        evicted = self._lobby.enter(stranger)
        if evicted is not None:
            self._counters.refusals["too_many_strangers"] += 1
            evicted.leave()

    async def _serve(self, taken: socket.socket, stranger: Stranger) -> None:
        loop = asyncio.get_running_loop()
        tls = self._security.server_tls() if self._security.server_tls else None
        try:
            transport, wire = await loop.connect_accepted_socket(
                _Wire, taken, ssl=tls, ssl_handshake_timeout=HANDSHAKE_S if tls else None
            )
        except (OSError, TimeoutError) as error:
            self._counters.refusals["tls"] += 1
            log.debug("event=link_refused origin=%s reason=%r", stranger.origin, error)
            return
        await self._run(wire, transport, None, stranger)

    async def _dial(self, peer: str) -> None:
        wait_s = RETRY_MIN_S
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
            host, port = split_address(address)
            tls = self._security.client_tls() if self._security.client_tls else None
            try:
                async with asyncio.timeout(HANDSHAKE_S):
                    loop = asyncio.get_running_loop()
                    transport, wire = await loop.create_connection(_Wire, host, port, ssl=tls)
            except (OSError, TimeoutError):
                established = False
            else:
                established = await self._run(wire, transport, peer)
            wait_s = RETRY_MIN_S if established else min(2 * wait_s, RETRY_MAX_S)
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
        self._dialing.discard(peer)

    async def _run(
        self,
        wire: _Wire,
        transport: asyncio.Transport,
        dialed: str | None,
        stranger: Stranger | None = None,
    ) -> bool:
        """Greet, then read until the connection ends; whether it was ever established."""
        loop = asyncio.get_running_loop()
        greetings = _Greetings(wire.reader)
        writer = asyncio.StreamWriter(transport, wire, wire.reader, loop)
        peer: str | None = None
        try:
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(HANDSHAKE_S):
                peer, seals = await self._handshake(greetings, writer, dialed, stranger)
            link = _Link(writer, loop.time(), seals)
            old = self._links.get(peer)
            if old is not None:
                self._drop(peer, old)
            self._links[peer] = link
            self._counters.connections += 1
            log.info("event=link_up peer=%s", peer)
            self._home.connected(peer)
            await wire.hand_over(partial(self._take, peer, link), greetings.read_bytes)
        except _Refused as refused:
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

    def _take(self, peer: str, link: _Link, chunk: bytes) -> None:
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
        except _Refused as refused:
            self._break(peer, link, str(refused))
        except UNDECODABLE:
            self._break(peer, link, "undecodable")

    def _break(self, peer: str, link: _Link, reason: str) -> None:
        self._counters.refusals[reason] += 1
        log.warning("event=link_closed peer=%s reason=%s", peer, reason)
        self._drop(peer, link)

    def _drop(self, peer: str, link: _Link) -> None:
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

    # The handshake

    async def _handshake(
        self,
        greetings: _Greetings,
        writer: asyncio.StreamWriter,
        dialed: str | None,
        stranger: Stranger | None,
    ) -> tuple[str, tuple[Seal, Seal] | None]:
        ours = self._home.hello(secrets.token_bytes(32))
        our_bytes = encode(ours)
        writer.write(_prefixed(our_bytes))
        their_bytes = await greetings.next_bytes()
        theirs = decode_greeting(their_bytes)
        if not isinstance(theirs, Hello) or (dialed is not None and theirs.node_id != dialed):
            raise _Refused(f"expected {dialed or 'a greeting'}")
        self._check_certificate(writer, theirs.node_id)
        if stranger is not None:
            stranger.greeted = theirs.node_id in self._addresses and theirs.node_id != self._node_id
        dialer, acceptor = (our_bytes, their_bytes) if dialed else (their_bytes, our_bytes)
        our_role, their_role = (b"dial", b"accept") if dialed else (b"accept", b"dial")
        our_proof = _framed(Proof(self._mac(our_role, dialer, acceptor)))
        # Who was dialled proves itself second: nobody gets a proof to guess the secret from by merely asking.
        if dialed:
            writer.write(our_proof)
        proof = await greetings.next()
        expected = self._mac(their_role, dialer, acceptor)
        if not isinstance(proof, Proof) or not hmac.compare_digest(proof.mac, expected):
            self._counters.refusals["wrong_secret"] += 1
            raise _Refused("the peer does not know the cluster's secret")
        if not dialed:
            writer.write(our_proof)
        verdict = self._home.judge(theirs)
        await self._home.durable()
        writer.write(_framed(verdict))
        if stranger is not None and not verdict.reason:
            self._lobby.proven(stranger, theirs.node_id)
        answer = await greetings.next()
        if not isinstance(answer, Welcome):
            raise _Refused("expected an answer to our greeting")
        if verdict.reason:
            # Whom we do not take for a voter has nothing to tell us, about our own log least of all.
            self._counters.refusals[verdict.reason] += 1
            raise _Refused(verdict.detail)
        self._home.welcomed(theirs, answer)
        if answer.reason:
            self._counters.refusals["turned_away"] += 1
            raise _Refused(answer.detail)
        return theirs.node_id, self._seals(our_role, their_role, dialer, acceptor)

    def _seals(self, ours: bytes, theirs: bytes, dialer: bytes, acceptor: bytes) -> tuple[Seal, Seal] | None:
        """Outbound and inbound; none without a secret to make them from, nor where TLS does the same."""
        security = self._security
        if security.secret is None or security.server_tls is not None:
            return None
        text = len(dialer).to_bytes(4, "big") + dialer + acceptor
        return Seal(security.secret, ours, text), Seal(security.secret, theirs, text)

    def _check_certificate(self, writer: asyncio.StreamWriter, named: str) -> None:
        """Under TLS the greeting's name must be the one on the certificate, and that a voter's. Raises _Refused."""
        if self._security.server_tls is None:
            return
        shown = certified(writer.get_extra_info("ssl_object"))
        if shown != (named, True):
            self._counters.refusals["wrong_certificate"] += 1
            whose = f"{'voter' if shown[1] else 'node'} {shown[0]}" if shown else "no node"
            raise _Refused(f"{named} showed a certificate of {whose}")

    def _mac(self, role: bytes, dialer: bytes, acceptor: bytes) -> bytes:
        if self._security.secret is None:
            return b""
        text = b"ringrift voter " + role + len(dialer).to_bytes(4, "big") + dialer + acceptor
        return hmac.digest(self._security.secret, text, hashlib.sha256)


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`; brackets around an IPv6 host are taken off."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{address!r} is not an address of the form host:port")
    return host.strip("[]"), int(port)


def _prefixed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _framed(message: Message) -> bytes:
    return _prefixed(encode(message))


class _Greetings:
    """The frames of a handshake, one after the other."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self.read_bytes = 0

    async def next_bytes(self) -> bytes:
        """Raises _Refused for one that is too large."""
        size = int.from_bytes(await self._reader.readexactly(4), "big")
        if size > MAX_GREETING_BYTES:
            raise _Refused("a greeting above the limit")
        data = await self._reader.readexactly(size)
        self.read_bytes += 4 + size
        return data

    async def next(self) -> Greeting:
        return decode_greeting(await self.next_bytes())
