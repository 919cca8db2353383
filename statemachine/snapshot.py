"""Snapshot files: a header, one section a table, a digest at the end.

    magic "RRSNAP1\\n"
    frame*      4-byte big-endian length, then msgpack
        1st     Header
        then    ["table", [[key, row], ...]]   up to SLICE rows a frame, tables in schema order
        last    ["end", number of rows]
    sha256 of everything before it (32 bytes)

A reader verifies the digest over the whole file before it believes a word of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, BinaryIO, TypeVar

import msgspec
from msgspec import Struct

from statemachine.errors import UNDECODABLE
from statemachine.machine import Machine
from statemachine.rows import TABLES, Row

MAGIC = b"RRSNAP1\n"
FORMAT = 1
#: rows a frame; small enough that a writer thread hands the interpreter back often
SLICE = 256
#: nothing this format writes comes near this
MAX_FRAME_BYTES = 64 * 1024 * 1024

CHECKSUM_BYTES = 32

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
_end = msgspec.msgpack.Decoder(tuple[str, int])


class Frozen(Struct, frozen=True):
    """A consistent view: the tables copied shallowly, their frozen rows shared."""

    index: int
    term: int
    chain: bytes
    feature_level: int
    tables: dict[str, dict[str, Row]]


def freeze(machine: Machine) -> Frozen:
    """Copy the tables' dictionaries (not the rows); for the thread that applies entries."""
    tables = {name: dict(rows) for name, rows in machine.state.tables.items()}
    return Frozen(machine.index, machine.term, machine.chain, machine.state.cluster.feature_level, tables)


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
        items = list(rows.items())
        total += len(items)
        for at in range(0, len(items), SLICE):
            frame((name, items[at : at + SLICE]))
    frame(("end", total))
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
    """Verify and load a snapshot into a new machine.

    Raises SnapshotDamaged with a sentence; the caller adds the file's name.
    """
    data = src.read()
    if data[: len(MAGIC)] != MAGIC:
        raise SnapshotDamaged("the file does not start like a snapshot")
    body, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if hashlib.sha256(body).digest() != checksum:
        raise SnapshotDamaged("its checksum does not match its content: it was cut short or changed")
    frames = list(_frames(body))
    if len(frames) < 2:
        raise SnapshotDamaged("it has no end")
    head = _header(frames[0])
    return head, _load(head, frames[1:-1], frames[-1])


def _frames(body: bytes) -> Iterator[bytes]:
    at = len(MAGIC)
    while at < len(body):
        size = int.from_bytes(body[at : at + 4], "big")
        at += 4 + size
        if at > len(body):
            raise SnapshotDamaged("it ends in the middle of a frame")
        yield body[at - size : at]


def _load(head: Header, sections: list[bytes], end: bytes) -> Machine:
    tables: dict[str, list[tuple[str, Row]]] = {name: [] for name in TABLES}
    decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {
        name: msgspec.msgpack.Decoder(list[tuple[str, kind]])  # type: ignore[valid-type]
        for name, kind in TABLES.items()
    }
    for section in sections:
        name, raw = _decode(_section, section, "a section")
        if name not in decoders:
            raise SnapshotDamaged(f"it has a table {name!r} that this release does not know; upgrade it")
        tables[name] += _decode(decoders[name], raw, f"a row of table {name}")
    count = sum(len(rows) for rows in tables.values())
    if _decode(_end, end, "its end") != ("end", count):
        raise SnapshotDamaged(f"it holds {count} rows and says otherwise")
    machine = Machine()
    machine.state.load(tables)
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
