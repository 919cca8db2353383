"""Who did what: an event with the name of the token, in the same step as the act."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from statemachine import events
from statemachine.commands import RecordAct
from statemachine.state import Txn

ACTED = "OperatorActed"


def signed(handler: Callable[[Txn, Any], Any], by: str) -> Callable[[Txn, Any], Any]:
    """A transition that also leaves the event; one that is refused leaves none."""

    def run(txn: Txn, cmd: Struct) -> Any:
        value = handler(txn, cmd)
        # The first field of a command names what it is about.
        target = str(getattr(cmd, cmd.__struct_fields__[0]))
        events.emit(txn, ACTED, by, act=str(cmd.__struct_config__.tag), target=target)
        return value

    return run


def record(txn: Txn, cmd: RecordAct) -> bool:
    events.emit(txn, ACTED, cmd.by, act=cmd.act, target=cmd.target)
    return True
