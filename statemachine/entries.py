"""One log entry: the leader's clock stamp and a batch of commands.

The batch is spliced from commands that are already encoded, so that the consensus thread never
encodes one a second time.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Raw, Struct

from statemachine.commands import Command, decoded

#: A merged entry is closed at this size.
MAX_ENTRY_BYTES = 512 * 1024
ENTRY_FORMAT = 1


class Entry(Struct, frozen=True, array_like=True):
    """A decoded entry. `elapsed_ms` counts from the stamping leader's own first entry of the term."""

    format: int
    clock_term: int
    elapsed_ms: int
    commands: list[Command]


class _Spliced(Struct, frozen=True, array_like=True):
    format: int
    clock_term: int
    elapsed_ms: int
    commands: list[Raw]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)


def encode_entry(clock_term: int, elapsed_ms: int, commands: Sequence[bytes]) -> bytes:
    """Join a clock stamp and already encoded commands into one entry."""
    return _encoder.encode(_Spliced(ENTRY_FORMAT, clock_term, elapsed_ms, [Raw(c) for c in commands]))


def decode_entry(entry: bytes) -> Entry:
    """Decode an entry; raises msgspec.MsgspecError when it cannot be read."""
    return decoded(_decoder, entry)
