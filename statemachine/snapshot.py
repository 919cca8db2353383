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
from typing import BinaryIO, cast

import msgspec
from msgspec import Struct

from statemachine.machine import Machine
from statemachine.rows import TABLES, Row

MAGIC = b"RRSNAP1\n"
FORMAT = 1
#: rows a frame; small enough that a writer thread hands the interpreter back often
SLICE = 256
#: nothing this format writes comes near this
MAX_FRAME_BYTES = 64 * 1024 * 1024

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
    return _header(_frame(src, None))


def read(src: BinaryIO) -> tuple[Header, Machine]:
    """Verify and load a snapshot into a new machine.

    Raises SnapshotDamaged with a sentence; the caller adds the file's name.
    """
    digest = hashlib.sha256()
    magic = src.read(len(MAGIC))
    digest.update(magic)
    if magic != MAGIC:
        raise SnapshotDamaged("the file does not start like a snapshot")
    head = _header(_frame(src, digest))
    sections: list[tuple[str, bytes]] = []
    total = 0
    while True:
        body = _frame(src, digest)
        try:
            name, raw = msgspec.msgpack.decode(body, type=tuple[str, msgspec.Raw])
        except msgspec.MsgspecError as error:
            raise SnapshotDamaged(f"a section cannot be read: {error}") from error
        if name == "end":
            total = msgspec.msgpack.decode(raw, type=int)
            break
        sections.append((name, bytes(raw)))
    if src.read(32) != digest.digest() or src.read(1):
        raise SnapshotDamaged("its checksum does not match its content")
    return head, _machine(head, sections, total)


def _machine(head: Header, sections: list[tuple[str, bytes]], total: int) -> Machine:
    tables: dict[str, list[tuple[str, Row]]] = {name: [] for name in TABLES}
    decoders = {
        name: msgspec.msgpack.Decoder(list[tuple[str, kind]])  # type: ignore[valid-type]
        for name, kind in TABLES.items()
    }
    count = 0
    for name, raw in sections:
        if name not in decoders:
            raise SnapshotDamaged(f"it has a table {name!r} that this release does not know; upgrade it")
        try:
            rows = decoders[name].decode(raw)
        except msgspec.MsgspecError as error:
            raise SnapshotDamaged(f"a row of table {name} cannot be read: {error}") from error
        tables[name] += cast("list[tuple[str, Row]]", rows)
        count += len(rows)
    if count != total:
        raise SnapshotDamaged(f"it should hold {total} rows and holds {count}")
    machine = Machine()
    machine.restore(tables)
    machine.index, machine.term, machine.chain = head.index, head.term, head.chain
    return machine


def _header(body: bytes) -> Header:
    try:
        head = msgspec.msgpack.decode(body, type=Header)
    except msgspec.MsgspecError as error:
        raise SnapshotDamaged(f"its header cannot be read: {error}") from error
    if head.format != FORMAT:
        raise SnapshotDamaged(f"it has format {head.format}, this release reads {FORMAT}; upgrade it")
    return head


def _frame(src: BinaryIO, digest: hashlib._Hash | None) -> bytes:
    prefix = src.read(4)
    size = int.from_bytes(prefix, "big")
    if len(prefix) < 4 or size > MAX_FRAME_BYTES:
        raise SnapshotDamaged("it ends in the middle of a frame" if len(prefix) < 4 else "a frame has an absurd length")
    body = src.read(size)
    if len(body) < size:
        raise SnapshotDamaged("it ends in the middle of a frame")
    if digest is not None:
        digest.update(prefix)
        digest.update(body)
    return body
