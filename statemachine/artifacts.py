"""Artifacts: files named by their content, and who holds a verified copy."""

from __future__ import annotations

from msgspec.structs import replace

from statemachine import copies, models
from statemachine.commands import (
    AddHolder,
    DoubtHolder,
    DropHolder,
    ForgetArtifact,
    RegisterArtifact,
    ReleaseHolder,
    RequestSync,
)
from statemachine.errors import Code, Refused
from statemachine.rows import Artifact, Job, Work
from statemachine.state import Txn
from statemachine.values import Output


def made(txn: Txn, output: Output, work: Work, job: Job) -> None:
    """Register a file that a counted attempt made, held by the node that made it."""
    model = next((i.digest for i in work.spec.inputs if i.name in ("model", "init")), "")
    old = txn.artifacts.get(output.digest)
    if old is not None:
        # The same bytes made twice are one file.
        _add(txn, old, job.peer)
    else:
        txn.artifacts.put(
            output.digest,
            Artifact(
                digest=output.digest,
                size_bytes=output.size_bytes,
                kind=output.kind,
                config=work.spec.config,
                seq=txn.next_seq(),
                created_at_ms=txn.now_ms,
                counts=output.counts,
                holders=(job.peer,),
                job=job.job,
                fence=job.fence,
                name=output.path,
                parent=model,
            ),
        )
    if output.kind == "model":
        spec = work.spec
        initial = spec.work_type == "initial"
        models.register(txn, output.digest, spec.config, work=spec.work, initial=initial, parent=model)


def register(txn: Txn, cmd: RegisterArtifact) -> bool:
    """Make a file known that no job of this cluster made; one of kind `model` is a candidate of its config."""
    old = txn.artifacts.get(cmd.digest)
    if cmd.artifact_kind == "model":
        config = cmd.config or (old.config if old is not None else "")
        if not config:
            raise Refused(Code.INVALID, f"model {cmd.digest[:12]} names no config; say which one it plays")
        if old is not None and old.kind != "model":
            raise Refused(Code.CONFLICT, f"artifact {cmd.digest} is known as {old.kind}, it cannot become a model")
        models.register(txn, cmd.digest, config)
    if old is not None:
        if old.size_bytes != cmd.size_bytes:
            raise Refused(Code.CONFLICT, f"artifact {cmd.digest} is {old.size_bytes} bytes long, not {cmd.size_bytes}")
        _add(txn, old, cmd.peer)
        return False
    txn.artifacts.put(
        cmd.digest,
        Artifact(
            digest=cmd.digest,
            size_bytes=cmd.size_bytes,
            kind=cmd.artifact_kind,
            config=cmd.config,
            seq=txn.next_seq(),
            created_at_ms=txn.now_ms,
            counts=cmd.counts,
            holders=(cmd.peer,),
        ),
    )
    txn.emit("ArtifactRegistered", cmd.digest, type=cmd.artifact_kind, peer=cmd.peer)
    return True


def hold(txn: Txn, cmd: AddHolder) -> bool:
    return _add(txn, txn.artifacts.require(cmd.digest), cmd.peer)


def drop(txn: Txn, cmd: DropHolder) -> bool:
    row = txn.artifacts.require(cmd.digest)
    if cmd.peer not in row.holders:
        return False
    remove(txn, row, cmd.peer)
    return True


def release(txn: Txn, cmd: ReleaseHolder) -> bool:
    """Withdraw a holding so that its copy can be deleted; refused when it is the last one, or one that is wanted."""
    row = txn.artifacts.require(cmd.digest)
    if cmd.peer not in row.holders:
        return False
    state = txn.state
    left = [p for p in copies.good_holders(state, row) if p.peer != cmd.peer]
    stored = len(copies.stores_with(row))
    if not left and not stored:
        raise Refused(Code.CONFLICT, f"{cmd.peer} has the last good copy of {cmd.digest} on a live node; it is kept")
    storage = copies.storage_nodes(state)
    durable, wanted = stored + sum(p.peer in storage for p in left), state.spreading.wanted(row.kind)
    if cmd.peer in storage and durable < wanted:
        raise Refused(
            Code.CONFLICT,
            f"{cmd.digest} would be on {durable} storage nodes without {cmd.peer}, {wanted} are wanted; it is kept",
        )
    remove(txn, row, cmd.peer)
    return True


def doubt(txn: Txn, cmd: DoubtHolder) -> bool:
    """Let a holding not count until its holder has read it again; false when it is doubted already, or gone."""
    row = txn.artifacts.require(cmd.digest)
    if cmd.holder not in row.holders or cmd.holder in row.doubted:
        return False
    txn.artifacts.change(cmd.digest, doubted=tuple(sorted((*row.doubted, cmd.holder))))
    txn.emit("ArtifactDoubted", cmd.digest, holder=cmd.holder, by=cmd.by)
    return True


def request_sync(txn: Txn, cmd: RequestSync) -> int:
    txn.cluster = replace(txn.cluster, syncs=txn.cluster.syncs + 1)
    txn.emit("SyncRequested", "cluster", reason=cmd.reason)
    return txn.cluster.syncs


def forget(txn: Txn, cmd: ForgetArtifact) -> bool:
    """Drop the row of a file; refused while a model or an open item needs it."""
    row = txn.artifacts.get(cmd.digest)
    if row is None:
        return False
    model = txn.models.get(cmd.digest)
    if model is not None and model not in models.spare(txn.state, model.config):
        raise Refused(Code.CONFLICT, f"artifact {cmd.digest} is a model and {model.status}; it is kept")
    readers = txn.state.index.readers.get(cmd.digest, 0)
    if readers:
        raise Refused(Code.CONFLICT, f"artifact {cmd.digest} is an input of {readers} open work items")
    txn.artifacts.delete(cmd.digest)
    txn.emit("ArtifactForgotten", cmd.digest, reason=cmd.reason)
    return True


def remove(txn: Txn, row: Artifact, peer: str) -> None:
    """Take a peer from the holders of a file."""
    txn.artifacts.change(
        row.digest,
        holders=tuple(h for h in row.holders if h != peer),
        doubted=tuple(h for h in row.doubted if h != peer),
    )


def _add(txn: Txn, row: Artifact, peer: str) -> bool:
    """Count a copy that its peer has just verified; false when nothing is new."""
    if peer in row.holders and peer not in row.doubted:
        return False
    txn.artifacts.change(
        row.digest,
        holders=tuple(sorted({*row.holders, peer})),
        doubted=tuple(h for h in row.doubted if h != peer),
    )
    return True
