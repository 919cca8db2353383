"""Who did what: an event with the name of the token, in the same step as the act."""

from __future__ import annotations

from msgspec import Struct

from statemachine.commands import RecordAct
from statemachine.state import Txn

ACTED = "OperatorActed"


def acted(txn: Txn, by: str, cmd: Struct) -> None:
    """Note whose token a command came with; its first field names what it is about."""
    target = str(getattr(cmd, cmd.__struct_fields__[0]))
    txn.emit(ACTED, by, act=str(cmd.__struct_config__.tag), target=target)


def record(txn: Txn, cmd: RecordAct) -> bool:
    txn.emit(ACTED, cmd.by, act=cmd.act, target=cmd.target)
    return True
