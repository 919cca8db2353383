"""The bytes of a channel, from ends that keep to the rules and from ends that do not."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from ringrift_cluster.relay.frames import (
    BEAT,
    MAX_BODY_BYTES,
    MAX_FRAME_BYTES,
    Ask,
    BrokenFrame,
    Frames,
    Head,
    Vouched,
    ask_of,
    framed,
    head_of,
    packed,
)
from statemachine.values import Scope

ASK = Ask("ab12", "GET", "/jobs/one.1/log", "follow=true", b"", Vouched("me", Scope.READ))


@given(some.lists(some.binary(max_size=40), max_size=8), some.lists(some.integers(0, 400), max_size=6))
def test_frames_come_out_as_they_went_in_however_the_network_cuts_them(payloads: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(framed(payload) for payload in payloads)
    frames, found, at = Frames(), [], 0
    for cut in [*sorted(min(cut, len(stream)) for cut in cuts), len(stream)]:
        found += frames.feed(stream[at:cut])
        at = cut
    assert found == payloads
    assert not frames.unfinished


@given(some.binary(max_size=300))
def test_garbage_is_refused_or_waits_for_more_and_is_never_kept_beyond_a_frame(garbage: bytes) -> None:
    frames = Frames()
    try:
        for payload in frames.feed(garbage):
            assert len(payload) <= MAX_FRAME_BYTES
    except BrokenFrame:
        return
    assert len(frames._rest) <= MAX_FRAME_BYTES + 4


def test_a_frame_that_says_it_is_too_long_is_refused_before_its_bytes_come() -> None:
    with pytest.raises(BrokenFrame, match="is over"):
        Frames().feed(struct.pack(">I", MAX_FRAME_BYTES + 1))
    with pytest.raises(BrokenFrame, match="is over"):
        framed(bytes(MAX_FRAME_BYTES + 1))


def test_a_request_and_the_head_of_an_answer_are_read_back() -> None:
    (ask, head, beat) = Frames().feed(packed(ASK) + packed(Head(404, "application/problem+json")) + BEAT)
    assert ask_of(ask) == ASK
    assert head_of(head) == Head(404, "application/problem+json")
    assert beat == b""


@pytest.mark.parametrize(
    "hostile",
    [
        b"",
        b"\x90",
        b"not msgpack at all",
        msgspec.msgpack.encode(["zz", "GET", "/health", "", b"", ["me", "read", ""]]),
        msgspec.msgpack.encode(["ab", "GET", "/health", "q" * 5000, b"", ["me", "read", ""]]),
        msgspec.msgpack.encode(["ab", "POST", "/x", "", bytes(MAX_BODY_BYTES + 1), ["me", "read", ""]]),
        msgspec.msgpack.encode(["ab", "GET", "/health", "", b"", ["me", "root of all", ""]]),
        msgspec.msgpack.encode(["ab", "GET", "/health", "", b""]),
        b"\x91" * 3000,
    ],
)
def test_a_request_that_is_none_is_refused(hostile: bytes) -> None:
    with pytest.raises(BrokenFrame, match="cannot be read"):
        ask_of(hostile)


@pytest.mark.parametrize(
    ("status", "media_type"),
    [
        (101, "text/plain"),
        (600, "text/plain"),
        ("200", "text/plain"),
        (200, "text/html"),
        (200, "text/plain\r\nset-cookie: a=b"),
        (200, "text/plain;" + "x" * 200),
        (200, ""),
    ],
)
def test_a_head_that_could_mislead_a_caller_is_refused(status: object, media_type: str) -> None:
    with pytest.raises(BrokenFrame, match="cannot be read"):
        head_of(msgspec.msgpack.encode([status, media_type]))
