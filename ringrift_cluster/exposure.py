"""What a node leaves open to the network, and what it refuses to."""

from __future__ import annotations

from pydantic import SecretStr

from ringrift_cluster.members import SettingsError, is_loopback
from ringrift_cluster.sources import Role, Settings
from ringrift_cluster.tls import TlsFiles


def tls_files(settings: Settings, role: Role) -> TlsFiles | None:
    """The files of TLS, when there are as many as it takes. Raises SettingsError."""
    cert, key, ca = (p.expanduser() if p else None for p in (settings.tls_cert, settings.tls_key, settings.tls_ca))
    if (cert is None) != (key is None) or (cert is not None and ca is None):
        raise SettingsError("TLS takes --tls-cert, --tls-key and --tls-ca together; give all three.")
    if ca is None:
        return None
    if cert is None and role is Role.VOTER:
        raise SettingsError(
            "A voter under --tls-ca (or RINGRIFT_TLS_CA, which the command line reads too) shows a certificate of its"
            " own; give --tls-cert and --tls-key too."
        )
    return TlsFiles(ca, cert, key)


def refuse_exposed(settings: Settings, role: Role, secret: SecretStr | None, encrypted: bool, guarded: bool) -> None:
    """Raises SettingsError where a bind beyond loopback lacks what it takes and --insecure does not say that it may."""
    if is_loopback(settings.bind):
        return
    if not settings.insecure and not (encrypted and guarded):
        wants_token = "--auth-token-file" if role is Role.VOTER else "--auth-token-file or --join-token-file"
        missing = [] if encrypted else ["its traffic is not encrypted (--tls-cert, --tls-key, --tls-ca)"]
        missing += [] if guarded else [f"it asks nobody for a token ({wants_token})"]
        raise SettingsError(
            f"--bind {settings.bind} opens this node to the network and {' and '.join(missing)}; give what is missing,"
            " or bind to 127.0.0.1, or give --insecure if everybody on that network is trusted."
        )
    if role is Role.VOTER and secret is None and not encrypted:
        raise SettingsError(
            f"A voter on {settings.bind} needs a cluster secret to know its fellow voters by; give"
            " --cluster-secret-file (or RINGRIFT_CLUSTER_SECRET) the same value on every voter, or TLS."
        )


def exposed(settings: Settings, encrypted: bool, guarded: bool) -> str:
    """What --insecure leaves open to the network, in a sentence."""
    if is_loopback(settings.bind) or (encrypted and guarded):
        return ""
    if not encrypted and not guarded:
        return (
            f"insecure: everyone who reaches {settings.bind} reads and changes everything, and the traffic is in clear"
        )
    if guarded:
        return f"insecure: the traffic on {settings.bind} is in clear, the tokens in it included"
    return f"insecure: everyone who reaches {settings.bind} reads and changes everything, no token is asked for"
