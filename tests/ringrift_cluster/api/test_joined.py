"""Small writes of one moment leave in one packet, in order, and nothing is held back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ringrift_cluster.api.joined import LARGE_BYTES, Joined

pytestmark = pytest.mark.anyio


class Wire:
    """Stands in for a transport and keeps each call."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def write(self, data: bytes) -> None:
        self.calls.append(data)

    def close(self) -> None:
        self.calls.append("close")

    def abort(self) -> None:
        self.calls.append("abort")

    def write_eof(self) -> None:
        self.calls.append("eof")

    def get_write_buffer_size(self) -> int:
        return 5

    def is_closing(self) -> bool:
        return False


def joined() -> tuple[Joined, Wire]:
    wire = Wire()
    return Joined(wire, asyncio.get_running_loop()), wire  # type: ignore[arg-type]


async def test_a_head_and_its_body_are_one_write() -> None:
    transport, wire = joined()
    transport.write(b"head")
    transport.write(b"body")
    assert (wire.calls, transport.get_write_buffer_size()) == ([], 13)
    await asyncio.sleep(0)
    assert wire.calls == [b"headbody"]
    assert not transport.is_closing()


async def test_what_is_large_leaves_at_once_after_what_waited() -> None:
    transport, wire = joined()
    transport.write(b"head")
    transport.write(b"x" * LARGE_BYTES)
    assert wire.calls == [b"head" + b"x" * LARGE_BYTES]


@pytest.mark.parametrize(("end", "said"), [("close", "close"), ("write_eof", "eof")])
async def test_what_waits_leaves_before_the_end(end: str, said: str) -> None:
    transport, wire = joined()
    transport.write(b"last")
    getattr(transport, end)()
    assert wire.calls == [b"last", said]


async def test_an_abort_sends_nothing_any_more() -> None:
    transport, wire = joined()
    transport.write(b"never")
    transport.abort()
    await asyncio.sleep(0)
    assert wire.calls == ["abort"]
