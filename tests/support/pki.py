"""An authority and certificates in a test's directory."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from ringrift_cluster.certs import Pair, facts, issue, make_authority
from ringrift_cluster.revoked import Reason, revoke
from ringrift_cluster.tls import TlsFiles


class Authority:
    """ca.crt in a directory, and a certificate for whoever asks."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.pair = make_authority("test", dt.datetime.now(dt.UTC), 30)
        self.ca = directory / "ca.crt"
        self.ca.write_bytes(self.pair.cert)

    def make(self, node_id: str, *, voter: bool = True, days: int = 30, by: Pair | None = None) -> Pair:
        return issue(by or self.pair, node_id, voter, (), dt.datetime.now(dt.UTC), days)

    def files(self, name: str, pair: Pair) -> TlsFiles:
        """Write (or replace) the files of one node."""
        cert, key = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        for path, data in ((cert, pair.cert), (key, pair.key)):
            draft = path.with_suffix(".new")
            draft.write_bytes(data)
            draft.rename(path)
        return TlsFiles(self.ca, cert, key)

    def issue(self, node_id: str, *, voter: bool = True) -> TlsFiles:
        return self.files(node_id, self.make(node_id, voter=voter))

    def revoke(self, node_id: str) -> bytes:
        """Put the node's present certificate on ca.crl; returns the list."""
        path, now = self.ca.with_suffix(".crl"), dt.datetime.now(dt.UTC)
        serial = int(facts((self.directory / f"{node_id}.crt").read_bytes(), now).serial, 16)
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(revoke(self.pair, before, [serial], Reason.KEY_COMPROMISE, now))
        return path.read_bytes()
