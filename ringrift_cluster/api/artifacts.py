"""Files by their sha256: which are known, who holds them, and their bytes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct
from starlette.responses import FileResponse
from starlette.types import Message, Receive, Send
from starlette.types import Scope as Scope_

from executors.blobs import TooLarge, WrongDigest
from executors.download import SPREAD
from executors.gate import Gate
from executors.uploads import WRITE_BYTES, InUse, NoRoom, OutOfStep
from ringrift_cluster.api import examples
from ringrift_cluster.api.endpoint import Call, Disconnected, Reply, Routes, reply
from ringrift_cluster.api.locks import ANYBODY
from ringrift_cluster.api.problems import Problem
from ringrift_cluster.api.services import Services
from ringrift_cluster.api.views import Cursor, View, look, scan
from ringrift_cluster.api.writes import carry_out
from ringrift_cluster.ranges import admit_range
from ringrift_cluster.replica import on_behalf
from statemachine import queries
from statemachine.commands import AddHolder, RegisterArtifact
from statemachine.errors import Code
from statemachine.rows import Artifact
from statemachine.settings import Artifacts
from statemachine.state import State
from statemachine.values import Scope

route = Routes("artifacts", "Files named by their content.")

_DIGEST = re.compile(r"[0-9a-f]{64}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_NOTHING_MORE = re.compile(r"bytes \*/([0-9]{1,18})")


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
    errors=(Code.NOT_FOUND, Code.INVALID, "range_not_satisfiable", "saturated"),
    statuses=(200, 206),
)
async def fetch(call: Call, digest: str) -> FileResponse:
    """`HEAD` tells size and presence. The entity tag is the digest, so a part always fits the rest.

    A node that sends enough answers 503 with `Retry-After`. Who sends the header `Ringrift-Spread: 1` is refused
    as well while others hold the file and this node has sent its share of the copies. A node with access to an object
    store that has the file gets it from there, and answers 503 until it has it.
    """
    services = call.services
    path = await asyncio.to_thread(services.blobs.use, checked(digest))
    if path is None:
        item = await look(call, lambda state: queries.resolve(state, "", digest))
        here = services.replica.status().node_id
        if any(name == here for name, _ in item.gates) and services.restore(digest):
            raise Problem("saturated", f"{digest} is fetched from the object store; come back in a moment")
        known = ", ".join(address for _, address in item.holders or item.gates) or "no live node holds it"
        raise Problem(Code.NOT_FOUND, f"this node does not hold {digest}; ask: {known}")
    size = path.stat().st_size
    if not admit_range(call.scope["headers"], size):
        raise Problem("range_not_satisfiable", f"the file {digest} has {size} bytes")
    headers = {"etag": f'"{digest}"', "cache-control": "public, max-age=31536000, immutable"}
    if call.scope["method"] == "HEAD":
        return FileResponse(path, media_type="application/octet-stream", headers=headers)
    rules, others = _holders_beside(services, digest)
    if not services.gate.admits(digest, size, len(others), rules, spread=bool(call.header(SPREAD.encode()))):
        raise Problem("saturated", f"this node sends enough; come back, or ask: {', '.join(others) or 'nobody else'}")
    return Sent(path, digest, services.gate, headers)


def _holders_beside(services: Services, digest: str) -> tuple[Artifacts, list[str]]:
    """The rules of spreading, and the addresses of the live nodes besides this one that hold a file."""
    state = services.replica.live_state()
    if state is None:
        return Artifacts(), []
    here = services.replica.status().node_id
    holders = queries.holders_of(state, state.artifacts.get(digest))
    return state.spreading, [address for name, address in holders if name != here]


class Sent(FileResponse):
    """A file on its way out, counted by the gate."""

    chunk_size = 1024 * 1024

    def __init__(self, path: Path, digest: str, gate: Gate, headers: dict[str, str]) -> None:
        super().__init__(path, media_type="application/octet-stream", headers=headers)
        self._digest = digest
        self._gate = gate

    async def __call__(self, scope: Scope_, receive: Receive, send: Send) -> None:
        with self._gate.transfer(self._digest) as one:

            async def counted(message: Message) -> None:
                await self._gate.pace.take(len(message.get("body", b"")))
                await send(message)
                one.sent_bytes += len(message.get("body", b""))

            await super().__call__(scope, receive, counted)


class Upload(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    kind: Annotated[
        str, Meta(max_length=128, description="What a new file is: model, games, ... A copy of a known one needs none.")
    ] = ""
    config: Annotated[str, Meta(max_length=64, description="Its game config, when it has one.")] = ""


class Stored(Struct, frozen=True):
    """`new` is false when the cluster knew the file already; this node is a holder now in any case."""

    digest: str
    size_bytes: int
    new: bool
    index: int


class Received(Struct, frozen=True):
    """How much of a file has come; `stored` once it is whole and verified."""

    received_bytes: int
    stored: bool


@route(
    "GET",
    "/artifacts/{digest}/upload",
    "How much of an upload has arrived",
    scope=Scope.NODE,
    answer=Received(40_960, False),
    errors=(Code.INVALID,),
)
async def uploaded(call: Call, digest: str) -> Received:
    """An upload goes on from there: `PUT` the rest with `Content-Range`."""
    services = call.services
    if services.blobs.path(checked(digest)) is not None:
        return Received(0, True)
    return Received(await asyncio.to_thread(services.uploads.received, digest, _sender(call)), False)


@route(
    "PUT",
    "/artifacts/{digest}",
    "Store a file on this node",
    scope=Scope.NODE,
    consumes="application/octet-stream",
    answer=Stored(examples.DIGEST, 81_920, True, 1204),
    errors=("digest_mismatch", "too_large", "no_room", "busy", "out_of_step", Code.INVALID),
    statuses=(201, 202),
)
async def store(call: Call, digest: str, query: Upload) -> Reply | Stored | Received:
    """The bytes are verified against the digest before the file is known to anybody.

    A file may come in pieces with `Content-Range: bytes FIRST-LAST/SIZE`, in order: 202 says how much is here.
    When all of it is, `Content-Range: bytes */SIZE` without a body asks for it to be verified.
    Each caller's pieces are a file of their own.
    """
    checked(digest)
    services = call.services
    if services.blobs.path(digest) is None:
        if _piece(call) and not query.kind and not _is_known(services, digest):
            # Its sender may be ahead of this node; what it is must not be guessed.
            raise Problem(Code.NOT_FOUND, f"no file {digest} is known here yet; come back, or say its kind")
        held = await _receive(call, digest)
        if held is not None:
            return held
    path = services.blobs.path(digest)
    if path is None:
        raise Problem("unexpected", f"the store took {digest} and does not show it")
    size = path.stat().st_size
    node = services.replica.status().node_id
    # This node holds the file now and says so itself, whoever brought it.
    call.caller = ANYBODY
    on_behalf.set("")
    if _is_known(services, digest) and not query.kind:
        command: AddHolder | RegisterArtifact = AddHolder(digest, node)
    else:
        kind = query.kind or "file"
        command = RegisterArtifact(digest=digest, size_bytes=size, artifact_kind=kind, config=query.config, peer=node)
    outcome = await carry_out(call, command)
    new = isinstance(command, RegisterArtifact) and bool(outcome.result)
    return reply(Stored(digest, size, new, outcome.index), status=201)


def _is_known(services: Services, digest: str) -> bool:
    state = services.replica.live_state()
    return state is not None and digest in state.artifacts


async def _receive(call: Call, digest: str) -> Reply | None:
    """Take the body into the store; an answer when it was a piece and more has to come. Raises Problem."""
    piece = _piece(call)
    quota = call.services.limits.upload_bytes
    announced = call.header(b"content-length")
    total = piece[1] if piece else int(announced) if announced.isdigit() else 0
    if total > quota:
        raise Problem("too_large", f"the file is {total} bytes; at most {quota} are taken")
    uploads = call.services.uploads
    try:
        uploads.check_room(0 if piece else total)
        if piece is None:
            await _receive_whole(call, digest, quota)
            return None
        received, stored = await uploads.take(digest, _sender(call), piece[0], piece[1], _body(call))
    except NoRoom as error:
        raise Problem("no_room", str(error)) from None
    except InUse as error:
        raise Problem("busy", str(error)) from None
    except OutOfStep as error:
        raise Problem("out_of_step", str(error)) from None
    except TooLarge as error:
        raise Problem("too_large", str(error)) from None
    except WrongDigest as error:
        raise Problem("digest_mismatch", str(error)) from None
    return None if stored else reply(Received(received, False), status=202)


def _piece(call: Call) -> tuple[int, int] | None:
    """(where the piece begins, size of the whole file), when the body is a piece."""
    given = call.header(b"content-range")
    if not given:
        return None
    if whole := _NOTHING_MORE.fullmatch(given):
        return int(whole[1]), int(whole[1])
    match = _CONTENT_RANGE.fullmatch(given)
    first, last, size = (int(part) for part in match.groups()) if match else (1, 0, 0)
    if not first <= last < size or str(last - first + 1) != call.header(b"content-length"):
        raise Problem(Code.INVALID, "Content-Range is bytes FIRST-LAST/SIZE, or bytes */SIZE, and fits Content-Length")
    return first, size


def _sender(call: Call) -> str:
    return call.caller.peer or call.caller.name


async def _body(call: Call) -> AsyncIterator[bytes]:
    while True:
        message = await call.receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


async def _receive_whole(call: Call, digest: str, quota: int) -> None:
    """Write the body into the store by pieces. Raises TooLarge and WrongDigest."""
    writer = await asyncio.to_thread(call.services.blobs.writer, quota)
    stored = False
    pending = bytearray()
    try:
        async for data in _body(call):
            pending += data
            if len(pending) >= WRITE_BYTES:
                await asyncio.to_thread(writer.write, bytes(pending))
                pending.clear()
        await asyncio.to_thread(writer.write, bytes(pending))
        await asyncio.to_thread(writer.commit, digest)
        stored = True
    finally:
        if not stored:
            await asyncio.to_thread(writer.abandon)
