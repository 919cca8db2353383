"""Files: which are known, what each node holds, which copies are missing, and an order to look at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer
from rich.console import RenderableType
from typer import Argument, Option

from ringrift_cluster.api.artifacts import ArtifactList
from ringrift_cluster.api.sync import ManifestList, NodeFiles, SyncStatus
from ringrift_cluster.cli.call import Call, asks
from ringrift_cluster.cli.cluster import said
from ringrift_cluster.cli.options import Limit, Reason
from ringrift_cluster.cli.output import short, size, table

app = typer.Typer(no_args_is_help=True, help="Files: where they are, and missing copies.")

After = Annotated[str, Option(help="Where the answer before said to go on.")]


@app.command("list")
@asks
def list_(
    call: Call,
    kind: Annotated[str, Option(help="Only files of this kind (games, model, ...).")] = "",
    config: Annotated[str, Option(help="Only files of this game config.")] = "",
    node: Annotated[str, Option(help="Only files that this node holds.")] = "",
    limit: Limit = 100,
    after: After = "",
) -> None:
    """Known files, newest first, and who holds them."""
    with call.client() as client:
        call.emit(client.artifacts(kind=kind, config=config, node_id=node, limit=limit, after=after), _files)


def _files(value: ArtifactList) -> Iterable[RenderableType]:
    yield table(
        ["digest", "kind", "config", "size ", "holders", "doubted"],
        (
            [row.digest, row.kind, row.config, size(row.size_bytes), ", ".join(row.holders), ", ".join(row.doubted)]
            for row in value.artifacts
        ),
    )
    yield f"{value.total} files are known" + _more(value.next)


def _more(after: str | int) -> str:
    return f"; go on with --after {after}" if after else ""


@app.command()
@asks
def manifest(
    call: Call,
    node: Annotated[str, Argument(help="The files of this node; all nodes in short when left out.")] = "",
    limit: Limit = 100,
    after: After = "",
) -> None:
    """What each node holds by kind and config, or the files of one."""
    with call.client() as client:
        if node:
            call.emit(client.node_files(node, limit=limit, after=after), _of_node)
        else:
            call.emit(client.manifest(limit=limit, after=after), _nodes)


def _nodes(value: ManifestList) -> Iterable[RenderableType]:
    yield table(
        ["node", "status", "files ", "size ", "quota ", "doubted ", "what"],
        (
            [
                row.node_id,
                row.status,
                row.files,
                size(row.size_bytes),
                size(row.quota_bytes) if row.quota_bytes else "",
                row.doubted or "",
                ", ".join(f"{share.files} {share.kind} {share.config}".strip() for share in row.shares),
            ]
            for row in value.nodes
        ),
    )
    yield f"{value.total_files} files are known" + _more(value.next)


def _of_node(value: NodeFiles) -> Iterable[RenderableType]:
    yield table(
        ["digest", "type", "board", "players ", "games ", "size ", "path", "note"],
        (
            [
                row.hash,
                row.type,
                row.board,
                row.players or "",
                row.game_count or "",
                size(row.size),
                row.path if row.path != row.hash else "",
                "doubted" if row.doubted else "",
            ]
            for row in value.files
        ),
    )
    held = value.manifest
    yield f"{held.node_id} holds {held.files} files, {size(held.size_bytes)}" + _more(value.next)


@app.command()
@asks
def status(
    call: Call,
    after: Annotated[int, Option(help="Where the answer before said to go on.", min=0)] = 0,
) -> None:
    """Which copies are missing where, what is lost or doubted, and what the asked node does about it."""
    with call.client() as client:
        call.emit(client.sync_status(after=after), _status)


def _status(value: SyncStatus) -> Iterable[RenderableType]:
    yield f"{value.state}: {len(value.missing)} copies are missing, {size(value.missing_bytes)}" + _more(value.next)
    if value.missing:
        yield table(
            ["digest", "kind", "size ", "to", "via", "from"],
            (
                [short(row.digest), row.kind, size(row.size_bytes), row.target, row.via, ", ".join(row.sources)]
                for row in value.missing
            ),
        )
    for digest in value.lost:
        yield f"lost: {digest} is on no node that is there"
    for row in value.doubted:
        yield f"doubted: {row.digest} of {', '.join(row.holders)}"
    rooms = (
        f"{r.node_id} {size(r.held_bytes)}/{size(r.quota_bytes) if r.quota_bytes else '-'}" for r in value.storage_nodes
    )
    yield f"storage: {', '.join([*rooms, *value.stores]) or 'no node'}"
    own = value.node
    if own is not None:
        fetching = ", ".join(f"{short(one.digest)} {size(one.received_bytes)}" for one in own.fetching)
        yield (
            f"{value.node_id}: {own.files} files, {size(own.used_bytes)}; {own.waiting} copies to make, "
            f"fetching {fetching or 'nothing'}, {own.copied} copied, {own.sent} sent, {own.evicted} evicted"
        )
        if own.last_error:
            yield f"{value.node_id} said last: {own.last_error}"


@app.command()
@asks
def sync(call: Call, reason: Reason = "") -> None:
    """Have every node look at its files now, and copy what is missing."""
    with call.client() as client:
        call.emit(client.sync(reason=reason), said("every node looks at its files now"))
