"""Files by their sha256: which are known, who holds them, and their bytes."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated

from msgspec import Meta, Struct
from starlette.responses import FileResponse

from executors.blobs import TooLarge, WrongDigest
from ringrift_cluster.api import examples
from ringrift_cluster.api.endpoint import Call, Disconnected, Reply, Routes, reply
from ringrift_cluster.api.locks import ANYBODY
from ringrift_cluster.api.problems import Problem
from ringrift_cluster.api.views import Cursor, View, look, scan
from ringrift_cluster.api.writes import carry_out
from ringrift_cluster.ranges import admit_range
from ringrift_cluster.replica import on_behalf
from statemachine import queries
from statemachine.commands import RegisterArtifact
from statemachine.errors import Code
from statemachine.rows import Artifact
from statemachine.state import State
from statemachine.values import Scope

route = Routes("artifacts", "Files named by their content.")

_DIGEST = re.compile(r"[0-9a-f]{64}")
#: bytes gathered before a thread writes them
WRITE_BYTES = 1024 * 1024


class ArtifactFilter(Cursor, frozen=True, kw_only=True):
    kind: Annotated[str, Meta(max_length=128, description="Only files of this kind (games, model, ...).")] = ""
    config: Annotated[str, Meta(max_length=64, description="Only files of this game config.")] = ""
    peer: Annotated[str, Meta(max_length=128, description="Only files this node holds.")] = ""


class ArtifactList(Struct, frozen=True):
    artifacts: list[Artifact]
    total: int
    next: str


@route("GET", "/artifacts", "Files, newest first", scope=Scope.READ, answer=ArtifactList([examples.ARTIFACT], 1, ""))
async def listing(call: Call, query: ArtifactFilter) -> ArtifactList:
    def keep(row: Artifact) -> bool:
        return (
            query.kind in ("", row.kind)
            and query.config in ("", row.config)
            and (not query.peer or query.peer in row.holders)
        )

    def ask(state: State) -> ArtifactList:
        rows, after = scan(state.artifacts, query, keep)
        return ArtifactList(rows, len(state.artifacts), after)

    return await look(call, ask, query)


def checked(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise Problem(Code.INVALID, f"a digest is 64 lower-case hex digits, not {digest[:80]!r}")
    return digest


class ArtifactView(Struct, frozen=True):
    """A file and the live nodes that serve it: (peer, address)."""

    artifact: Artifact
    holders: tuple[tuple[str, str], ...]


@route(
    "GET",
    "/artifacts/{digest}/info",
    "What is known of a file",
    scope=Scope.READ,
    answer=ArtifactView(examples.ARTIFACT, (("gpu-1", "http://10.0.0.4:8770"),)),
    errors=(Code.NOT_FOUND, Code.INVALID),
)
async def info(call: Call, digest: str, query: View) -> ArtifactView:
    checked(digest)

    def ask(state: State) -> ArtifactView:
        row = state.artifacts.get(digest)
        if row is None:
            raise Problem(Code.NOT_FOUND, f"no file {digest} is known")
        return ArtifactView(row, queries.holders_of(state, row))

    return await look(call, ask, query)


@route(
    "GET",
    "/artifacts/{digest}",
    "The bytes of a file that this node holds",
    scope=Scope.READ,
    produces={"application/octet-stream": "The file; one `Range` and `If-Range` are honoured."},
    errors=(Code.NOT_FOUND, Code.INVALID, "range_not_satisfiable"),
    statuses=(200, 206),
)
async def fetch(call: Call, digest: str) -> FileResponse:
    """`HEAD` tells size and presence. The entity tag is the digest, so a part always fits the rest."""
    path = call.services.blobs.path(checked(digest))
    if path is not None:
        if not admit_range(call.scope["headers"], size := path.stat().st_size):
            raise Problem("range_not_satisfiable", f"the file {digest} has {size} bytes")
        return FileResponse(
            path,
            media_type="application/octet-stream",
            headers={"etag": f'"{digest}"', "cache-control": "public, max-age=31536000, immutable"},
        )
    row = await look(call, lambda state: queries.holders_of(state, state.artifacts.get(digest)))
    others = ", ".join(address for _, address in row) or "no live node holds it"
    raise Problem(Code.NOT_FOUND, f"this node does not hold {digest}; ask: {others}")


class Upload(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    kind: Annotated[str, Meta(min_length=1, max_length=128, description="What the file is: model, games, ...")] = "file"
    config: Annotated[str, Meta(max_length=64, description="Its game config, when it has one.")] = ""


class Stored(Struct, frozen=True):
    """`new` is false when the cluster knew the file already; this node is a holder now in any case."""

    digest: str
    size_bytes: int
    new: bool
    index: int


@route(
    "PUT",
    "/artifacts/{digest}",
    "Store a file on this node",
    scope=Scope.NODE,
    consumes="application/octet-stream",
    answer=Stored(examples.DIGEST, 81_920, True, 1204),
    errors=("digest_mismatch", "too_large", Code.INVALID),
    statuses=(201,),
)
async def store(call: Call, digest: str, query: Upload) -> Reply | Stored:
    """The bytes are verified against the digest before the file is known to anybody."""
    checked(digest)
    services = call.services
    if services.blobs.path(digest) is None:
        await _receive(call, digest)
    path = services.blobs.path(digest)
    if path is None:
        raise Problem("unexpected", f"the store took {digest} and does not show it")
    size = path.stat().st_size
    node = services.replica.status().node_id
    # This node holds the file now and says so itself, whoever brought it.
    call.caller = ANYBODY
    on_behalf.set("")
    outcome = await carry_out(
        call,
        RegisterArtifact(digest=digest, size_bytes=size, artifact_kind=query.kind, config=query.config, peer=node),
    )
    return reply(Stored(digest, size, bool(outcome.result), outcome.index), status=201)


async def _receive(call: Call, digest: str) -> None:
    """Write the body into the store by pieces. Raises Problem over the quota or when the digest is another."""
    quota = call.services.limits.upload_bytes
    announced = call.header(b"content-length")
    if announced.isdigit() and int(announced) > quota:
        raise Problem("too_large", f"the file is {announced} bytes; at most {quota} are taken")
    writer = await asyncio.to_thread(call.services.blobs.writer, quota)
    stored = False
    pending = bytearray()
    try:
        while True:
            message = await call.receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            pending += message.get("body", b"")
            more = message.get("more_body", False)
            if pending and (len(pending) >= WRITE_BYTES or not more):
                await asyncio.to_thread(writer.write, bytes(pending))
                pending.clear()
            if not more:
                break
        await asyncio.to_thread(writer.commit, digest)
        stored = True
    except TooLarge as error:
        raise Problem("too_large", str(error)) from None
    except WrongDigest as error:
        raise Problem("digest_mismatch", str(error)) from None
    finally:
        if not stored:
            await asyncio.to_thread(writer.abandon)
