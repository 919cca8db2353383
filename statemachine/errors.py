"""What a command can come back with.

    Result
     |- Done(value)               it took effect (or had already: a repeat of the same effect)
     '- Rejected(code, detail)    it changed nothing

Inside a transition a refusal is raised as `Refused` and becomes `Rejected` at the door of
`Machine.apply`; `Halt` is the one exception that leaves it, and it ends the process.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from msgspec import MsgspecError, Struct

#: what decoding bytes that somebody else wrote may raise: wrong shape, text that is not UTF-8, nesting without end
UNDECODABLE = (MsgspecError, UnicodeDecodeError, RecursionError)


class Code(StrEnum):
    """Stable names of refusals. Clients match on these; the sentence beside them is for people."""

    #: the named row does not exist (or its retention is over)
    NOT_FOUND = "not_found"
    #: the row exists with other content, or something else holds what was asked for
    CONFLICT = "conflict"
    #: the report carries a fence that is no longer the live one
    STALE_FENCE = "stale_fence"
    #: the report comes from a node process that a newer one has replaced
    STALE_INCARNATION = "stale_incarnation"
    #: the row's present state does not lead to the one asked for
    ILLEGAL_TRANSITION = "illegal_transition"
    #: a value is out of its range or does not fit the others
    INVALID = "invalid"
    #: a bound on rows is reached; wait or raise the setting
    LIMIT = "limit_exceeded"
    #: the request's expiry on the cluster clock has passed
    EXPIRED = "request_expired"
    #: the cluster is paused
    PAUSED = "paused"
    #: the peer cannot take this item now
    INELIGIBLE = "ineligible"
    #: evidence is missing, too small or does not match the table
    EVIDENCE = "insufficient_evidence"
    #: the transition itself failed; nothing was written, and every replica failed alike
    INTERNAL = "internal_error"


class Done(Struct, frozen=True, tag="done", gc=False):
    """The command took effect; `value` is plain data (text, integers, lists, maps)."""

    value: Any = None


class Rejected(Struct, frozen=True, tag="rejected", gc=False):
    """The command changed nothing. `detail` is one sentence that names the thing."""

    code: str
    detail: str


Result = Done | Rejected


class Refused(Exception):  # noqa: N818 - a refusal is an answer, not an error
    """Raised inside a transition to drop its writes and answer `Rejected`."""

    def __init__(self, code: Code, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class Halt(Exception):  # noqa: N818 - it is an order
    """The node must stop rather than guess: an entry it cannot read, or a state that is not the log's."""
