"""The bytes of a channel: a length and that many bytes, either way. A frame without bytes is a beat.

down:  [4 bytes, big-endian: length] [msgpack of Ask]
up:    [length] [msgpack of Head], then [length] [bytes of the body] until the request's own end
"""

from __future__ import annotations

from struct import Struct as Packed
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from statemachine.errors import UNDECODABLE
from statemachine.values import Scope

_LENGTH = Packed(">I")
#: one frame; longer bodies take several
MAX_FRAME_BYTES = 256 * 1024
#: a body is cut into frames of this size
PIECE_BYTES = 64 * 1024
#: the body of one request
MAX_BODY_BYTES = 128 * 1024
MAX_QUERY_CHARS = 2048
#: how often an end that has nothing to say says so, and how long the other end waits for it
BEAT_S, SILENCE_S = 2.0, 10.0
MEDIA_TYPES = r"^(?:application/(?:json|problem\+json|x-ndjson)|text/plain)(?:;[ -~]*)?$"
BEAT = _LENGTH.pack(0)


class BrokenFrame(Exception):  # noqa: N818 - names a state of the world
    """What the other end sent is no frame; the text says why."""


class Vouched(Struct, frozen=True, array_like=True):
    """Whose request it is, as the voter knows them: the token itself stays with the voter."""

    name: Annotated[str, Meta(max_length=128)]
    scope: Scope
    peer: Annotated[str, Meta(max_length=128)] = ""


class Ask(Struct, frozen=True, array_like=True):
    """One request to a follower. `path` is decoded, `query` is as in the URL."""

    id: Annotated[str, Meta(min_length=1, max_length=64, pattern="^[0-9a-f]+$")]
    method: Annotated[str, Meta(max_length=8)]
    path: Annotated[str, Meta(max_length=1024)]
    query: Annotated[str, Meta(max_length=MAX_QUERY_CHARS)]
    body: Annotated[bytes, Meta(max_length=MAX_BODY_BYTES)]
    caller: Vouched


class Head(Struct, frozen=True, array_like=True):
    """How an answer begins."""

    status: Annotated[int, Meta(ge=200, le=599)]
    #: nothing that a browser would run
    media_type: Annotated[str, Meta(max_length=128, pattern=MEDIA_TYPES)]


def framed(payload: bytes) -> bytes:
    """One frame. Raises BrokenFrame when it would be too long."""
    if len(payload) > MAX_FRAME_BYTES:
        raise BrokenFrame(f"a frame of {len(payload)} bytes is over {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(payload)) + payload


def packed(value: Ask | Head) -> bytes:
    """The frame of a request or of the head of an answer. Raises BrokenFrame."""
    return framed(msgspec.msgpack.encode(value))


def ask_of(payload: bytes) -> Ask:
    """Raises BrokenFrame."""
    try:
        return msgspec.msgpack.decode(payload, type=Ask)
    except UNDECODABLE as error:
        raise BrokenFrame(f"a request cannot be read: {error}") from error


def head_of(payload: bytes) -> Head:
    """Raises BrokenFrame."""
    try:
        return msgspec.msgpack.decode(payload, type=Head)
    except UNDECODABLE as error:
        raise BrokenFrame(f"the head of an answer cannot be read: {error}") from error


class Frames:
    """Cuts a stream of bytes into payloads. It holds one unfinished frame at most."""

    def __init__(self) -> None:
        self._rest = bytearray()

    @property
    def unfinished(self) -> bool:
        """Whether a frame has begun that is not whole yet."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that are whole now, beats included as empty ones. Raises BrokenFrame."""
        rest = self._rest
        rest += data
        found: list[bytes] = []
        at = 0
        while len(rest) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(rest, at)
            if length > MAX_FRAME_BYTES:
                raise BrokenFrame(f"a frame of {length} bytes is over {MAX_FRAME_BYTES}")
            end = at + _LENGTH.size + length
            if len(rest) < end:
                break
            found.append(bytes(rest[at + _LENGTH.size : end]))
            at = end
        del rest[:at]
        return found
