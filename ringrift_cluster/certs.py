"""A small certificate authority: one key for a cluster, one certificate a node (ECDSA P-256, X.509).

A node's certificate names it as a URI, `urn:ringrift:voter:ID` or `urn:ringrift:node:ID`, and the hosts under which
others reach it. Voters believe the URI, HTTP clients the hosts.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Struct

_VOTER, _NODE = "urn:ringrift:voter:", "urn:ringrift:node:"
#: a clock that is a little behind still takes a fresh certificate
BACKDATED = dt.timedelta(minutes=10)
#: a node is asked from its own machine too
LOCAL = ("localhost", "127.0.0.1", "::1")


class CertificateError(Exception):
    """A file that is no certificate or key of this authority, in one sentence."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, both PEM."""

    cert: bytes
    key: bytes


class Facts(Struct, frozen=True):
    """What a certificate says. Times are UTC, ISO 8601."""

    subject: str
    issuer: str
    #: empty on an authority
    node_id: str
    voter: bool
    authority: bool
    hosts: tuple[str, ...]
    not_before: str
    not_after: str
    days_left: int
    sha256: str
    #: in hex, as `certs revoke` takes it
    serial: str


def identity(uris: Sequence[str]) -> tuple[str, bool] | None:
    """(node id, whether it is a voter's) from the URIs of a certificate; None when they name no node, or two."""
    named = [
        (unquote(uri[len(mark) :]), mark == _VOTER) for uri in uris for mark in (_VOTER, _NODE) if uri.startswith(mark)
    ]
    return named[0] if len(named) == 1 else None


def make_authority(name: str, now: dt.datetime, days: int) -> Pair:
    """A new authority, trusted for nodes alone."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    cert = (
        _builder(subject, subject, key, now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _pair(cert, key)


def issue(authority: Pair, node_id: str, voter: bool, hosts: Sequence[str], now: dt.datetime, days: int) -> Pair:
    """A new key and certificate for one node. Raises CertificateError."""
    issuer, signer = authority_of(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    uri = (_VOTER if voter else _NODE) + quote(node_id, safe="")
    names = [x509.UniformResourceIdentifier(uri), *(_host(h) for h in dict.fromkeys((*hosts, *LOCAL)))]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node_id[:64])])
    cert = (
        _builder(subject, issuer.subject, key, now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return _pair(cert, key)


def authority_of(pair: Pair) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """An authority that may sign. Raises CertificateError when it may not, or its files do not fit together."""
    issuer, signer = _load(pair.cert), _load_key(pair.key)
    if not _is_authority(issuer):
        raise CertificateError("ca.crt is no authority's certificate; put the authority's own back")
    if signer.public_key() != issuer.public_key():
        raise CertificateError("the authority's key does not belong to its certificate")
    return issuer, signer


def _is_authority(cert: x509.Certificate) -> bool:
    return any(isinstance(e.value, x509.BasicConstraints) and e.value.ca for e in cert.extensions)


def facts(cert: bytes, now: dt.datetime) -> Facts:
    """What the first certificate of a PEM text says. Raises CertificateError."""
    found = _load(cert)
    names: list[str] = []
    uris: list[str] = []
    for extension in found.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            uris = extension.value.get_values_for_type(x509.UniformResourceIdentifier)
            names += extension.value.get_values_for_type(x509.DNSName)
            names += map(str, extension.value.get_values_for_type(x509.IPAddress))
    node = identity(uris)
    return Facts(
        subject=found.subject.rfc4514_string(),
        issuer=found.issuer.rfc4514_string(),
        node_id=node[0] if node else "",
        voter=node is not None and node[1],
        authority=_is_authority(found),
        hosts=tuple(names),
        not_before=found.not_valid_before_utc.isoformat(),
        not_after=found.not_valid_after_utc.isoformat(),
        days_left=(found.not_valid_after_utc - now).days,
        sha256=found.fingerprint(hashes.SHA256()).hex(),
        serial=f"{found.serial_number:x}",
    )


def why_useless(cert: bytes, authorities: bytes, now: dt.datetime) -> str:
    """Why the first certificate of a PEM text convinces nobody who trusts `authorities`; empty when it does.

    It is good by the signature of an authority, or of another certificate in its own file. Raises CertificateError.
    """
    own = _load(cert)
    if now >= own.not_valid_after_utc:
        return f"it ended at {own.not_valid_after_utc.isoformat()}"
    if now < own.not_valid_before_utc:
        return f"it begins at {own.not_valid_before_utc.isoformat()} only; is this machine's clock right?"
    signers = [*x509.load_pem_x509_certificates(authorities), *x509.load_pem_x509_certificates(cert)[1:]]
    if any(_signed_by(own, signer) for signer in signers):
        return ""
    return f"no authority that is trusted here has signed it (it names {own.issuer.rfc4514_string()})"


def _signed_by(cert: x509.Certificate, signer: x509.Certificate) -> bool:
    try:
        cert.verify_directly_issued_by(signer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: dt.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise CertificateError(f"{host!r} is neither a host name nor an IP address") from error


def _load(cert: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(cert)
    except ValueError as error:
        raise CertificateError("it holds no PEM certificate") from error


def _load_key(key: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        found = serialization.load_pem_private_key(key, password=None)
    except (ValueError, TypeError) as error:
        raise CertificateError("it holds no unencrypted PEM key") from error
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise CertificateError("the authority's key is not an elliptic curve key")
    return found


def _pair(cert: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        cert.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
