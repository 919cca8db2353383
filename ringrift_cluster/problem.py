"""A problem document (RFC 9457) as whoever asked reads it."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from statemachine.errors import UNDECODABLE


class Problem(Struct, frozen=True, omit_defaults=True):
    """`code` is the cluster's own and stable: for programs. `detail` is for people."""

    code: str = ""
    detail: str = ""
    status: int = 0
    title: str = ""
    type: str = "about:blank"
    instance: str = ""


_decode = msgspec.json.Decoder(Problem).decode


def read_problem(body: bytes) -> Problem:
    """Read a problem document; one without a code when the body is none."""
    try:
        return _decode(body)
    except UNDECODABLE:
        return Problem()
