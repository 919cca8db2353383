"""Where a node stands: which entry of the list of voters is its own, what it is by that, and how others reach it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ringrift_cluster.members import (
    DEFAULT_PORT,
    Member,
    SettingsError,
    is_loopback,
    is_wildcard,
    join,
    parse_member,
)
from ringrift_cluster.sources import Role, Settings


@dataclass(frozen=True, slots=True)
class Place:
    """A node's role and addresses, by the list and by its own settings."""

    #: its id, where the list or an earlier start names it
    node_id: str | None
    role: Role
    port: int
    raft_port: int
    advertise_host: str
    advertise_port: int


def place_of(settings: Settings, members: tuple[Member, ...], wanted: str | None, hostname: str) -> Place:
    """Find a node's place in the list; `wanted` is the id it was told or had before. Raises SettingsError."""
    said_host, said_port = _advertised(settings)
    mine = _find_self(settings, members, wanted, said_host, said_port, hostname)
    role = _decide_role(settings, mine, wanted, members)
    port = settings.port or (mine.port if mine else DEFAULT_PORT)
    if mine is not None:
        _check_listing(settings, mine, wanted, said_host, said_port, port)
        host, advertise_port = mine.host, mine.port
        if said_host is None and not (is_wildcard(settings.bind) or _covers(settings.bind, mine.host)):
            raise SettingsError(
                f"Voter {mine.id} is listed at {mine.address}, but --bind {settings.bind} takes connections"
                " from this machine only; give --bind 0.0.0.0 or the address of the interface."
            )
    else:
        if said_host is None and is_wildcard(settings.bind):
            raise SettingsError(
                f"With --bind {settings.bind} other nodes do not know how to reach this one;"
                " give --advertise HOST[:PORT]."
            )
        host, advertise_port = said_host or settings.bind, said_port or port
    raft_port = settings.raft_port or (mine.raft_port if mine else port + 1)
    if role is Role.FOLLOWER and raft_port > 65535:
        raft_port = port - 1
    if raft_port == port or raft_port > 65535:
        raise SettingsError(
            f"The Raft port {raft_port} does not work with the HTTP port {port}; give another --raft-port."
        )
    return Place(mine.id if mine else wanted, role, port, raft_port, host, advertise_port)


def _advertised(settings: Settings) -> tuple[str | None, int | None]:
    """The host and port of --advertise, as far as they were said."""
    if settings.advertise is None:
        return None, settings.advertise_port
    said = parse_member(settings.advertise)
    explicit = said.port if re.search(r"(?:\]|^[^:]+):\d+$", settings.advertise) else None
    if explicit and settings.advertise_port and explicit != settings.advertise_port:
        raise SettingsError(
            f"--advertise says port {explicit} and advertise_port says {settings.advertise_port}; say it once."
        )
    if is_wildcard(said.host):
        raise SettingsError(f"Nobody can dial {said.host}; give --advertise a host name or an address.")
    return said.host, explicit or settings.advertise_port


def _find_self(
    settings: Settings,
    members: tuple[Member, ...],
    wanted: str | None,
    said_host: str | None,
    said_port: int | None,
    hostname: str,
) -> Member | None:
    """This node's own entry: by its id, by its advertised address, else by where it listens."""
    by_id = next((m for m in members if m.id == wanted), None)
    if said_host is not None:
        hosts: tuple[str, ...] = (said_host,)
    elif is_wildcard(settings.bind):
        hosts = (hostname, hostname.partition(".")[0])
    else:
        hosts = (settings.bind, hostname, hostname.partition(".")[0])
    port = said_port or settings.port
    here = [m for m in members if m.host in hosts]
    by_address = next((m for m in here if m.port == (port or DEFAULT_PORT)), None)
    if by_address is None and by_id is None and port is None and here and settings.role is not Role.FOLLOWER:
        # Without a port the host alone decides, where it does.
        if len(here) > 1:
            raise SettingsError(
                f"This node could be any of {', '.join(m.id for m in here)}; give --node-id to be one of them,"
                " or --port to be a follower beside them."
            )
        by_address = here[0]
    if by_id and said_host is not None and by_address and by_address is not by_id:
        raise SettingsError(
            f"In --cluster the id {by_id.id} is at {by_id.address}, but --advertise {by_address.address} is"
            f" {by_address.id}; correct the list or the flag."
        )
    return by_id or by_address


def _decide_role(settings: Settings, mine: Member | None, wanted: str | None, members: tuple[Member, ...]) -> Role:
    if settings.role is Role.VOTER and mine is None:
        called = f"node {wanted}" if wanted else "this node"
        raise SettingsError(
            f"--role voter, but {called} is not in --cluster {','.join(m.id for m in members)};"
            " add it to the list on every node, or give --role follower."
        )
    if settings.role is Role.FOLLOWER and mine is not None:
        raise SettingsError(
            f"--role follower, but this node is in --cluster as the voter {mine.id} at {mine.address};"
            " take it out of the list on every node, or leave --role away."
        )
    return Role.VOTER if mine is not None else Role.FOLLOWER


def _check_listing(
    settings: Settings,
    mine: Member,
    wanted: str | None,
    said_host: str | None,
    said_port: int | None,
    port: int,
) -> None:
    if wanted is not None and mine.id != wanted:
        raise SettingsError(
            f"This node is {wanted}, but its address stands in --cluster as {mine.id}; write"
            f" {wanted}={mine.address} in the list on every node."
        )
    if said_host is not None and (said_host, said_port or port) != (mine.host, mine.port):
        raise SettingsError(
            f"Voter {mine.id} is listed at {mine.address}, but --advertise says"
            f" {join(said_host, said_port or port)}; they must be the same."
        )
    if said_host is None and port != mine.port:
        raise SettingsError(
            f"Voter {mine.id} is listed at {mine.address}, but --port is {port}; make them the same, or give"
            " --advertise when something forwards the port."
        )
    if said_host is None and settings.raft_port not in (None, mine.raft_port):
        raise SettingsError(
            f"Voter {mine.id} is listed with Raft port {mine.raft_port}, but --raft-port is"
            f" {settings.raft_port}; write {mine.id}={mine.address}/{settings.raft_port} in the list on every node."
        )


def _covers(bind: str, host: str) -> bool:
    """Whether a listener on `bind` can be what the others reach as `host`."""
    return not is_loopback(bind) or is_loopback(host) or bind == host
