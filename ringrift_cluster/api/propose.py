"""The door for programs: encoded commands in, their results out. Followers and clients use it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from ringrift_cluster.api.endpoint import Call, Reply, Routes, read_body
from ringrift_cluster.api.problems import Problem
from ringrift_cluster.replica import Proposed
from statemachine.commands import MAX_COMMAND_BYTES, decode_command, encode_command
from statemachine.errors import UNDECODABLE, Code
from statemachine.values import Scope

route = Routes("raft", "")

MEDIA_TYPE = "application/msgpack"
MAX_COMMANDS = 4096

_decode = msgspec.msgpack.Decoder(list[bytes]).decode
_encode = msgspec.msgpack.Encoder().encode


class Patience(Struct, frozen=True, forbid_unknown_fields=True):
    timeout: Annotated[float, Meta(gt=0, le=60, description="Seconds to wait for the commit.")] = 10.0


@route(
    "POST",
    "/propose",
    "Commit encoded commands",
    scope=Scope.READ,
    consumes=MEDIA_TYPE,
    produces={
        MEDIA_TYPE: "A map of `index`, `term` and `results`, one tagged result (done or rejected) a command, in order."
    },
    errors=(Code.INVALID, "no_leader", "busy", "too_large", "outcome_unknown", "read_only", "halted"),
)
async def propose(call: Call, query: Patience) -> Reply:
    """The body is a msgpack array of binary strings, each one encoded command of the log.

    Each command asks for the scope that it has on its own path. Errors are problem documents in JSON. After
    `outcome_unknown` the same commands may be sent again: each is idempotent by its own id. An empty array is a
    barrier: its index comes after everything acknowledged before.
    """
    raw = await read_body(call, call.services.limits.body_bytes)
    try:
        commands = _decode(raw)
    except UNDECODABLE as error:
        raise Problem(Code.INVALID, f"the body is a msgpack array of binary strings: {error}") from None
    if len(commands) > MAX_COMMANDS:
        raise Problem(Code.INVALID, f"{len(commands)} commands were sent; a proposal takes at most {MAX_COMMANDS}")
    locks = call.services.locks
    for number, data in enumerate(commands):
        if len(data) > MAX_COMMAND_BYTES:
            raise Problem("too_large", f"command {number} is {len(data)} bytes; at most {MAX_COMMAND_BYTES} are taken")
        try:
            command = decode_command(data)
        except msgspec.MsgspecError as error:
            raise Problem(Code.INVALID, f"command {number}: {error}") from None
        if locks is not None and (cleared := locks.cleared(call.caller, command)) is not command:
            commands[number] = encode_command(cleared)
    proposed: Proposed = await call.services.replica.propose(commands, timeout_s=query.timeout)
    call.index = proposed.index
    return Reply(_encode(proposed), media_type=MEDIA_TYPE)
