"""Peers: who is in the cluster, heard when, offering what.

    alive -> suspect -> dead       by the clock, on one timeout table
    suspect, dead -> alive         by a heartbeat of the present incarnation, or a join
    any -> dead                    by its own goodbye

Only the log moves a peer, so every replica agrees on who is alive, and nothing dies while there is no
leader to move the clock.
"""

from __future__ import annotations

from statemachine import artifacts, jobs, reputation, tokens
from statemachine.commands import (
    DrainGpu,
    DrainPeer,
    JoinPeer,
    LeavePeer,
    RecordHeartbeats,
    RemovePeer,
    VouchForPeer,
)
from statemachine.errors import Code, Refused
from statemachine.rows import STORE, Peer, PeerStatus
from statemachine.state import Txn
from statemachine.values import GpuDrain

#: drained GPUs of one peer; as many as it may have
MAX_GPU_DRAINS = 64


def join(txn: Txn, cmd: JoinPeer) -> dict[str, int]:
    """Register a node process, or a newer process of the same node."""
    if cmd.peer.startswith(STORE):
        raise Refused(Code.INVALID, f"{cmd.peer!r} is the name of an object store; give the node another --node-id")
    old = txn.peers.get(cmd.peer)
    now = txn.now_ms
    if old is None:
        if len(txn.peers) >= txn.state.limits.peers:
            raise Refused(Code.LIMIT, f"the cluster holds {len(txn.peers)} peers; remove dead ones first")
    else:
        _refuse_other_machine(old, cmd, now, txn.state.timing.heartbeat_ms)
        if cmd.incarnation < old.incarnation:
            raise Refused(
                Code.STALE_INCARNATION,
                f"peer {cmd.peer!r} already joined with incarnation {old.incarnation}, newer than {cmd.incarnation}; "
                "this process has been replaced and must stop",
            )
        if cmd.boot_id != old.boot_id:
            for job in txn.state.index.live_jobs_of(cmd.peer):
                jobs.lose(txn, txn.jobs.require(job), "the machine was started anew, no process survived")
    if old is None:
        row = Peer(
            peer=cmd.peer,
            incarnation=cmd.incarnation,
            boot_id=cmd.boot_id,
            role=cmd.role,
            address=cmd.address,
            facts=cmd.facts,
            status=PeerStatus.ALIVE,
            joined_at_ms=now,
            heard_at_ms=now,
        )
        txn.peers.put(cmd.peer, row)
    txn.peers.change(
        cmd.peer,
        incarnation=cmd.incarnation,
        boot_id=cmd.boot_id,
        role=cmd.role,
        address=cmd.address,
        facts=cmd.facts,
        status=PeerStatus.ALIVE,
        joined_at_ms=now if old is None or old.incarnation != cmd.incarnation else old.joined_at_ms,
        heard_at_ms=now,
        wall_joined_at_ms=cmd.at_ms,
        left="",
    )
    if old is None or old.incarnation != cmd.incarnation:
        txn.emit("PeerJoined", cmd.peer, role=cmd.role, address=cmd.address)
    return {"incarnation": cmd.incarnation, "clock_ms": now}


def _refuse_other_machine(old: Peer, cmd: JoinPeer, now: int, heartbeat_ms: int) -> None:
    fresh = old.status is PeerStatus.ALIVE and now - old.heard_at_ms <= 2 * heartbeat_ms
    if fresh and old.boot_id != cmd.boot_id and old.address != cmd.address:
        raise Refused(
            Code.CONFLICT,
            f"the name {cmd.peer!r} belongs to a live node at {old.address}; give this node another --node-id",
        )


def heartbeats(txn: Txn, cmd: RecordHeartbeats) -> dict[str, str]:
    """Take signs of life; answers with the peers that were not taken, and why."""
    refused: dict[str, str] = {}
    now = txn.now_ms
    for beat in cmd.beats:
        row = txn.peers.get(beat.peer)
        if row is None or row.left:
            refused[beat.peer] = Code.NOT_FOUND
            continue
        if row.incarnation != beat.incarnation:
            refused[beat.peer] = Code.STALE_INCARNATION
            continue
        if row.status is not PeerStatus.ALIVE:
            txn.emit("PeerRecovered", beat.peer, was=row.status)
            reputation.returned(txn, row)
        txn.peers.change(beat.peer, heard_at_ms=now, status=PeerStatus.ALIVE, facts=beat.facts or row.facts)
        for progress in beat.progress:
            jobs.progress(txn, progress, peer=beat.peer)
    return refused


def _present(txn: Txn, peer: str, incarnation: int, said: str) -> Peer:
    """The peer, when it is the process that is meant. Raises Refused."""
    row = txn.peers.require(peer)
    if row.incarnation != incarnation:
        text = f"peer {peer!r} is at incarnation {row.incarnation}, {said} {incarnation}"
        raise Refused(Code.STALE_INCARNATION, text)
    return row


def vouch(txn: Txn, cmd: VouchForPeer) -> bool:
    row = _present(txn, cmd.peer, cmd.incarnation, "the vouching names")
    if row.status is not PeerStatus.SUSPECT:
        return False
    txn.peers.change(cmd.peer, vouched_at_ms=txn.now_ms)
    return True


def leave(txn: Txn, cmd: LeavePeer) -> bool:
    """Take a goodbye: nothing waits for the leases of a node that has ended."""
    row = _present(txn, cmd.peer, cmd.incarnation, "the goodbye is of")
    if row.left:
        return True
    reason = cmd.reason or "it ended"
    for job in txn.state.index.live_jobs_of(row.peer):
        jobs.lose(txn, txn.jobs.require(job), f"its node left: {reason}")
    txn.peers.change(row.peer, status=PeerStatus.DEAD, left=reason)
    txn.emit("PeerLeft", row.peer, reason=reason)
    return True


def drain(txn: Txn, cmd: DrainPeer) -> bool:
    row = txn.peers.require(cmd.peer)
    deadline = txn.now_ms + cmd.deadline_ms if cmd.drain and cmd.deadline_ms else 0
    txn.peers.change(
        cmd.peer,
        draining=cmd.drain,
        drain_reason=cmd.reason if cmd.drain else "",
        drain_deadline_ms=deadline,
    )
    if row.draining != cmd.drain:
        txn.emit("PeerDrained" if cmd.drain else "PeerUndrained", cmd.peer, reason=cmd.reason)
    if not cmd.drain and row.held_until_ms:
        reputation.let_go(txn, row, "an operator put it back")
    return cmd.drain


def drain_gpu(txn: Txn, cmd: DrainGpu) -> bool:
    """Take one GPU out of placement or put it back. A drain that is there and lasts longer stays as it is."""
    row = txn.peers.require(cmd.peer)
    old = next((d for d in row.gpu_drains if d.gpu == cmd.gpu), None)
    others = tuple(d for d in row.gpu_drains if d.gpu != cmd.gpu)
    if not cmd.drain:
        if old is not None:
            txn.peers.change(cmd.peer, gpu_drains=others)
            txn.emit("GpuUndrained", cmd.peer, gpu=cmd.gpu, reason=cmd.reason)
        return False
    if old is None and cmd.gpu not in {gpu.uuid for gpu in row.facts.gpus}:
        known = ", ".join(gpu.uuid for gpu in row.facts.gpus) or "none"
        raise Refused(Code.NOT_FOUND, f"peer {cmd.peer!r} has no GPU {cmd.gpu!r}; its GPUs are {known}")
    if len(others) >= MAX_GPU_DRAINS:
        raise Refused(Code.LIMIT, f"peer {cmd.peer!r} has {len(others)} drained GPUs; lift some, or drain the peer")
    until = txn.now_ms + cmd.for_ms if cmd.for_ms else 0
    if old is not None and (not old.until_ms or 0 < until <= old.until_ms):
        return True
    txn.peers.change(cmd.peer, gpu_drains=(*others, GpuDrain(cmd.gpu, cmd.reason, until)))
    txn.emit("GpuDrained", cmd.peer, gpu=cmd.gpu, reason=cmd.reason)
    return True


def remove(txn: Txn, cmd: RemovePeer) -> bool:
    row = txn.peers.require(cmd.peer)
    if row.status is PeerStatus.ALIVE or not (row.status is PeerStatus.DEAD or row.draining):
        # A node that still runs would join again, undrained, with its next heartbeat.
        raise Refused(
            Code.ILLEGAL_TRANSITION,
            f"peer {cmd.peer!r} is {row.status}; drain it and end its process before it is removed",
        )
    if any(voter.node == cmd.peer for voter in txn.state.voters.voters):
        raise Refused(
            Code.ILLEGAL_TRANSITION, f"peer {cmd.peer!r} is a voter; run `ringrift-node voters remove {cmd.peer}` first"
        )
    tokens.end_of(txn, row.peer, f"node {row.peer} was removed")
    _forget(txn, row, cmd.reason or "removed by an operator")
    return True


def on_due(txn: Txn, row: Peer) -> None:
    """Move a peer whose time has come one step on."""
    timing = txn.state.timing
    now = txn.now_ms
    if row.drain_deadline_ms and row.drain_deadline_ms <= now:
        for job in txn.state.index.live_jobs_of(row.peer):
            held = txn.jobs.require(job)
            jobs.tell_to_stop(txn, held, "the node is being drained")
        txn.peers.change(row.peer, drain_deadline_ms=0)
        return
    over = [d for d in row.gpu_drains if 0 < d.until_ms <= now]
    if over:
        txn.peers.change(row.peer, gpu_drains=tuple(d for d in row.gpu_drains if d not in over))
        for drain in over:
            txn.emit("GpuUndrained", row.peer, gpu=drain.gpu, reason="its time is over")
        return
    if row.held_until_ms and row.held_until_ms <= now:
        reputation.let_go(txn, row, "its time is over")
        return
    if row.status is PeerStatus.ALIVE:
        txn.peers.change(row.peer, status=PeerStatus.SUSPECT)
        txn.emit("PeerSuspected", row.peer, silent_ms=str(now - row.heard_at_ms))
    elif row.status is PeerStatus.SUSPECT:
        txn.peers.change(row.peer, status=PeerStatus.DEAD)
        txn.emit("PeerDied", row.peer, silent_ms=str(now - row.heard_at_ms), limit=str(timing.dead_after_ms))
    else:
        _forget(txn, row, "dead for longer than the retention")


def _forget(txn: Txn, row: Peer, reason: str) -> None:
    for job in txn.state.index.live_jobs_of(row.peer):
        jobs.lose(txn, txn.jobs.require(job), f"its node was removed: {reason}")
    for held in txn.state.artifacts.values():
        if row.peer in held.holders:
            artifacts.remove(txn, held, row.peer)
    txn.peers.delete(row.peer)
    txn.emit("PeerRemoved", row.peer, reason=reason)
