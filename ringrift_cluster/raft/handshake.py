"""How two voters come to know each other before a word of consensus is said.

Both ends greet, prove that they know the cluster's secret (HMAC over both greetings, with each end's role in it,
so that a proof cannot be sent back), and say whether they take the other. Nothing of it may exceed 64 KiB. Without
TLS every later frame is sealed with a key of this connection.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ringrift_cluster.raft.counters import Counters
from ringrift_cluster.raft.lobby import Lobby, Stranger
from ringrift_cluster.raft.messages import (
    MAX_GREETING_BYTES,
    Greeting,
    Hello,
    Message,
    Proof,
    Welcome,
    decode_greeting,
    encode,
)
from ringrift_cluster.raft.seal import Seal
from ringrift_cluster.raft.wire import Refused, prefixed
from ringrift_cluster.tls import certified


@dataclass(frozen=True, slots=True)
class Security:
    """How voters know each other: the shared secret, and mutual TLS. The contexts are asked for at each handshake."""

    secret: bytes | None = None
    server_tls: Callable[[], ssl.SSLContext] | None = None
    client_tls: Callable[[], ssl.SSLContext] | None = None
    #: while a cluster moves to TLS: links without it are made and taken too, and are sealed with the secret
    clear_too: bool = False


class Judge(Protocol):
    """What a handshake asks of the voter; all on the transport's loop."""

    def hello(self, nonce: bytes) -> Hello: ...

    def judge(self, hello: Hello) -> Welcome: ...

    def welcomed(self, hello: Hello, answer: Welcome) -> None: ...

    async def durable(self) -> None:
        """Return once what was recorded so far is on disk."""
        ...


class Greetings:
    """The frames of a handshake, one after the other."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self.read_bytes = 0

    async def next_bytes(self) -> bytes:
        """Raises Refused for one that is too large."""
        size = int.from_bytes(await self._reader.readexactly(4), "big")
        if size > MAX_GREETING_BYTES:
            raise Refused("a greeting above the limit")
        data = await self._reader.readexactly(size)
        self.read_bytes += 4 + size
        return data

    async def next(self) -> Greeting:
        return decode_greeting(await self.next_bytes())


class Handshake:
    """How one voter shakes hands."""

    def __init__(
        self, security: Security, judge: Judge, counters: Counters, lobby: Lobby, dials: Callable[[str], bool]
    ) -> None:
        """`dials` says whether a connection to this name is wanted."""
        self._security = security
        self._judge = judge
        self._counters = counters
        self._lobby = lobby
        self._dials = dials

    async def shake(
        self,
        greetings: Greetings,
        writer: asyncio.StreamWriter,
        dialed: str | None,
        stranger: Stranger | None,
    ) -> tuple[str, tuple[Seal, Seal] | None]:
        """Greet, prove and judge, both ways; returns who it is and the seals, outbound first.

        `dialed` is whom we called, None when they called us. Raises Refused, and what reading and decoding raise.
        """
        ours = self._judge.hello(secrets.token_bytes(32))
        our_bytes = encode(ours)
        writer.write(prefixed(our_bytes))
        their_bytes = await greetings.next_bytes()
        theirs = decode_greeting(their_bytes)
        if not isinstance(theirs, Hello) or (dialed is not None and theirs.node_id != dialed):
            raise Refused(f"expected {dialed or 'a greeting'}")
        self._check_certificate(writer, theirs.node_id)
        if stranger is not None:
            stranger.greeted = self._dials(theirs.node_id) and theirs.node_id != ours.node_id
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
            raise Refused("the peer does not know the cluster's secret")
        if not dialed:
            writer.write(our_proof)
        verdict = self._judge.judge(theirs)
        await self._judge.durable()
        writer.write(_framed(verdict))
        if stranger is not None and not verdict.reason:
            self._lobby.proven(stranger, theirs.node_id)
        answer = await greetings.next()
        if not isinstance(answer, Welcome):
            raise Refused("expected an answer to our greeting")
        if verdict.reason:
            # Whom we do not take for a voter has nothing to tell us, about our own log least of all.
            self._counters.refusals[verdict.reason] += 1
            raise Refused(verdict.detail)
        self._judge.welcomed(theirs, answer)
        if answer.reason:
            self._counters.refusals["turned_away"] += 1
            raise Refused(answer.detail)
        under_tls = writer.get_extra_info("ssl_object") is not None
        return theirs.node_id, None if under_tls else self._seals(our_role, their_role, dialer, acceptor)

    def _seals(self, ours: bytes, theirs: bytes, dialer: bytes, acceptor: bytes) -> tuple[Seal, Seal] | None:
        """Outbound and inbound; none without a secret to make them from."""
        secret = self._security.secret
        if secret is None:
            return None
        text = len(dialer).to_bytes(4, "big") + dialer + acceptor
        return Seal(secret, ours, text), Seal(secret, theirs, text)

    def _check_certificate(self, writer: asyncio.StreamWriter, named: str) -> None:
        """Under TLS the greeting's name must be the one on the certificate, and that a voter's. Raises Refused."""
        under_tls = writer.get_extra_info("ssl_object")
        if self._security.server_tls is None or (under_tls is None and self._security.clear_too):
            return
        shown = certified(under_tls)
        if shown != (named, True):
            self._counters.refusals["wrong_certificate"] += 1
            whose = f"{'voter' if shown[1] else 'node'} {shown[0]}" if shown else "no node"
            raise Refused(f"{named} showed a certificate of {whose}")

    def _mac(self, role: bytes, dialer: bytes, acceptor: bytes) -> bytes:
        if self._security.secret is None:
            return b""
        text = b"ringrift voter " + role + len(dialer).to_bytes(4, "big") + dialer + acceptor
        return hmac.digest(self._security.secret, text, hashlib.sha256)


def _framed(message: Message) -> bytes:
    return prefixed(encode(message))
