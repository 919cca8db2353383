"""What followers and voters say to each other: paths, header names, and msgpack bodies."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct

from statemachine.entries import MAX_ENTRY_BYTES
from statemachine.errors import UNDECODABLE, Result

SNAPSHOT, ENTRIES, PROPOSE, HEARTBEAT = "/feed/snapshot", "/feed/entries", "/propose", "/heartbeat"
MSGPACK = "application/msgpack"

#: bounds of one long poll
MAX_WAIT_S = 60.0
MAX_BATCH_BYTES = 8 * 1024 * 1024
#: what a follower reads of an answer at most
MAX_ANSWER_BYTES = MAX_BATCH_BYTES + 2 * MAX_ENTRY_BYTES

#: what is read of any other answer, and of a snapshot
MAX_SMALL_ANSWER_BYTES = 16 * 1024 * 1024
MAX_SNAPSHOT_BYTES = 64 * 1024 * 1024 * 1024

#: codes of a 409: the position cannot be continued here, a snapshot has to take its place
OTHER_CLUSTER, OTHER_HISTORY, FELL_OUT = "other_cluster", "other_history", "fell_out"

Natural = Annotated[int, Meta(ge=0, le=2**62)]


class Frame(Struct, frozen=True, array_like=True):
    """One entry and the digest chain after it (32 bytes)."""

    index: Natural
    term: Natural
    entry: bytes
    chain: Annotated[bytes, Meta(min_length=32, max_length=32)]


class Standing(Struct, frozen=True):
    """Where the feeding node stood just before it read the frames.

    With the frames a follower has everything up to raft index `through`, which may lie behind the last
    frame where entries without commands of ours are. `held_ms` is how long the poll had waited by then.
    """

    cluster_id: str
    node_id: str
    leader_id: str | None
    term: Natural
    commit: Natural
    through: Natural
    voters: tuple[str, ...]
    contact_age_ms: Natural
    held_ms: Natural


class Batch(Struct, frozen=True, array_like=True):
    standing: Standing
    frames: list[Frame]


class EncodedBatch(Struct, frozen=True, array_like=True):
    """A batch whose frames are encoded already: many followers wait at one position."""

    standing: Standing
    frames: Raw


class Placed(Struct, frozen=True):
    """Answer to a proposal: where it was committed and what each command came to."""

    index: Natural
    term: Natural
    results: list[Result]


class Problem(Struct, frozen=True, omit_defaults=True):
    """The part of a problem document that programs look at."""

    code: str = ""
    detail: str = ""
    status: int = 0
    title: str = ""
    type: str = "about:blank"


encode = msgspec.msgpack.Encoder().encode
decode_batch = msgspec.msgpack.Decoder(Batch).decode
decode_placed = msgspec.msgpack.Decoder(Placed).decode
_decode_problem = msgspec.json.Decoder(Problem).decode


def problem_of(body: bytes) -> Problem:
    """Read a problem document; one without a code when the body is none."""
    try:
        return _decode_problem(body)
    except UNDECODABLE:
        return Problem()
