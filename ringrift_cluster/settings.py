"""What one node needs to know before it starts: flags, environment, file, and the decision they lead to.

    flags  >  environment (RINGRIFT_...)  >  TOML file (--config, RINGRIFT_CONFIG)  >  defaults
              `Settings` (what was said)  --resolve-->  `NodeConfig` (what it means)

These values belong to one machine. What all nodes must agree on lives in the replicated settings and
is changed with `ringrift-node settings set`.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from executors.gateway import Keys
from executors.objectstore import Bucket, parse
from ringrift_cluster.members import (
    DEFAULT_PORT,
    NODE_ID,
    Member,
    SettingsError,
    is_loopback,
    is_wildcard,
    join,
    parse_cluster,
    parse_member,
)
from ringrift_cluster.retired import retired
from ringrift_cluster.sources import Network, Role, Settings, load
from ringrift_cluster.tls import TlsFiles

__all__ = ["Member", "Network", "NodeConfig", "Role", "Settings", "SettingsError", "load", "node_config", "resolve"]

NODE_ID_FILE = "node-id"
#: the token that a follower bought (see `badge`)
OWN_TOKEN_FILE = "node-token"  # noqa: S105 - a file name


#: election timeout bounds and the append period of each preset, in seconds
TIMING: dict[Network, tuple[float, float, float]] = {
    Network.FAST: (0.5, 1.0, 0.1),
    Network.WIDE: (1.5, 3.0, 0.2),
}


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """The settings of one node after every decision: nothing in here contradicts anything else."""

    node_id: str
    role: Role
    voters: tuple[Member, ...]
    bind: str
    port: int
    #: where its log listens; a follower's from the moment it is made a voter
    raft_port: int
    advertise_host: str
    advertise_port: int
    data_dir: Path
    log_level: str
    #: None: as many as the machine has cores
    cpu_slots: int | None
    #: jobs at the same time, whatever they need; 0: twice the slots and GPUs, at least 32
    max_processes: int
    starts_per_s: float
    #: cores that jobs may not use; None: one on a voter that has some to spare
    reserve_cpus: int | None
    #: how the provider says that it takes the machine away
    notice_file: Path | None
    notice_command: str
    notice_url: str
    notice_every_s: float
    #: the disk is low under this share and under this size
    disk_floor_percent: float
    disk_floor_gib: float
    labels: tuple[str, ...]
    #: the quota of its store of files, 0: none; and the bytes a second that its transfers take in each direction
    store_bytes: int
    transfer_bytes_per_s: int
    #: the bucket that it has access to
    object_store: Bucket | None
    auth_token: SecretStr | None
    #: what a follower without the auth token buys its own token with
    join_token: SecretStr | None
    cluster_secret: SecretStr | None
    #: None: plain HTTP, and voters' links without encryption
    tls: TlsFiles | None
    #: the cluster is on its way to TLS: this node speaks it, and plain text too
    tls_transition: bool
    #: what is open to the network because of --insecure, in a sentence; else empty
    exposure: str
    election_min_s: float
    election_max_s: float
    append_period_s: float
    stop_jobs: bool
    #: leave, with the jobs stopped, when the process of this pid is not this one's parent (any more); 0: stay
    exit_with_parent: int
    stop_grace_s: float
    #: how often running jobs tell their progress
    progress_every_s: float
    #: how this node reaches the hosts without an agent that it speaks for
    ssh: Keys
    fresh_within_s: float
    snapshot_every_entries: int
    fail_on_subscription_failure: bool
    warnings: tuple[str, ...] = ()
    #: what its operator should mend on this machine, in sentences that `/status` shows
    complaints: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """Where other nodes reach this one's HTTP."""
        scheme = "https" if self.sealed and self.tls is not None and self.tls.cert is not None else "http"
        return f"{scheme}://{join(self.advertise_host, self.advertise_port)}"

    @property
    def sealed(self) -> bool:
        """Whether it speaks to others under TLS alone."""
        return self.tls is not None and not self.tls_transition

    @property
    def is_voter(self) -> bool:
        return self.role is Role.VOTER


def resolve(
    settings: Settings,
    *,
    stored_id: str | None,
    hostname: str,
    fresh_id: str,
    environ: Mapping[str, str] | None = None,
    auth_token: SecretStr | None = None,
    cluster_secret: SecretStr | None = None,
    join_token: SecretStr | None = None,
    joined: bool = False,
    loose: Sequence[Path] = (),
) -> NodeConfig:
    """Decide what the node is. Pure.

    `stored_id` is the identity its data directory already has, `fresh_id` the one to use when nothing
    else names it; the three secrets are the ones read from files;
    `joined` says that it has bought a token of its own; `loose` are files with secrets that others on
    the machine can read. Raises SettingsError.
    """
    if not settings.cluster:
        raise SettingsError(
            "No voters are named; give --cluster (or RINGRIFT_P2P_VOTERS) the same list on every node,"
            f" for one machine alone --cluster 127.0.0.1:{settings.port or DEFAULT_PORT}."
        )
    if settings.node_id and stored_id and settings.node_id != stored_id:
        raise SettingsError(
            f"The data directory {settings.data_dir} belongs to node {stored_id}, but this node is to be"
            f" {settings.node_id}; give the old id, or another --data-dir."
        )
    members = parse_cluster(settings.cluster)
    wanted = settings.node_id or stored_id
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
    secret = settings.cluster_secret or cluster_secret
    token = settings.auth_token or auth_token
    join_with = settings.join_token or join_token
    if role is Role.VOTER and join_with is not None:
        raise SettingsError(
            "A join token makes followers, and this node is a voter; give --auth-token-file the cluster's own token"
            " in place of --join-token-file."
        )
    tls = _tls_files(settings, role)
    if tls is None and settings.tls_transition:
        raise SettingsError(
            "--tls-transition is for a node with certificates; give --tls-cert, --tls-key and --tls-ca."
        )
    if tls is not None and not settings.tls_transition:
        members = tuple(replace(m, scheme="https") for m in members)
    guarded = token is not None or (role is Role.FOLLOWER and (joined or join_with is not None))
    encrypted = tls is not None and tls.cert is not None and not settings.tls_transition
    _check_exposure(settings, role, secret, encrypted, guarded)
    exposure = _exposure(settings, encrypted, guarded)
    complaints = tuple(
        f"{path} holds a secret and others on this machine can read it; chmod 600 {path}" for path in loose
    )
    if settings.tls_transition:
        complaints += (
            "tls_transition is on: plain text is taken too; take it out when every node has its certificate",
        )
    low, high, period = TIMING[settings.network]
    return NodeConfig(
        node_id=mine.id if mine else (wanted or fresh_id),
        role=role,
        voters=members,
        bind=settings.bind,
        port=port,
        raft_port=raft_port,
        advertise_host=host,
        advertise_port=advertise_port,
        data_dir=settings.data_dir.expanduser(),
        log_level=settings.log_level,
        cpu_slots=settings.cpu_slots,
        max_processes=settings.max_processes,
        starts_per_s=settings.starts_per_s,
        reserve_cpus=settings.reserve_cpus,
        notice_file=settings.notice_file.expanduser() if settings.notice_file else None,
        notice_command=_command(settings.notice_command),
        notice_url=_url(settings.notice_url),
        notice_every_s=settings.notice_every_s,
        disk_floor_percent=settings.disk_floor_percent,
        disk_floor_gib=settings.disk_floor_gib,
        labels=settings.labels,
        store_bytes=int(settings.store_bytes),
        transfer_bytes_per_s=int(settings.transfer_bytes_per_s),
        object_store=_bucket(settings),
        auth_token=token,
        join_token=join_with,
        cluster_secret=secret,
        tls=tls,
        tls_transition=settings.tls_transition,
        exposure=exposure,
        election_min_s=low,
        election_max_s=high,
        append_period_s=period,
        stop_jobs=settings.stop_jobs,
        exit_with_parent=settings.exit_with_parent,
        progress_every_s=settings.progress_every_s,
        stop_grace_s=settings.stop_grace_s,
        ssh=Keys(
            settings.ssh_key_file.expanduser() if settings.ssh_key_file else None,
            settings.ssh_known_hosts_file.expanduser() if settings.ssh_known_hosts_file else None,
            settings.ssh_jobs,
            settings.ssh_transfers,
        ),
        fresh_within_s=settings.fresh_within_s,
        snapshot_every_entries=settings.snapshot_every_entries,
        fail_on_subscription_failure=settings.fail_on_subscription_failure,
        warnings=(
            *_count_warnings(members),
            *((exposure,) if exposure else ()),
            *complaints,
            *retired(environ or {}),
        ),
        complaints=complaints,
    )


def _command(text: str) -> str:
    try:
        shlex.split(text)
    except ValueError as error:
        raise SettingsError(f"notice_command {text!r} is no command: {error}.") from error
    return text


def _url(text: str) -> str:
    if text and not re.match(r"https?://[^/\s]", text):
        raise SettingsError(f"notice_url {text!r} is not usable; it begins with http:// and a host.")
    return text


def _bucket(settings: Settings) -> Bucket | None:
    """Raises SettingsError."""
    if settings.object_store is None:
        for name in ("endpoint", "region", "credentials_file"):
            if getattr(settings, f"object_store_{name}") is not None:
                raise SettingsError(f"object_store_{name} is of use with --object-store s3://BUCKET only; give both.")
        return None
    bucket, prefix = parse(settings.object_store)
    endpoint, region = settings.object_store_endpoint or "", settings.object_store_region or ""
    return Bucket(bucket, prefix, endpoint, region, settings.object_store_credentials_file)


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


def _tls_files(settings: Settings, role: Role) -> TlsFiles | None:
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


def _check_exposure(settings: Settings, role: Role, secret: SecretStr | None, encrypted: bool, guarded: bool) -> None:
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


def _exposure(settings: Settings, encrypted: bool, guarded: bool) -> str:
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


def _count_warnings(members: tuple[Member, ...]) -> list[str]:
    count = len(members)
    if count % 2 == 0:
        return [f"{count} voters survive no more failures than {count - 1} do; use 3 or 5."]
    return [f"{count} voters make every commit wait for {count // 2 + 1} of them; use 3 or 5."] if count > 7 else []


# --- the edge: identity file and secret files -----------------------------------------------------


def node_config(flags: Mapping[str, Any], config: Path | None = None) -> NodeConfig:
    """Read everything, decide, and give the data directory its identity on the first start.

    Raises SettingsError.
    """
    settings = load(flags, config)
    data_dir = settings.data_dir.expanduser()
    hostname = socket.gethostname()
    plain = re.sub(r"[^A-Za-z0-9.-]+", "-", hostname.partition(".")[0]).strip("-.") or "node"
    decided = resolve(
        settings,
        stored_id=_stored_id(data_dir),
        hostname=hostname,
        fresh_id=f"{plain}-{secrets.token_hex(3)}",
        environ=os.environ,
        auth_token=_secret_from(settings.auth_token_file, "auth_token_file"),
        cluster_secret=_secret_from(settings.cluster_secret_file, "cluster_secret_file"),
        join_token=_secret_from(settings.join_token_file, "join_token_file"),
        joined=_secret_from(_if_there(data_dir / OWN_TOKEN_FILE), OWN_TOKEN_FILE) is not None,
        loose=_loose(
            settings.auth_token_file,
            settings.cluster_secret_file,
            settings.join_token_file,
            settings.tls_key,
            settings.ssh_key_file,
            settings.object_store_credentials_file,
            data_dir / OWN_TOKEN_FILE,
        ),
    )
    _store_id(data_dir, decided.node_id)
    return decided


def _loose(*paths: Path | None) -> list[Path]:
    """Those that somebody besides their owner may read or write."""
    there = [path.expanduser() for path in paths if path is not None and path.expanduser().is_file()]
    return [path for path in there if path.stat().st_mode & 0o077]


def _if_there(path: Path) -> Path | None:
    return path if path.exists() else None


def _stored_id(data_dir: Path) -> str | None:
    path = data_dir / NODE_ID_FILE
    try:
        stored = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The identity file {path} cannot be read: {error}.") from error
    if not NODE_ID.match(stored):
        raise SettingsError(f"The identity file {path} holds no node id; write the node's id into it.")
    return stored


def _store_id(data_dir: Path, node_id: str) -> None:
    path = data_dir / NODE_ID_FILE
    if path.exists():
        return
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(f"{node_id}\n", encoding="utf-8")
        draft.rename(path)
    except OSError as error:
        raise SettingsError(
            f"The data directory {data_dir} cannot be written ({error.strerror}); give another --data-dir."
        ) from error


def _secret_from(path: Path | None, name: str) -> SecretStr | None:
    if path is None:
        return None
    try:
        text = path.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{name} {path} cannot be read: {error}.") from error
    if not text:
        raise SettingsError(f"{name} {path} is empty; write the value into it.")
    return SecretStr(text)
