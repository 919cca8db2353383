"""TLS of one node: contexts made from files that may be replaced while the node runs.

    http_server    this node's certificate; clients prove themselves by tokens
    http_client    trusts the cluster's authority alone
    link_server, link_client    both ends of a voters' link show a voter's certificate

New handshakes use the new files; connections that are up stay as they are, but for those whose other end has shown a
certificate that is revoked meanwhile (`ca.crl` beside `ca.crt`): they end. Files that do not fit together (one of a
pair is replaced a moment before the other) change nothing until they do.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import ssl
from asyncio import sslproto
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from ringrift_cluster import revoked
from ringrift_cluster.certs import CertificateError, Facts, facts, identity, why_useless

log = logging.getLogger("ringrift.tls")

#: asyncio reads so much at once of a connection under TLS and keeps a buffer of it for each, idle ones too. Its own
#: 256 KiB would be 2 GiB for as many connections as the HTTP port takes; a TLS record has 16 KiB.
READ_BYTES = 32 * 1024
sslproto.SSLProtocol.max_size = READ_BYTES

#: how often the files are looked at
LOOK_S = 2.0
#: a warning is due when fewer days are left
LATE_DAYS = 21


class TlsError(Exception):
    """Why the files cannot be used, in one sentence."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. Without a certificate the node is a client only: it checks others and serves plain HTTP."""

    ca: Path
    cert: Path | None = None
    key: Path | None = None


@dataclass(slots=True)
class _Lists:
    """What is revoked now, for all contexts of one node."""

    now: revoked.Revoked


class _Watch:
    """A connection that ends when the certificate of its other end is revoked; a mixin of SSLObject and SSLSocket."""

    _seen: revoked.Revoked | None = None

    def do_handshake(self, *args: Any) -> None:
        super().do_handshake(*args)  # type: ignore[misc]
        if self._ended():
            raise ssl.SSLCertVerificationError("the certificate that was shown is revoked")

    def read(self, *args: Any) -> Any:
        self._go_on()
        return super().read(*args)  # type: ignore[misc]

    def write(self, data: Any) -> int:
        self._go_on()
        return super().write(data)  # type: ignore[misc, no-any-return]

    def _ended(self) -> bool:
        """Looked up once a list: it costs one comparison otherwise."""
        now: revoked.Revoked = self.context.lists.now  # type: ignore[attr-defined]
        if now is self._seen:
            return False
        shown = self.getpeercert(True)  # type: ignore[attr-defined]
        if shown and now.names(shown):
            return True
        self._seen = now
        return False

    def _go_on(self) -> None:
        if self._seen is not None and self._ended():
            log.warning('event=tls_ended peer=%s reason="its certificate is revoked"', (certified(self) or "?")[0])  # type: ignore[arg-type]
            raise _RevokedError("the certificate of the other end is revoked")


class _RevokedError(ConnectionError, anyio.BrokenResourceError):
    """A broken connection to whoever uses it: asyncio and blocking clients know the one name, httpx the other."""


class _Object(_Watch, ssl.SSLObject):
    """asyncio's."""


class _Socket(_Watch, ssl.SSLSocket):
    """A blocking client's, whose `recv` calls `read`."""

    def send(self, *args: Any) -> int:
        self._go_on()
        return super().send(*args)


class _Context(ssl.SSLContext):
    sslobject_class = _Object
    sslsocket_class = _Socket
    lists: _Lists

    @classmethod
    def made(cls, protocol: int, lists: _Lists) -> _Context:
        context = cls(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.lists = lists
        return context


def certified(peer: ssl.SSLObject | ssl.SSLSocket | None) -> tuple[str, bool] | None:
    """(node id, whether a voter's) of the certificate that the other end of a connection has shown."""
    shown = peer.getpeercert() if peer is not None else None
    names = shown.get("subjectAltName", ()) if shown else ()
    return identity([str(name[1]) for name in names if name[0] == "URI"])


def client_context(ca: Path) -> ssl.SSLContext:
    """For HTTP clients of the cluster, by the authority's list of this moment. Raises TlsError."""
    return _client(ca, _Lists(_revoked(ca)))


def list_beside(ca: Path) -> Path:
    """Where the list of revoked certificates is looked for."""
    return ca.with_suffix(".crl")


class Live(ssl.SSLContext):
    """Gives each new connection the context of the moment. One that is changed in place would only ever trust more."""

    now: ssl.SSLContext

    @classmethod
    def over(cls, now: ssl.SSLContext) -> Live:
        made = cls(now.protocol)
        made.now = now
        return made

    def wrap_bio(self, *args: Any, **more: Any) -> ssl.SSLObject:
        return self.now.wrap_bio(*args, **more)

    def wrap_socket(self, *args: Any, **more: Any) -> ssl.SSLSocket:
        return self.now.wrap_socket(*args, **more)


class Tls:
    """The contexts of a node and the files behind them."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises TlsError."""
        self.files = files
        self._lists = _Lists(_revoked(files.ca))
        self.http_client = Live.over(_client(files.ca, self._lists))
        self.http_server: Live | None = None
        self.facts: Facts | None = None
        self._links: tuple[ssl.SSLContext, ssl.SSLContext] | None = None
        self._seen = self._signature()
        self._refused = self._seen
        #: why the present files are not in use, for whoever looks; empty when they are
        self.complaint = ""
        if files.cert is not None:
            self._links = self._make_links()
            self.facts = self._read_facts()
            self.http_server = Live.over(self._make_server())
            self._warn_if_late()
        self.complaint = self._own_complaint()

    # Voters' links: another thread uses these, so a new pair takes the place of the old one in one step

    def link_server(self) -> ssl.SSLContext:
        """For the voter that was dialled."""
        assert self._links is not None
        return self._links[0]

    def link_client(self) -> ssl.SSLContext:
        """For the voter that dials."""
        assert self._links is not None
        return self._links[1]

    def numbers(self) -> Mapping[str, float]:
        """For the metrics."""
        said = {"tls_revoked_certificates": float(len(self._lists.now.certificates))}
        if self.facts is not None:
            ends = dt.datetime.fromisoformat(self.facts.not_after)
            said["tls_certificate_left_seconds"] = (ends - dt.datetime.now(dt.UTC)).total_seconds()
        return said

    async def watch(self) -> None:
        """Take replaced files into use, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            if await asyncio.to_thread(self._signature) != self._seen:
                self.refresh()

    def refresh(self) -> None:
        """Take the files as they are now into use, unless they do not fit together. On the HTTP loop."""
        signature = self._signature()
        try:
            # Everything is made before anything is used: nothing ever holds half a pair.
            lists = _revoked(self.files.ca)
            if lists.falls_behind(self._lists.now):
                raise TlsError(f"{list_beside(self.files.ca)} is gone or older than the list in use")
            client = _client(self.files.ca, self._lists)
            if self.files.cert is not None:
                links, found, server = self._make_links(), self._read_facts(), self._make_server()
            else:
                links, found, server = None, None, None
        except TlsError as error:
            self.complaint = f"{error}; the old files stay in use"
            if signature != self._refused:
                self._refused = signature
                log.error("event=tls_not_renewed detail=%s", self.complaint)
            return
        self.http_client.now = client
        if self.http_server is not None and server is not None:
            self.http_server.now = server
        self._links, self.facts = links, found
        # Every connection looks at it before it says or hears another word.
        self._lists.now = lists
        self._seen, self.complaint = signature, self._own_complaint()
        log.info("event=tls_renewed until=%s", found.not_after if found else "-")
        self._warn_if_late()

    def _signature(self) -> tuple[tuple[int, int, int], ...]:
        seen = []
        for path in (self.files.ca, self.files.cert, self.files.key, list_beside(self.files.ca)):
            try:
                stat = path.stat() if path is not None else None
            except OSError:
                stat = None
            seen.append((stat.st_ino, stat.st_size, stat.st_mtime_ns) if stat else (0, 0, 0))
        return tuple(seen)

    def _make_links(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        server = _Context.made(ssl.PROTOCOL_TLS_SERVER, self._lists)
        client = _Context.made(ssl.PROTOCOL_TLS_CLIENT, self._lists)
        # Whom we reached is read from the certificate's URI (see `certified`): a voter's name is no host name.
        client.check_hostname = False
        for context in (server, client):
            context.verify_mode = ssl.CERT_REQUIRED
            _trust(context, self.files.ca)
            self._load(context)
        return server, client

    def _make_server(self) -> ssl.SSLContext:
        context = _Context.made(ssl.PROTOCOL_TLS_SERVER, self._lists)
        self._load(context)
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        cert, key = self.files.cert, self.files.key
        assert cert is not None
        try:
            context.load_cert_chain(cert, key)
        except ssl.SSLError as error:
            raise TlsError(f"{cert} and {key} are not a certificate and its key ({error.reason or error})") from error
        except OSError as error:
            raise TlsError(f"{cert} or {key} cannot be read ({error.strerror})") from error

    def _read_facts(self) -> Facts:
        """What the certificate says, if it is of use to this node. Raises TlsError."""
        cert = self.files.cert
        assert cert is not None
        now = dt.datetime.now(dt.UTC)
        try:
            text = cert.read_bytes()
            found, useless = facts(text, now), why_useless(text, self.files.ca.read_bytes(), now)
        except OSError as error:
            raise TlsError(f"{error.filename} cannot be read ({error.strerror})") from error
        except CertificateError as error:
            raise TlsError(f"{cert}: {error}") from error
        if useless:
            raise TlsError(f"{cert} is of no use: {useless}")
        before = self.facts
        if before is not None and (found.node_id, found.voter or not before.voter) != (before.node_id, True):
            raise TlsError(f"{cert} is of another node or role than the one in use ({before.node_id})")
        return found

    def _own_complaint(self) -> str:
        """What is wrong with files that are in use.

        Nobody believes a node whose own certificate is revoked; it goes on, since a new one mends that. A list of an
        authority that was taken out keeps no node from its work either.
        """
        cert = self.files.cert
        if self._lists.now.foreign:
            return _foreign(self.files.ca)
        if self.facts is None or not self._lists.now.has(self.facts):
            return ""
        return f"the certificate {cert} is revoked, so no other node believes it; renew it (ringrift-node certs renew)"

    def _warn_if_late(self) -> None:
        if self.facts is not None and self.facts.days_left < LATE_DAYS:
            log.warning(
                'event=tls_ends_soon cert=%s days=%d detail="renew it with ringrift-node certs renew"',
                self.files.cert,
                self.facts.days_left,
            )


def _foreign(ca: Path) -> str:
    return (
        f"{list_beside(ca)} holds no list of revoked certificates that an authority in {ca} has signed, so none is "
        "known to be revoked; remove it, or put the list of such an authority there"
    )


def _client(ca: Path, lists: _Lists) -> ssl.SSLContext:
    context = _Context.made(ssl.PROTOCOL_TLS_CLIENT, lists)
    _trust(context, ca)
    return context


def _revoked(ca: Path) -> revoked.Revoked:
    """What the list beside `ca` says; nothing where there is none. Raises TlsError."""
    path = list_beside(ca)
    try:
        authorities = ca.read_bytes()
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return revoked.without_list(authorities)
        found = revoked.read(text, authorities)
        if found.foreign:
            log.warning("event=tls_list_foreign detail=%s", _foreign(ca))
        return found
    except OSError as error:
        raise TlsError(f"{error.filename} cannot be read ({error.strerror})") from error
    except CertificateError as error:
        raise TlsError(f"{path}: {error}") from error
    except ValueError as error:
        raise TlsError(f"{ca} holds no PEM certificate of an authority") from error


def _trust(context: ssl.SSLContext, ca: Path) -> None:
    try:
        context.load_verify_locations(cafile=ca)
    except ssl.SSLError as error:
        raise TlsError(f"{ca} holds no PEM certificate of an authority") from error
    except OSError as error:
        raise TlsError(f"{ca} cannot be read ({error.strerror})") from error
