"""Clock, counters, switches, settings and request ids of the cluster."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec.structs import replace

from statemachine import settings as st
from statemachine.commands import (
    ChangeSetting,
    Command,
    ConfigureVoters,
    Once,
    PauseCluster,
    RaiseFeatureLevel,
    effect_of,
    kind_of,
)
from statemachine.errors import Code, Done, Refused
from statemachine.rows import VOTERS_KEY, Cluster, PeerStatus, Request, Setting, Voters
from statemachine.state import Txn

#: The newest feature level that this release can apply.
SUPPORTED_FEATURE_LEVEL = 1
#: The cluster clock never moves further than this in one entry.
MAX_STEP_MS = 2_000

_results = msgspec.msgpack.Decoder(Done)


def advance(cluster: Cluster, term: int, elapsed_ms: int) -> Cluster:
    """Move the clock by what a leader's stamp adds to that leader's last one.

    A stamp of an older term adds nothing; the first of a term adds nothing (the clock stood still while there
    was no leader); one step is at most `MAX_STEP_MS`.
    """
    if term < cluster.clock_term:
        return cluster
    if term > cluster.clock_term:
        return replace(cluster, clock_term=term, clock_elapsed_ms=elapsed_ms)
    step = elapsed_ms - cluster.clock_elapsed_ms
    if step <= 0:
        return cluster
    return replace(cluster, clock_ms=cluster.clock_ms + min(step, MAX_STEP_MS), clock_elapsed_ms=elapsed_ms)


def change_setting(txn: Txn, cmd: ChangeSetting) -> dict[str, int]:
    try:
        value = st.canonical(cmd.name, cmd.value, txn.cluster.feature_level)
    except ValueError as error:
        raise Refused(Code.INVALID, str(error)) from None
    old = txn.settings.get(cmd.name)
    version = old.version if old else 0
    if cmd.expected_version not in (-1, version):
        raise Refused(
            Code.CONFLICT,
            f"setting {cmd.name!r} is at version {version}, not {cmd.expected_version}; read it again",
        )
    if old is not None and old.value == value:
        return {"version": version}
    txn.settings.put(cmd.name, Setting(cmd.name, value, version + 1, cmd.by, txn.now_ms))
    txn.emit("SettingChanged", cmd.name, version=str(version + 1), by=cmd.by)
    return {"version": version + 1}


def unknown_setting(commands: Iterable[Command]) -> str:
    """Why this release can make nothing of a change of settings among some commands, or an empty text."""
    for effect in map(effect_of, commands):
        if isinstance(effect, ChangeSetting):
            try:
                st.decode(effect.name, effect.value)
            except ValueError as error:
                return str(error)
    return ""


def pause(txn: Txn, cmd: PauseCluster) -> bool:
    cluster = txn.cluster
    if cluster.paused != cmd.paused:
        txn.cluster = replace(cluster, paused=cmd.paused, pause_reason=cmd.reason if cmd.paused else "")
        txn.emit("ClusterPaused" if cmd.paused else "ClusterResumed", "cluster", reason=cmd.reason)
    return cmd.paused


def configure_voters(txn: Txn, cmd: ConfigureVoters) -> int:
    before = {v.node: v for v in txn.state.voters.voters}
    after = {v.node: v for v in cmd.voters}
    for node in sorted(before.keys() | after.keys()):
        old, new = before.get(node), after.get(node)
        if new is None:
            txn.emit("VoterRemoved", node)
        elif old is None or old.log_id not in ("", new.log_id):
            txn.emit("VoterAdded", node, raft=new.raft, log=new.log_id)
    txn.voters.put(VOTERS_KEY, Voters(txn.index, cmd.request, cmd.voters))
    return txn.index


def raise_feature_level(txn: Txn, cmd: RaiseFeatureLevel) -> int:
    cluster = txn.cluster
    if cmd.level < cluster.feature_level:
        raise Refused(
            Code.ILLEGAL_TRANSITION,
            f"the feature level is {cluster.feature_level} and never goes down to {cmd.level}",
        )
    voters = {v.node for v in txn.state.voters.voters}
    for peer, row in txn.state.peers.items():
        if row.facts.feature_level < cmd.level and (row.status is not PeerStatus.DEAD or peer in voters):
            raise Refused(
                Code.CONFLICT,
                f"node {peer!r} (release {row.facts.release or 'unknown'}) supports feature level "
                f"{row.facts.feature_level}, not {cmd.level}; upgrade or remove it first",
            )
    if cmd.level != cluster.feature_level:
        txn.cluster = replace(cluster, feature_level=cmd.level)
        txn.emit("FeatureLevelRaised", "cluster", level=str(cmd.level))
    return cmd.level


def recall(txn: Txn, cmd: Once) -> Done | None:
    """The result that an earlier command left under this request id, or None."""
    row = txn.requests.get(cmd.request)
    if row is None:
        return None
    if row.kind != kind_of(cmd.command):
        raise Refused(Code.CONFLICT, f"request {cmd.request!r} was a {row.kind}; choose another id")
    return _results.decode(row.result)


def refuse_expired(txn: Txn, cmd: Once) -> None:
    if cmd.expires_at_ms <= txn.now_ms:
        raise Refused(
            Code.EXPIRED,
            f"request {cmd.request!r} expired at {cmd.expires_at_ms} ms of the cluster clock, which is {txn.now_ms}; "
            "look whether it took effect, then send it under a new id",
        )
    if len(txn.requests) >= txn.state.limits.requests:
        raise Refused(Code.LIMIT, f"{txn.state.limits.requests} request ids are remembered; try again later")


def remember(txn: Txn, cmd: Once, result: Done) -> None:
    row = Request(cmd.request, cmd.expires_at_ms, msgspec.msgpack.encode(result), kind_of(cmd.command))
    txn.requests.put(cmd.request, row)


def forget_request(txn: Txn, row: Request) -> None:
    txn.requests.delete(row.request)
