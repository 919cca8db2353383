"""The voter list: how an entry is written, and who it names."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from statemachine.state import State

DEFAULT_PORT = 8770
NODE_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,127}$")


class SettingsError(Exception):
    """A combination of settings that cannot work, in one sentence that says what to change."""


@dataclass(frozen=True, slots=True)
class Member:
    """One voter of the cluster list. `port` is its HTTP port."""

    id: str
    host: str
    port: int
    raft_port: int
    #: of its HTTP port
    scheme: str = "http"

    @property
    def address(self) -> str:
        return join(self.host, self.port)

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.address}"

    @property
    def raft_address(self) -> str:
        return join(self.host, self.raft_port)


def join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_MEMBER = re.compile(
    r"^(?:(?P<id>[^=]*)=)?(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\[\]:/=]+))(?::(?P<port>\d{1,5}))?(?:/(?P<raft>\d{1,5}))?$"
)


def parse_member(text: str) -> Member:
    """Read `[id=]host[:port][/raft_port]`; an entry without an id is called by its address as written."""
    found = _MEMBER.match(text)
    if not found:
        raise SettingsError(
            f"The cluster entry {text!r} is no address; write host:port or id=host:port,"
            " with /raft-port behind it when that is not the port + 1."
        )
    host = found["v6"] or found["host"]
    port = int(found["port"] or DEFAULT_PORT)
    raft_port = int(found["raft"] or port + 1)
    if not (0 < port < 65536 and 0 < raft_port < 65536 and port != raft_port):
        raise SettingsError(
            f"The cluster entry {text!r} needs two different ports between 1 and 65535 (HTTP and Raft)."
        )
    name = found["id"] if found["id"] is not None else (host if not found["port"] else join(host, port))
    if not NODE_ID.match(name):
        raise SettingsError(
            f"The cluster entry {text!r} has the id {name!r}, which is not usable as one; write id=host:port"
            " with an id of letters, digits and ._:@/+- that starts with a letter or digit."
        )
    return Member(name, host, port, raft_port)


def parse_cluster(entries: tuple[str, ...]) -> tuple[Member, ...]:
    """Read the voter list and refuse doubles; the order of the list carries no meaning."""
    members = tuple(parse_member(entry) for entry in entries)
    for what, keys in (
        ("id", [m.id for m in members]),
        ("address", [m.address for m in members]),
        ("Raft address", [m.raft_address for m in members]),
    ):
        double = next((k for i, k in enumerate(keys) if k in keys[:i]), None)
        if double is not None:
            raise SettingsError(f"The {what} {double} stands twice in --cluster; name each voter once.")
    return tuple(sorted(members, key=lambda m: m.id))


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    return host in ("0.0.0.0", "::", "*")  # noqa: S104 - compared, not bound


def urls_of(state: State | None) -> dict[str, str]:
    """Where the voters' HTTP is, by the log.

    The list of voters keeps the address that a voter was added under. One that has moved to TLS since says so when its
    agent joins; nothing but that is believed of what it says.
    """
    found: dict[str, str] = {}
    for voter in state.voters.voters if state is not None else ():
        peer = state.peers.get(voter.node) if state is not None else None
        sealed = voter.url.replace("http://", "https://", 1)
        if voter.url:
            found[voter.node] = sealed if peer is not None and peer.address == sealed else voter.url
    return found
