"""Voters on TCP: length-prefixed msgpack frames, known peers only, one connection a pair.

The voter whose id sorts first dials. Both ends greet, prove that they know the cluster's secret (HMAC over
both greetings, with each end's role in it, so that a proof cannot be sent back), and say whether they take
the other. Nothing before that may exceed 64 KiB or take longer than five seconds.
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
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec

from ringrift_cluster.raft.counters import Counters
from ringrift_cluster.raft.errors import PortTaken
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

log = logging.getLogger(__name__)

HANDSHAKE_S = 5.0
#: a connection that says nothing for this long is dead (pings go out every second)
SILENCE_S = 5.0
RETRY_MIN_S, RETRY_MAX_S = 0.1, 0.5
MAX_STRANGERS = 32
READ_LIMIT = 1 << 20


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
    """How voters know each other: the shared secret, and TLS contexts once there are any."""

    secret: bytes | None = None
    server_tls: ssl.SSLContext | None = None
    client_tls: ssl.SSLContext | None = None


class _Link:
    """One established connection."""

    __slots__ = ("heard_at", "reader", "writer")

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, now: float) -> None:
        self.reader = reader
        self.writer = writer
        self.heard_at = now


class Transport:
    """The links of one voter. `send` never blocks; what cannot be sent is dropped and Raft repeats it."""

    def __init__(
        self,
        node_id: str,
        voters: Mapping[str, str],
        bind: str | None,
        security: Security,
        outbound_bytes: int,
        counters: Counters,
        home: Home,
    ) -> None:
        self._node_id = node_id
        self._addresses = dict(voters)
        self._bind = bind or voters[node_id]
        self._security = security
        self._outbound_bytes = outbound_bytes
        self._counters = counters
        self._home = home
        self._links: dict[str, _Link] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers = 0
        self._server: asyncio.Server | None = None
        self._encoded: tuple[tuple[int, ...], bytes] | None = None
        self._stopping = False
        #: the first failure of a task, for the voter to stop on
        self.failure: BaseException | None = None

    async def start(self) -> None:
        """Listen and dial. Raises PortTaken."""
        host, port = split_address(self._bind)
        try:
            self._server = await asyncio.start_server(
                self._accepted, host, port, limit=READ_LIMIT, ssl=self._security.server_tls
            )
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
                raise
            raise PortTaken(
                f"the raft address {self._bind} of {self._node_id} cannot be used ({error.strerror}); "
                "stop the process that listens there, or configure another port"
            ) from error
        for peer in sorted(self._addresses):
            if peer > self._node_id:
                self._spawn(self._dial(peer))
        self._spawn(self._keep_alive())

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and self.failure is None:
            self.failure = task.exception()

    async def stop(self) -> None:
        """Close everything; returns when no task is left."""
        self._stopping = True
        if self._server is not None:
            self._server.close()
        for link in list(self._links.values()):
            link.writer.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5.0)

    # Out

    def send(self, peer: str, message: Message) -> None:
        link = self._links.get(peer)
        if link is None:
            return
        frame = self._frame(message)
        link.writer.write(frame)
        self._counters.frames_out += 1
        self._counters.bytes_out += len(frame)
        if link.writer.transport.get_write_buffer_size() > self._outbound_bytes:
            self._counters.refusals["outbound_full"] += 1
            log.warning("event=link_closed peer=%s reason=outbound_full", peer)
            self._drop(peer, link)

    def _frame(self, message: Message) -> bytes:
        if not isinstance(message, AppendEntries) or not message.entries:
            return _framed(message)
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
            self._encoded = (key, _framed(message))
        return self._encoded[1]

    # In

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._strangers >= MAX_STRANGERS or self._stopping:
            self._counters.refusals["too_many_strangers"] += 1
            writer.close()
            return
        self._spawn(self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._run(reader, writer, None)

    async def _dial(self, peer: str) -> None:
        wait_s = RETRY_MIN_S
        while not self._stopping:
            host, port = split_address(self._addresses[peer])
            try:
                async with asyncio.timeout(HANDSHAKE_S):
                    reader, writer = await asyncio.open_connection(
                        host, port, limit=READ_LIMIT, ssl=self._security.client_tls
                    )
            except (OSError, TimeoutError):
                established = False
            else:
                established = await self._run(reader, writer, peer)
            wait_s = RETRY_MIN_S if established else min(2 * wait_s, RETRY_MAX_S)
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dialed: str | None) -> bool:
        """Greet, then read until the connection ends; whether it was ever established."""
        raw = writer.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer: str | None = None
        self._strangers += 1
        try:
            try:
                async with asyncio.timeout(HANDSHAKE_S):
                    peer = await self._handshake(reader, writer, dialed)
            finally:
                self._strangers -= 1
            link = _Link(reader, writer, asyncio.get_running_loop().time())
            old = self._links.get(peer)
            if old is not None:
                self._drop(peer, old)
            self._links[peer] = link
            self._counters.connections += 1
            log.info("event=link_up peer=%s", peer)
            self._home.connected(peer)
            await self._read(peer, link)
        except _Refused as refused:
            self._counters.refusals["handshake"] += 1
            log.debug("event=link_refused peer=%s reason=%s", dialed or "?", refused)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self._counters.refusals["undecodable"] += 1
            log.warning("event=link_closed peer=%s reason=undecodable", peer or dialed or "?")
        except (OSError, EOFError, TimeoutError):
            log.debug("event=link_closed peer=%s reason=lost", peer or dialed or "?")
        finally:
            writer.close()
            if peer is not None and (current := self._links.get(peer)) and current.writer is writer:
                self._drop(peer, current)
        return peer is not None

    async def _read(self, peer: str, link: _Link) -> None:
        loop = asyncio.get_running_loop()
        counters = self._counters
        buffer = bytearray()
        while chunk := await link.reader.read(READ_LIMIT):
            if self._links.get(peer) is not link:
                # Replaced while it was read: what an old connection still carries may be out of order.
                return
            link.heard_at = loop.time()
            counters.bytes_in += len(chunk)
            buffer += chunk
            start = 0
            while len(buffer) - start >= 4:
                end = start + 4 + int.from_bytes(buffer[start : start + 4], "big")
                if end - start - 4 > MAX_FRAME_BYTES:
                    counters.refusals["frame_too_large"] += 1
                    return
                if end > len(buffer):
                    break
                counters.frames_in += 1
                self._home.deliver(peer, decode(buffer[start + 4 : end]))
                start = end
            del buffer[:start]

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

    async def _handshake(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dialed: str | None) -> str:
        ours = self._home.hello(secrets.token_bytes(32))
        our_bytes = encode(ours)
        writer.write(_prefixed(our_bytes))
        their_bytes = await _read_greeting(reader)
        theirs = decode_greeting(their_bytes)
        if not isinstance(theirs, Hello) or (dialed is not None and theirs.node_id != dialed):
            raise _Refused(f"expected {dialed or 'a greeting'}")
        dialer, acceptor = (our_bytes, their_bytes) if dialed else (their_bytes, our_bytes)
        our_role, their_role = (b"dial", b"accept") if dialed else (b"accept", b"dial")
        writer.write(_framed(Proof(self._mac(our_role, dialer, acceptor))))
        proof = await _greeting(reader)
        expected = self._mac(their_role, dialer, acceptor)
        if not isinstance(proof, Proof) or not hmac.compare_digest(proof.mac, expected):
            self._counters.refusals["wrong_secret"] += 1
            raise _Refused("the peer does not know the cluster's secret")
        verdict = self._home.judge(theirs)
        await self._home.durable()
        writer.write(_framed(verdict))
        answer = await _greeting(reader)
        if not isinstance(answer, Welcome):
            raise _Refused("expected an answer to our greeting")
        self._home.welcomed(theirs, answer)
        if verdict.reason or answer.reason:
            self._counters.refusals[verdict.reason or answer.reason] += 1
            raise _Refused(verdict.detail or answer.detail)
        return theirs.node_id

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


async def _read_greeting(reader: asyncio.StreamReader) -> bytes:
    size = int.from_bytes(await reader.readexactly(4), "big")
    if size > MAX_GREETING_BYTES:
        raise _Refused("a greeting above the limit")
    return await reader.readexactly(size)


async def _greeting(reader: asyncio.StreamReader) -> Greeting:
    return decode_greeting(await _read_greeting(reader))
