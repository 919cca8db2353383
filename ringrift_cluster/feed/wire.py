"""What followers and voters say to each other: paths, header names, and msgpack bodies."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from statemachine.entries import MAX_ENTRY_BYTES
from statemachine.errors import Result

SNAPSHOT, ENTRIES, PROPOSE, HEARTBEAT = "/feed/snapshot", "/feed/entries", "/propose", "/heartbeat"
MSGPACK = "application/msgpack"

#: what a proposal may wait for its outcome
MAX_WAIT_S = 60.0
#: how long a stream may be asked for
MAX_STREAM_S = 3600.0
#: a feeding node says that it is there at least so often
BEAT_S = 0.5
#: a message carries entries of about so many bytes, or one larger entry
PIECE_BYTES = 64 * 1024
#: what a follower takes as one message at most
MAX_MESSAGE_BYTES = 2 * (PIECE_BYTES + MAX_ENTRY_BYTES)

#: what is read of any other answer, and of a snapshot
MAX_SMALL_ANSWER_BYTES = 16 * 1024 * 1024
MAX_SNAPSHOT_BYTES = 64 * 1024 * 1024 * 1024

#: codes of a 409: the position cannot be continued here, a snapshot has to take its place
OTHER_CLUSTER, OTHER_HISTORY, FELL_OUT = "other_cluster", "other_history", "fell_out"

Natural = Annotated[int, Meta(ge=0, le=2**62)]
Chain = Annotated[bytes, Meta(min_length=32, max_length=32)]


class Frame(Struct, frozen=True, array_like=True):
    """One entry and the digest chain after it (32 bytes)."""

    index: Natural
    term: Natural
    entry: bytes
    chain: Chain


class Standing(Struct, frozen=True):
    """Where the feeding node stood just before it read the frames.

    With the frames a follower has everything up to raft index `through`, which may lie behind the last
    frame where entries without commands of ours are. `index` and `chain` are the position that the frames lead to.
    `clock_ms` is the feeding node's own clock at that moment: two messages of a stream tell how far apart they are.
    """

    cluster_id: str
    node_id: str
    leader_id: str | None
    term: Natural
    commit: Natural
    through: Natural
    voters: tuple[str, ...]
    contact_age_ms: Natural
    clock_ms: Natural
    index: Natural
    chain: Chain


class Batch(Struct, frozen=True, array_like=True):
    """One message of a stream; one without frames says that the feeding node is there, and where it stands."""

    standing: Standing
    frames: list[Frame]


class Placed(Struct, frozen=True):
    """Answer to a proposal: where it was committed and what each command came to."""

    index: Natural
    term: Natural
    results: list[Result]


encode = msgspec.msgpack.Encoder().encode
decode_batch = msgspec.msgpack.Decoder(Batch).decode
decode_placed = msgspec.msgpack.Decoder(Placed).decode
_LENGTH_BYTES = 4


def message(batch: Batch) -> bytes:
    """A message as it goes over the wire: its length in four bytes, then the batch."""
    body = encode(batch)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


class Messages:
    """Makes messages of bytes as they come."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def unfinished(self) -> bool:
        """Whether a message has begun to come."""
        return bool(self._buffer)

    def take(self, data: bytes) -> list[Batch]:
        """The messages that are whole now. Raises one of UNDECODABLE, also when one is over its bound."""
        buffer = self._buffer
        buffer += data
        whole: list[Batch] = []
        start = 0
        while len(buffer) - start >= _LENGTH_BYTES:
            begin = start + _LENGTH_BYTES
            length = int.from_bytes(buffer[start:begin], "big")
            if length > MAX_MESSAGE_BYTES:
                raise msgspec.DecodeError(f"a message of {length} bytes is over {MAX_MESSAGE_BYTES} bytes")
            if len(buffer) < begin + length:
                break
            whole.append(decode_batch(buffer[begin : begin + length]))
            start = begin + length
        del buffer[:start]
        return whole
