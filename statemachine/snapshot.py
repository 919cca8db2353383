"""Snapshot files: a header, one section a table, a digest at the end.

    magic "RRSNAP1\\n"
    frame*      4-byte big-endian length, then msgpack
        1st     Header
        then    ["table", [row, ...]]   up to SLICE rows a frame, tables in schema order
        last    ["end", number of rows]
    sha256 of everything before it (32 bytes)

A reader verifies the digest over the whole file before it believes a word of it.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any, BinaryIO, TypeVar

import msgspec
from msgspec import Struct

from statemachine.errors import UNDECODABLE
from statemachine.image import Image
from statemachine.machine import Machine
from statemachine.pool import Pool
from statemachine.rows import TABLES, Row

MAGIC = b"RRSNAP1\n"
FORMAT = 1
#: rows a frame; small enough that a writer thread hands the interpreter back often
SLICE = 256
#: nothing this format writes comes near this
MAX_FRAME_BYTES = 64 * 1024 * 1024

CHECKSUM_BYTES = 32
_CHUNK_BYTES = 1 << 20
#: name of the last section; no table is called so
_END = "end"

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()


class SnapshotDamaged(Exception):  # noqa: N818 - names a state of the file
    """The file is not what was written; the text says where it stops making sense."""


class Header(Struct, frozen=True):
    """What the file holds. `chain` is the running digest at `index`."""

    format: int
    cluster_id: str
    index: int
    term: int
    voters: tuple[str, ...]
    feature_level: int
    chain: bytes
    #: rows by table, for people
    rows: dict[str, int] = {}


_head = msgspec.msgpack.Decoder(Header)
_section = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])
_number = msgspec.msgpack.Decoder(int)


class Frozen(Struct, frozen=True):
    """A consistent view: each table's rows in their order. The rows are frozen, so they are shared."""

    index: int
    term: int
    chain: bytes
    feature_level: int
    tables: dict[str, Collection[Row]]
    #: the image that the view is of and that stands still for it; None when the view has lists of its own
    image: Image | None

    def release(self) -> None:
        """It is written: its image may move on. For the thread that applies entries."""
        if self.image is not None:
            self.image.release()


def freeze(machine: Machine) -> Frozen:
    """View the state as it is now; for the thread that applies entries. `release` it once it is written.

    One view at a time is of the state's image of the long tables and costs nothing; another lists all rows.
    """
    state = machine.state
    held = state.image.hold(state.tables)
    shown = held or {}
    tables: dict[str, Collection[Row]] = {
        name: shown[name].values() if name in shown else list(rows.values()) for name, rows in state.tables.items()
    }
    image = state.image if held is not None else None
    return Frozen(machine.index, machine.term, machine.chain, state.cluster.feature_level, tables, image)


def header(frozen: Frozen, cluster_id: str, voters: tuple[str, ...], index: int = 0, term: int = 0) -> Header:
    """The header for a frozen view; `index`, `term` may name a later raft position without rows of its own."""
    return Header(
        format=FORMAT,
        cluster_id=cluster_id,
        index=index or frozen.index,
        term=term or frozen.term,
        voters=voters,
        feature_level=frozen.feature_level,
        chain=frozen.chain,
        rows={name: len(rows) for name, rows in frozen.tables.items()},
    )


def write(frozen: Frozen, head: Header, out: BinaryIO) -> bytes:
    """Stream the snapshot; returns its sha256. The caller makes it durable."""
    digest = hashlib.sha256()

    def put(data: bytes) -> None:
        digest.update(data)
        out.write(data)

    def frame(value: object) -> None:
        body = _encoder.encode(value)
        put(len(body).to_bytes(4, "big") + body)

    put(MAGIC)
    frame(head)
    total = 0
    for name, rows in frozen.tables.items():
        total += len(rows)
        each = iter(rows)
        while part := list(islice(each, SLICE)):
            frame((name, part))
    frame((_END, total))
    checksum = digest.digest()
    out.write(checksum)
    return checksum


def read_header(src: BinaryIO) -> Header:
    """Read the header alone, unverified; for listings and offers."""
    if src.read(len(MAGIC)) != MAGIC:
        raise SnapshotDamaged("the file does not start like a snapshot")
    size = int.from_bytes(src.read(4), "big")
    if size > MAX_FRAME_BYTES:
        raise SnapshotDamaged("a frame has an absurd length")
    return _header(src.read(size))


def read(src: BinaryIO) -> tuple[Header, Machine]:
    """Verify and load a snapshot into a new machine; `src` can seek, and is read twice.

    Raises SnapshotDamaged with a sentence; the caller adds the file's name.
    """
    end = _verified(src)
    src.seek(len(MAGIC))
    frames = _frames(src, end)
    head = _header(next(frames, b""))
    collects = gc.isenabled()
    # Nothing that is made here is garbage, and looking for some again and again takes longer than the loading.
    gc.disable()
    try:
        return head, _load(head, frames)
    finally:
        if collects:
            gc.enable()


def _verified(src: BinaryIO) -> int:
    """Where the checksum begins, after everything before it agreed with it."""
    if src.read(len(MAGIC)) != MAGIC:
        raise SnapshotDamaged("the file does not start like a snapshot")
    digest = hashlib.sha256(MAGIC)
    end, tail = len(MAGIC), b""
    while chunk := src.read(_CHUNK_BYTES):
        body = tail + chunk
        tail = body[-CHECKSUM_BYTES:]
        digest.update(body[:-CHECKSUM_BYTES])
        end += max(len(body) - CHECKSUM_BYTES, 0)
    if digest.digest() != tail:
        raise SnapshotDamaged("its checksum does not match its content: it was cut short or changed")
    return end


def _frames(src: BinaryIO, end: int) -> Iterator[bytes]:
    at = len(MAGIC)
    while at < end:
        size = int.from_bytes(src.read(4), "big")
        at += 4 + size
        if at > end:
            raise SnapshotDamaged("it ends in the middle of a frame")
        yield src.read(size)


def _load(head: Header, frames: Iterator[bytes]) -> Machine:
    tables: dict[str, list[Row]] = {name: [] for name in TABLES}
    decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {
        name: msgspec.msgpack.Decoder(list[kind])  # type: ignore[valid-type]
        for name, kind in TABLES.items()
    }
    pool = Pool()
    count = 0
    for frame in frames:
        name, raw = _decode(_section, frame, "a section")
        if name == _END:
            if _decode(_number, raw, "its end") != count or next(frames, None) is not None:
                raise SnapshotDamaged(f"it holds {count} rows and says otherwise")
            break
        if name not in decoders:
            raise SnapshotDamaged(f"it has a table {name!r} that this release does not know; upgrade it")
        rows = _decode(decoders[name], raw, f"a row of table {name}")
        count += len(rows)
        pool.share(name, rows)
        tables[name] += rows
    else:
        raise SnapshotDamaged("it has no end")
    machine = Machine()
    try:
        machine.state.load(tables)
    except ValueError as error:
        raise SnapshotDamaged(f"{error}; this release does not know it, upgrade it") from error
    machine.index, machine.term, machine.chain = head.index, head.term, head.chain
    return machine


def _header(body: bytes) -> Header:
    head = _decode(_head, body, "its header")
    if head.format != FORMAT:
        raise SnapshotDamaged(f"it has format {head.format}, this release reads {FORMAT}; upgrade it")
    return head


def _decode(decoder: msgspec.msgpack.Decoder[T], data: bytes | msgspec.Raw, what: str) -> T:
    try:
        return decoder.decode(data)
    except UNDECODABLE as error:
        raise SnapshotDamaged(f"{what} cannot be read: {error}") from error
