"""What voters say to each other: tagged msgpack Structs, checked while they are decoded."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from statemachine.errors import Result

Natural = Annotated[int, Meta(ge=0, le=2**62)]
Name = Annotated[str, Meta(max_length=128)]
#: a log entry as the library keeps it: (type byte and command, index, term)
LogEntry = tuple[bytes, int, int]

#: frames above this are refused before they are read
MAX_FRAME_BYTES = 8 * 1024 * 1024
MAX_GREETING_BYTES = 64 * 1024


class Message(Struct, frozen=True, array_like=True):
    """Base of all messages."""


class AppendEntries(Message, frozen=True, tag="append"):
    """Leader to voter: entries after (prev_index, prev_term); empty as a heartbeat."""

    term: Natural
    commit: Natural
    prev_index: Natural
    prev_term: Natural
    entries: list[tuple[bytes, Natural, Natural]]


class AppendReply(Message, frozen=True, tag="appended"):
    """Voter to leader. `term` is the voter's when it answered, `last_index` its log's end then.

    Success: everything before `next_index` matches and is on disk. Else: start again at `next_index`.
    `applied` is how far its machine stood then.
    """

    term: Natural
    next_index: Natural
    success: bool
    last_index: Natural
    applied: Natural = 0


class RequestVote(Message, frozen=True, tag="vote?"):
    term: Natural
    last_index: Natural
    last_term: Natural


class Vote(Message, frozen=True, tag="vote"):
    term: Natural


class PreVote(Message, frozen=True, tag="prevote?"):
    """Would you vote for me in `term`? Changes nothing at either side."""

    round: Natural
    term: Natural
    last_index: Natural
    last_term: Natural


class PreVoteReply(Message, frozen=True, tag="prevote"):
    round: Natural
    term: Natural
    granted: bool


class TimeoutNow(Message, frozen=True, tag="timeout"):
    """Leader to the voter it hands over to: start an election at once."""

    term: Natural


class OfferSnapshot(Message, frozen=True, tag="snapshot"):
    """Leader to a voter whose next entry is compacted: fetch this file."""

    term: Natural
    index: Natural
    snapshot_term: Natural
    size_bytes: Natural
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


class FetchPart(Message, frozen=True, tag="part?"):
    index: Natural
    snapshot_term: Natural
    offset: Natural


class Part(Message, frozen=True, tag="part"):
    """A piece of a snapshot file; empty data means it is not here."""

    index: Natural
    snapshot_term: Natural
    offset: Natural
    data: bytes


class Forward(Message, frozen=True, tag="forward"):
    """A voter's proposals for the leader: (number, commands, milliseconds the caller still waits)."""

    items: list[tuple[Natural, list[bytes], Natural]]


class ForwardResult(Message, frozen=True):
    """What came of one forwarded proposal; a refusal means certainly not proposed."""

    number: Natural
    index: Natural
    term: Natural
    results: list[Result]
    refusal: str = ""
    detail: str = ""


class Forwarded(Message, frozen=True, tag="forwarded"):
    items: list[ForwardResult]


class HandOver(Message, frozen=True, tag="handover"):
    """A voter asks the leader to hand leadership over (to `target`, or to whom it likes)."""

    target: Name


class Ping(Message, frozen=True, tag="ping"):
    """Says only that the connection lives."""


class Hello(Message, frozen=True, tag="hello"):
    """Who opens a connection. `log_id` names this log since its first start; `admitted`: it may vote.

    `voters` is the list it counts by, from the entry at `configured` on (0: the list a cluster begins with).
    """

    protocol: Natural
    node_id: Name
    cluster_id: Name
    log_id: Name
    admitted: bool
    voters: Annotated[list[Name], Meta(max_length=64)]
    nonce: Annotated[bytes, Meta(max_length=64)]
    configured: Natural = 0


class Proof(Message, frozen=True, tag="proof"):
    """HMAC-SHA256 over both greetings with the cluster's secret; empty without one."""

    mac: Annotated[bytes, Meta(max_length=64)]


class Welcome(Message, frozen=True, tag="welcome"):
    """Empty: come in. Else the reason and a sentence."""

    reason: Name
    detail: Annotated[str, Meta(max_length=1024)]


Raft = (
    AppendEntries
    | AppendReply
    | RequestVote
    | Vote
    | PreVote
    | PreVoteReply
    | TimeoutNow
    | OfferSnapshot
    | FetchPart
    | Part
    | Forward
    | Forwarded
    | HandOver
    | Ping
)
Greeting = Hello | Proof | Welcome

_encoder = msgspec.msgpack.Encoder()
_raft: msgspec.msgpack.Decoder[Raft] = msgspec.msgpack.Decoder(Raft)
_greeting: msgspec.msgpack.Decoder[Greeting] = msgspec.msgpack.Decoder(Greeting)


def encode(message: Message) -> bytes:
    """Encode one message."""
    return _encoder.encode(message)


def decode(data: bytes | bytearray) -> Raft:
    """Decode a message between voters that know each other; raises msgspec.MsgspecError."""
    return _raft.decode(data)


def decode_greeting(data: bytes) -> Greeting:
    """Decode a message of the handshake; raises msgspec.MsgspecError."""
    return _greeting.decode(data)
