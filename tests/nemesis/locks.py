"""Certificates and tokens of one scenario: what a cluster beyond loopback has, and what each message then passes."""

from __future__ import annotations

import datetime as dt
import ssl
from pathlib import Path

from ringrift_cluster.api.tokens import fresh_secret, hash_of
from ringrift_cluster.certs import issue, make_authority
from ringrift_cluster.tls import client_context
from tests.support.cluster import NodeProcess

#: wall clocks jump by more than a year, and a certificate is good for a span of the wall clock
DAYS_EACH_WAY = 1_000


class Locks:
    """An authority, a root token for the voters, one for the clients, and one that lets followers in."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._born = dt.datetime.now(dt.UTC) - dt.timedelta(days=DAYS_EACH_WAY)
        self._authority = make_authority("nemesis", self._born, 2 * DAYS_EACH_WAY)
        self._ca = self._write("ca.crt", self._authority.cert)
        self._root_file = self._secret("root")
        self._join_file = self._secret("join")
        self.token = self._root_file.read_text()
        self.context: ssl.SSLContext = client_context(self._ca)

    def _write(self, name: str, data: bytes) -> Path:
        path = self._folder / name
        path.touch(mode=0o600)
        path.write_bytes(data)
        return path

    def _secret(self, name: str) -> Path:
        return self._write(name, fresh_secret().encode())

    def flags(self, name: str, host: str, *, votes: bool) -> tuple[str, ...]:
        """`votes` is for voters and those that may become voters: a voter's certificate and the root token."""
        pair = issue(self._authority, name, votes, [host], self._born, 2 * DAYS_EACH_WAY)
        cert, key = self._write(f"{name}.crt", pair.cert), self._write(f"{name}.key", pair.key)
        files = ("--tls-ca", str(self._ca), "--tls-cert", str(cert), "--tls-key", str(key))
        token = ("--auth-token-file", str(self._root_file)) if votes else ("--join-token-file", str(self._join_file))
        return (*files, *token)

    def let_in(self, leader: NodeProcess) -> None:
        """Make the token with which the followers join, and the clients' own, which takes the root token's place."""
        for name, scope, secret in (
            ("followers", "join", self._join_file.read_text()),
            ("clients", "admin", clients := fresh_secret()),
        ):
            body = {"name": name, "scope": scope, "sha256": hash_of(secret)}
            leader.post("/tokens", body).raise_for_status()
        self.token = clients
