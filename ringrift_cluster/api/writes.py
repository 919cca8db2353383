"""Proposals: from commands to results, each checked at the door before it can reach the log.

A command that the log's decoder would not take stops every replica that applies it, so what is built
from a request is decoded once more here: the same bytes, the same decoder, before anybody else sees them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from ringrift_cluster.api.endpoint import Call
from ringrift_cluster.api.problems import Problem, of_rejection
from ringrift_cluster.batches import batches
from ringrift_cluster.relay.inside import VOUCHED
from ringrift_cluster.replica import OutcomeUnknown, ReplicaError
from statemachine.commands import MAX_COMMAND_BYTES, Command, Effect, Once, RecordAct, decode_command, encode_command
from statemachine.errors import Code, Rejected, Result

#: how long a request id is remembered, on the cluster clock
REQUEST_LIFE_MS = 10 * 60_000
#: one proposal stays below the size at which an entry is closed
_BATCH_BYTES = 384 * 1024
#: and below the commands that one entry holds
_BATCH_COMMANDS = 500
REQUEST_ID = b"request-id"
#: an act that is no command waits this long for its event
NOTE_S = 2.0

log = logging.getLogger("ringrift.api")


class Outcome(Struct, frozen=True):
    """What a command came to, and where in the log."""

    result: Any
    index: int


def sealed(call: Call, command: Command) -> bytes:
    """Encode a command, an operator's with the name of the token on it.

    Raises Problem when the token is not good for it, or naming the field that the law's decoder would not take.
    """
    locks = call.services.locks
    if locks is not None:
        command = locks.cleared(call.caller, command)
    try:
        data = encode_command(command)
        decode_command(data)
    except (msgspec.MsgspecError, UnicodeEncodeError, OverflowError) as error:
        raise Problem(Code.INVALID, f"the {command.__struct_config__.tag} command: {error}") from None
    if len(data) > MAX_COMMAND_BYTES:
        raise Problem("too_large", f"the command is {len(data)} bytes; at most {MAX_COMMAND_BYTES} are taken")
    return data


async def propose(call: Call, commands: Sequence[bytes]) -> list[Result]:
    """Commit sealed commands in order, in as few entries as they fit into; one result each.

    Raises ReplicaError; once an entry was committed it is OutcomeUnknown, since the call took effect in part.
    """
    results: list[Result] = []
    for batch in batches(commands, len, _BATCH_COMMANDS, _BATCH_BYTES):
        results += await _commit(call, batch, len(results))
    return results


async def _commit(call: Call, batch: list[bytes], done: int) -> tuple[Result, ...]:
    try:
        proposed = await call.services.replica.propose(batch)
    except ReplicaError as error:
        if not done:
            raise
        # "Certainly not committed" is true of this entry alone.
        raise OutcomeUnknown(f"the first {done} commands of this call are committed; then: {error}") from error
    call.index = proposed.index
    return proposed.results


class Requested(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of bodies whose command is not idempotent by an id of its own."""

    #: the same as the header `Request-Id`: under it the request takes effect at most once
    request_id: Annotated[str, Meta(max_length=128)] = ""


async def carry_out(call: Call, command: Effect) -> Outcome:
    """Commit one command that is idempotent by its own id; a refusal leaves as its problem."""
    return await _settle(call, command)


async def carry_out_once(call: Call, command: Effect, request_id: str) -> Outcome:
    """Commit one command, at most once under the request id when the request has one.

    A repeat is answered with the first one's result until ten minutes of the cluster clock are over.
    """
    request = request_id or call.header(REQUEST_ID)
    if not request:
        return await _settle(call, command)
    expires = call.services.replica.status().clock_ms + REQUEST_LIFE_MS
    return await _settle(call, Once(request=request, expires_at_ms=expires, command=command))


class Settled(Struct, frozen=True, omit_defaults=True):
    """What one of several commands came to: a result, or the code and sentence of its refusal."""

    result: Any = None
    code: str = ""
    detail: str = ""


class Outcomes(Struct, frozen=True):
    """One result for each command, in their order."""

    results: list[Settled]
    rejected: int
    index: int


async def carry_out_all(call: Call, commands: Sequence[Effect]) -> Outcomes:
    """Commit many commands, each idempotent by its own id; a refusal is that command's result."""
    most = call.services.limits.items
    if not 0 < len(commands) <= most:
        raise Problem(Code.INVALID, f"{len(commands)} commands were sent; a call takes 1 to {most}")
    results = await propose(call, [sealed(call, command) for command in commands])
    settled = [Settled(None, r.code, r.detail) if isinstance(r, Rejected) else Settled(r.value) for r in results]
    return Outcomes(settled, sum(1 for s in settled if s.code), call.index or 0)


async def noted(call: Call, act: str, target: str = "") -> None:
    """Leave the event of an act that is no command. A cluster without a leader does not keep an operator from it."""
    by = call.caller.name
    if not by or VOUCHED in call.scope:
        # The voter that vouches for the caller has left it: this node could not speak for an operator.
        return
    try:
        await call.services.replica.propose(
            [encode_command(RecordAct(by=by, act=act, target=target))], timeout_s=NOTE_S
        )
    except ReplicaError as error:
        log.warning("event=act_not_recorded by=%s act=%s target=%s reason=%s", by, act, target, error)


async def _settle(call: Call, command: Command) -> Outcome:
    (result,) = await propose(call, [sealed(call, command)])
    if isinstance(result, Rejected):
        raise of_rejection(result)
    return Outcome(result.value, call.index or 0)
