"""Artifacts: files named by their content, and who holds a verified copy."""

from __future__ import annotations

from statemachine import models
from statemachine.commands import AddHolder, DropHolder, ForgetArtifact, RegisterArtifact
from statemachine.errors import Code, Refused
from statemachine.rows import Artifact, Job, ModelStatus, Work
from statemachine.state import Txn
from statemachine.values import Output


def made(txn: Txn, output: Output, work: Work, job: Job) -> None:
    """Register a file that a counted attempt made, held by the node that made it."""
    model = next((i.digest for i in work.spec.inputs if i.name in ("model", "init")), "")
    old = txn.artifacts.get(output.digest)
    if old is not None:
        # The same bytes made twice are one file.
        txn.artifacts.change(output.digest, holders=_with(old.holders, job.peer))
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
        models.register(txn, output.digest, work, parent=model)


def register(txn: Txn, cmd: RegisterArtifact) -> bool:
    old = txn.artifacts.get(cmd.digest)
    if old is not None:
        if old.size_bytes != cmd.size_bytes:
            raise Refused(Code.CONFLICT, f"artifact {cmd.digest} is {old.size_bytes} bytes long, not {cmd.size_bytes}")
        txn.artifacts.change(cmd.digest, holders=_with(old.holders, cmd.peer))
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
    row = txn.artifacts.require(cmd.digest)
    if cmd.peer in row.holders:
        return False
    txn.artifacts.change(cmd.digest, holders=_with(row.holders, cmd.peer))
    return True


def drop(txn: Txn, cmd: DropHolder) -> bool:
    row = txn.artifacts.require(cmd.digest)
    if cmd.peer not in row.holders:
        return False
    txn.artifacts.change(cmd.digest, holders=tuple(h for h in row.holders if h != cmd.peer))
    return True


def forget(txn: Txn, cmd: ForgetArtifact) -> bool:
    """Drop the row of a file; refused while a model or an open item needs it."""
    row = txn.artifacts.get(cmd.digest)
    if row is None:
        return False
    model = txn.models.get(cmd.digest)
    if model is not None and model.status is not ModelStatus.REJECTED:
        raise Refused(Code.CONFLICT, f"artifact {cmd.digest} is a model and {model.status}; it is kept")
    readers = txn.state.index.readers.get(cmd.digest, 0)
    if readers:
        raise Refused(Code.CONFLICT, f"artifact {cmd.digest} is an input of {readers} open work items")
    txn.artifacts.delete(cmd.digest)
    txn.emit("ArtifactForgotten", cmd.digest, reason=cmd.reason)
    return True


def _with(holders: tuple[str, ...], peer: str) -> tuple[str, ...]:
    return tuple(sorted({*holders, peer}))
