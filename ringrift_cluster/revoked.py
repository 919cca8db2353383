"""Revoked certificates: lists that authorities sign (X.509 CRL, RFC 5280), in `ca.crl` beside `ca.crt`.

A list says which serial numbers of its authority are good no longer. It is never late: a list counts until a newer one
of the same authority takes its place, so one that nobody renews locks nobody out.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from ringrift_cluster.certs import CertificateError, Facts, Pair, authority_of

_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)


class Reason(StrEnum):
    """Why a certificate is revoked, in the words of X.509."""

    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "key-compromise"
    SUPERSEDED = "superseded"
    CESSATION = "cessation-of-operation"


_FLAGS = {
    Reason.UNSPECIFIED: x509.ReasonFlags.unspecified,
    Reason.KEY_COMPROMISE: x509.ReasonFlags.key_compromise,
    Reason.SUPERSEDED: x509.ReasonFlags.superseded,
    Reason.CESSATION: x509.ReasonFlags.cessation_of_operation,
}


@dataclass(frozen=True, slots=True)
class Revoked:
    """What the lists of one file say. `numbers` is each list's own number, by the fingerprint of its authority."""

    #: issuer (RFC 4514) and serial number (hex)
    certificates: frozenset[tuple[str, str]] = frozenset()
    numbers: Mapping[bytes, int] = field(default_factory=dict)
    #: the authorities by which the file was read
    trusted: frozenset[bytes] = frozenset()
    #: there is a file, and nothing in it is of an authority that is trusted (any more)
    foreign: bool = False

    def names(self, certificate: bytes) -> bool:
        """Whether a certificate (DER) is revoked."""
        if not self.certificates:
            return False
        shown = x509.load_der_x509_certificate(certificate)
        return (shown.issuer.rfc4514_string(), f"{shown.serial_number:x}") in self.certificates

    def has(self, said: Facts) -> bool:
        """Whether the certificate that says this is revoked."""
        return (said.issuer, said.serial) in self.certificates

    def falls_behind(self, before: Revoked) -> bool:
        """Whether an authority that is still trusted has an older list here than in `before`, or none."""
        return any(key in self.trusted and self.numbers.get(key, -1) < number for key, number in before.numbers.items())


def read(text: bytes, authorities: bytes) -> Revoked:
    """The lists of a PEM text that the given authorities (PEM) have signed; those of others mean nothing.

    Raises CertificateError when there is no list, or one cannot be read.
    """
    trusted = x509.load_pem_x509_certificates(authorities)
    certificates: set[tuple[str, str]] = set()
    numbers: dict[bytes, int] = {}
    blocks = _BLOCK.findall(text)
    if not blocks:
        raise CertificateError("it holds no list of revoked certificates")
    for block in blocks:
        try:
            found = x509.load_pem_x509_crl(block)
            signer = next((one for one in trusted if _signed_by(found, one)), None)
            if signer is None:
                continue
            certificates.update((found.issuer.rfc4514_string(), f"{entry.serial_number:x}") for entry in found)
            key = signer.fingerprint(hashes.SHA256())
            numbers[key] = max(numbers.get(key, 0), _number(found))
        except ValueError as error:
            raise CertificateError(f"it holds a damaged list of revoked certificates ({error})") from error
    known = frozenset(one.fingerprint(hashes.SHA256()) for one in trusted)
    return Revoked(frozenset(certificates), numbers, known, foreign=not numbers)


def without_list(authorities: bytes) -> Revoked:
    """What holds where there is no file."""
    trusted = x509.load_pem_x509_certificates(authorities)
    return Revoked(trusted=frozenset(one.fingerprint(hashes.SHA256()) for one in trusted))


def revoke(authority: Pair, before: bytes | None, serials: Collection[int], reason: Reason, now: dt.datetime) -> bytes:
    """The authority's next list (PEM): what `before` (PEM) has, and `serials`. Raises CertificateError."""
    issuer, signer = authority_of(authority)
    entries: dict[int, x509.RevokedCertificate] = {}
    number = 0
    if before is not None:
        try:
            old = x509.load_pem_x509_crl(before)
        except ValueError as error:
            raise CertificateError("it holds no list of revoked certificates") from error
        if not _signed_by(old, issuer):
            raise CertificateError("it holds a list that this authority has not signed")
        number = _number(old)
        entries = {entry.serial_number: entry for entry in old}
    for serial in serials:
        if serial not in entries:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
            if reason is not Reason.UNSPECIFIED:
                entry = entry.add_extension(x509.CRLReason(_FLAGS[reason]), critical=False)
            entries[serial] = entry.build()
    made = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(now)
        .next_update(max(issuer.not_valid_after_utc, now + dt.timedelta(days=1)))
        .add_extension(x509.CRLNumber(number + 1), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    for one in entries.values():
        made = made.add_revoked_certificate(one)
    return made.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def serials(text: bytes) -> frozenset[int]:
    """The serial numbers on a list (PEM). Raises CertificateError."""
    try:
        return frozenset(entry.serial_number for entry in x509.load_pem_x509_crl(text))
    except ValueError as error:
        raise CertificateError("it holds no list of revoked certificates") from error


def _signed_by(found: x509.CertificateRevocationList, signer: x509.Certificate) -> bool:
    key = signer.public_key()
    return found.issuer == signer.subject and found.is_signature_valid(key)  # type: ignore[arg-type]


def _number(found: x509.CertificateRevocationList) -> int:
    numbers = [e.value.crl_number for e in found.extensions if isinstance(e.value, x509.CRLNumber)]
    return numbers[0] if numbers else 0
