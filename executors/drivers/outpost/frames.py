"""What goes over a connection: frames of two lengths (big-endian, 4 bytes each), a JSON object and bytes.

A request has `id` and `op`; its answer has the `id`, and `error` with `text` when it failed.
"""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

HELLO = b"ringrift outpost 1\n"
LENGTHS = struct.Struct(">II")
MAX_HEADER_BYTES = 8 * 1024 * 1024
MAX_BODY_BYTES = 1024 * 1024


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """The next frame, None at the end of the stream."""
    lengths = stream.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    header_bytes, body_bytes = LENGTHS.unpack(lengths)
    if header_bytes > MAX_HEADER_BYTES or body_bytes > MAX_BODY_BYTES:
        return None
    header, body = stream.read(header_bytes), stream.read(body_bytes)
    if len(header) < header_bytes or len(body) < body_bytes:
        return None
    return json.loads(header), body


def frame(header: dict[str, Any], body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return LENGTHS.pack(len(text), len(body)) + text + body
