"""Everything that can go wrong, in one table: code -> (status, title, when to come back).

Errors leave as RFC 9457 problem documents. The codes are those of the law (`statemachine.errors.Code`), one
for each `ReplicaError`, and the few that only this face knows.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import Struct

from executors.gate import RETRY_S
from ringrift_cluster import replica
from statemachine.errors import Code, Refused, Rejected
from statemachine.values import HEX, NAME

MEDIA_TYPE = "application/problem+json"
#: the patterns of texts, as people say them
FORMS = {
    NAME: "a name (letters, digits and . _ : @ / + -, the first a letter or digit)",
    HEX: "a sha256 (64 digits of lower-case hex)",
}


def in_words(error: Exception) -> str:
    """What is wrong with a request that cannot be decoded, without regular expressions."""
    text = str(error)
    for pattern, words in FORMS.items():
        text = text.replace(f"`str` matching regex {pattern!r}", words)
    return text


@dataclass(frozen=True, slots=True)
class Kind:
    """How one code leaves the door."""

    status: int
    title: str
    retry_after_s: int | None = None


TABLE: dict[str, Kind] = {
    # the law's refusals
    Code.NOT_FOUND: Kind(404, "No such thing is known"),
    Code.CONFLICT: Kind(409, "Something else is already there"),
    Code.STALE_FENCE: Kind(409, "The fence of this report is over"),
    Code.STALE_INCARNATION: Kind(409, "A newer process of this node has replaced the sender"),
    Code.ILLEGAL_TRANSITION: Kind(409, "The present state does not lead there"),
    Code.INVALID: Kind(400, "The request is not valid"),
    Code.LIMIT: Kind(429, "A bound is reached", 5),
    Code.EXPIRED: Kind(410, "The request came after its expiry"),
    Code.PAUSED: Kind(423, "The cluster is paused"),
    Code.INELIGIBLE: Kind(409, "The node cannot take this now"),
    Code.EVIDENCE: Kind(412, "The evidence does not suffice"),
    Code.INTERNAL: Kind(500, "The transition failed"),
    # the replica's
    "no_leader": Kind(503, "No leader can be reached; nothing was changed", 1),
    "busy": Kind(429, "Too much is in flight; nothing was changed", 1),
    "too_large": Kind(413, "The request is too large"),
    "outcome_unknown": Kind(504, "It may or may not have taken effect; repeat it under the same id"),
    "stale": Kind(503, "This node cannot show the view asked for", 1),
    "change_refused": Kind(409, "The voters stay as they are"),
    "read_only": Kind(503, "This node may read but not propose"),
    "halted": Kind(503, "This node has stopped"),
    # this face's own
    "unauthorized": Kind(401, "A token is needed"),
    "token_over": Kind(401, "The token is revoked or expired"),
    "forbidden": Kind(403, "The token is not good for this"),
    "method_not_allowed": Kind(405, "The path has no such method"),
    "gone": Kind(410, "This path is no longer part of the protocol"),
    "digest_mismatch": Kind(422, "The bytes are not those of the digest"),
    "saturated": Kind(503, "This node sends enough files", RETRY_S),
    "no_room": Kind(507, "The store's quota is used up"),
    "out_of_step": Kind(409, "The piece does not begin where the last one ended"),
    "uri_too_long": Kind(414, "The path and query are too long"),
    "request_timeout": Kind(408, "The request came too slowly"),
    "range_not_satisfiable": Kind(416, "The file has no such range"),
    "headers_too_large": Kind(431, "The headers are too large"),
    "too_many_streams": Kind(429, "Too many streams are open on this node", 5),
    "too_many_waits": Kind(429, "Too many reads wait on this node", 2),
    "unreachable": Kind(502, "The node that has it does not answer", 2),
    "no_channel": Kind(502, "The node holds no channel to this voter", 1),
    "not_ready": Kind(503, "This node is not ready", 1),
    "unexpected": Kind(500, "This node made a mistake"),
}

REPLICA_CODES: dict[type[replica.ReplicaError], str] = {
    replica.NoLeader: "no_leader",
    replica.Busy: "busy",
    replica.TooLarge: "too_large",
    replica.OutcomeUnknown: "outcome_unknown",
    replica.Stale: "stale",
    replica.ChangeRefused: "change_refused",
    replica.ReadOnly: "read_only",
    replica.Halted: "halted",
}


class LeaderHint(Struct, frozen=True):
    node_id: str
    address: str | None


class ProblemDocument(Struct, frozen=True, omit_defaults=True):
    """RFC 9457 with the stable `code` clients match on; `detail` is a sentence for people."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    instance: str = ""
    leader: LeaderHint | None = None


class ProblemKind(Struct, frozen=True):
    """One row of the table, as `/problems` shows it."""

    code: str
    status: int
    title: str
    retry_after_seconds: int | None


class Problem(Exception):  # noqa: N818 - it is an answer
    """Leave a route with this code. `detail` names the thing and what to do next."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


def of(error: Problem | Refused | replica.ReplicaError) -> Problem:
    """Any answer that is not a result, as a problem of the table."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, Refused):
        return Problem(error.code, error.detail)
    for kind in type(error).__mro__:
        code = REPLICA_CODES.get(kind)
        if code is not None:
            return Problem(code, str(error) or TABLE[code].title)
    return Problem("unexpected", str(error) or "the replica gave no reason")


def of_rejection(rejected: Rejected) -> Problem:
    """A refusal of the law; a code of a newer release than this one counts as a conflict."""
    return Problem(rejected.code if rejected.code in TABLE else Code.CONFLICT, rejected.detail)


def document(problem: Problem, instance: str, leader: LeaderHint | None) -> ProblemDocument:
    kind = TABLE[problem.code]
    return ProblemDocument(
        type=f"/problems/{problem.code}",
        title=kind.title,
        status=kind.status,
        code=problem.code,
        detail=problem.detail,
        instance=instance,
        leader=leader if kind.status in (429, 503, 504) else None,
    )
