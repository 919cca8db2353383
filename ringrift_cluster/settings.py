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
from ringrift_cluster.exposure import exposed, refuse_exposed, tls_files
from ringrift_cluster.identity import OWN_TOKEN_FILE, has_own_token, loose_among, secret_from, store_id, stored_id
from ringrift_cluster.members import DEFAULT_PORT, Member, SettingsError, join, parse_cluster
from ringrift_cluster.place import place_of
from ringrift_cluster.retired import retired
from ringrift_cluster.sources import Network, Role, Settings, load
from ringrift_cluster.tls import TlsFiles

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
    place = place_of(settings, members, settings.node_id or stored_id, hostname)
    role = place.role
    secret = settings.cluster_secret or cluster_secret
    token = settings.auth_token or auth_token
    join_with = settings.join_token or join_token
    if role is Role.VOTER and join_with is not None:
        raise SettingsError(
            "A join token makes followers, and this node is a voter; give --auth-token-file the cluster's own token"
            " in place of --join-token-file."
        )
    tls = tls_files(settings, role)
    if tls is None and settings.tls_transition:
        raise SettingsError(
            "--tls-transition is for a node with certificates; give --tls-cert, --tls-key and --tls-ca."
        )
    if tls is not None and not settings.tls_transition:
        members = tuple(replace(m, scheme="https") for m in members)
    guarded = token is not None or (role is Role.FOLLOWER and (joined or join_with is not None))
    encrypted = tls is not None and tls.cert is not None and not settings.tls_transition
    refuse_exposed(settings, role, secret, encrypted, guarded)
    exposure = exposed(settings, encrypted, guarded)
    complaints = tuple(
        f"{path} holds a secret and others on this machine can read it; chmod 600 {path}" for path in loose
    )
    if settings.tls_transition:
        complaints += (
            "tls_transition is on: plain text is taken too; take it out when every node has its certificate",
        )
    low, high, period = TIMING[settings.network]
    return NodeConfig(
        node_id=place.node_id or fresh_id,
        role=role,
        voters=members,
        bind=settings.bind,
        port=place.port,
        raft_port=place.raft_port,
        advertise_host=place.advertise_host,
        advertise_port=place.advertise_port,
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


def _count_warnings(members: tuple[Member, ...]) -> list[str]:
    count = len(members)
    if count % 2 == 0:
        return [f"{count} voters survive no more failures than {count - 1} do; use 3 or 5."]
    return [f"{count} voters make every commit wait for {count // 2 + 1} of them; use 3 or 5."] if count > 7 else []


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
        stored_id=stored_id(data_dir),
        hostname=hostname,
        fresh_id=f"{plain}-{secrets.token_hex(3)}",
        environ=os.environ,
        auth_token=secret_from(settings.auth_token_file, "auth_token_file"),
        cluster_secret=secret_from(settings.cluster_secret_file, "cluster_secret_file"),
        join_token=secret_from(settings.join_token_file, "join_token_file"),
        joined=has_own_token(data_dir),
        loose=loose_among(
            settings.auth_token_file,
            settings.cluster_secret_file,
            settings.join_token_file,
            settings.tls_key,
            settings.ssh_key_file,
            settings.object_store_credentials_file,
            data_dir / OWN_TOKEN_FILE,
        ),
    )
    store_id(data_dir, decided.node_id)
    return decided
