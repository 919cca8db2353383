"""Which seat a node has in its cluster: what its data directory says goes before the flags.

<data-dir>/raft/                 a voter's log; or one that joins, beside which the node follows
<data-dir>/raft.removed-LOG/     a log the cluster has removed: the node follows
neither                          a voter when --cluster names it, else a follower
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path

import msgspec

from ringrift_cluster.members import Member, SettingsError, join, urls_of
from ringrift_cluster.raft.conf import Limits, Timing, VoterConfig
from ringrift_cluster.raft.datadir import DataDir, sync_directory
from ringrift_cluster.raft.store import SqliteStore
from ringrift_cluster.replica import Replica
from ringrift_cluster.settings import NodeConfig
from ringrift_cluster.tls import Tls
from statemachine.errors import UNDECODABLE

_ASIDE = "raft.removed-"
_BOOK = "voters.json"


class Seat(StrEnum):
    VOTER = "voter"
    FOLLOWER = "follower"
    #: a follower with a log beside it that a leader may bring up to date and make a voter's
    LEARNER = "learner"


def seat_of(config: NodeConfig) -> Seat:
    """The seat to start in. Raises JournalDamaged when the log that decides it cannot be read."""
    paths = DataDir(config.data_dir)
    if paths.journal.exists():
        return Seat.LEARNER if _facts(paths).get("joining") else Seat.VOTER
    if any(config.data_dir.glob(f"{_ASIDE}*")) or not config.is_voter:
        return Seat.FOLLOWER
    return Seat.VOTER


def set_aside(data_dir: Path) -> Path:
    """Put the log of a voter that was removed out of the way, under a name of its own. Raises OSError."""
    paths = DataDir(data_dir)
    aside = data_dir / f"{_ASIDE}{_facts(paths).get('log_id', '')[:12]}"
    paths.raft.rename(aside)
    sync_directory(data_dir)
    return aside


def _facts(paths: DataDir) -> dict[str, str]:
    store = SqliteStore(paths.journal, read_only=True)
    try:
        return store.facts()
    finally:
        store.close()


def raft_address(config: NodeConfig) -> str:
    """Where other voters reach this node's log."""
    own = next((m for m in config.voters if m.id == config.node_id), None)
    return own.raft_address if own is not None else join(config.advertise_host, config.raft_port)


def remember(data_dir: Path, urls: Mapping[str, str]) -> None:
    """Keep where the voters are: the flags of a voter that was removed may name nobody but itself. Raises OSError."""
    draft = data_dir / f"{_BOOK}.tmp"
    draft.write_bytes(msgspec.json.encode(dict(urls)))
    draft.replace(data_dir / _BOOK)


def known_voters(config: NodeConfig) -> dict[str, str]:
    """The other voters' URLs by the flags and by what was kept. Raises SettingsError."""
    kept: dict[str, str] = {}
    path = config.data_dir / _BOOK
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except FileNotFoundError:
        pass
    except UNDECODABLE as error:
        raise SettingsError(f"The list of voters {path} cannot be read ({error}); remove it.") from error
    known = {**kept, **{m.id: m.url for m in config.voters}}
    known.pop(config.node_id, None)
    return known


def whom_to_follow(config: NodeConfig) -> dict[str, str]:
    """The voters to begin with; the log corrects them. Raises SettingsError."""
    known = known_voters(config)
    if not known:
        raise SettingsError(
            f"This node is a follower, and --cluster names nobody but {config.node_id}; give the address of a voter."
        )
    return known


def voter_urls(replica: Replica, first: Iterable[Member]) -> dict[str, str]:
    """Where the other voters' HTTP is: as the log says it, and before it does, as the flags do."""
    state, own = replica.live_state(), replica.status().node_id
    known = urls_of(state) or {m.id: m.url for m in first}
    return {node: url for node, url in known.items() if node != own}


def voter_config(config: NodeConfig, tls: Tls | None, *, joins: bool) -> VoterConfig:
    """The settings of this node's log. `joins`: the cluster is there, so the flags do not say who votes."""
    first = () if joins or config.node_id not in {m.id for m in config.voters} else config.voters
    secret = config.cluster_secret.get_secret_value().encode() if config.cluster_secret else None
    return VoterConfig(
        node_id=config.node_id,
        voters={m.id: m.raft_address for m in first},
        urls={m.id: m.url for m in first},
        elsewhere={m.id: m.raft_address for m in config.voters},
        data_dir=config.data_dir,
        bind=join(config.bind, config.raft_port),
        secret=secret,
        server_tls=tls.link_server if tls is not None else None,
        client_tls=tls.link_client if tls is not None else None,
        clear_too=config.tls_transition,
        timing=Timing(
            heartbeat_s=config.append_period_s,
            election_min_s=config.election_min_s,
            election_max_s=config.election_max_s,
        ),
        limits=Limits.for_snapshots(config.snapshot_every_entries),
    )
