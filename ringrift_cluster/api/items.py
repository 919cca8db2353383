"""Work items as clients send them, and the law's command for each."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from ringrift_cluster.api.problems import Problem
from statemachine.commands import AddWork
from statemachine.errors import Code
from statemachine.values import Id, Input, Needs, Priority, Short

Scalar = str | int | float | bool
Seconds = Annotated[float, Meta(ge=0, le=10**9)]
#: a game config by its key, or the board and the seats that make the key
Config = str | dict[Short, Scalar]


class NewWork(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An item to queue. Without `work_id` one is made; with it, adding the same item again adds no second."""

    work_type: Id
    work_id: Id | None = None
    #: the config key, or an object of parameters that may name `board_type` and `num_players`
    config: Config = ""
    board_type: Short = ""
    num_players: Annotated[int, Meta(ge=0, le=8)] = 0
    priority: Priority = 50
    template: Short = ""
    params: dict[Short, Scalar] = {}
    inputs: tuple[Input, ...] = ()
    depends_on: tuple[Id, ...] = ()
    #: left out: what the template says, or one CPU slot
    needs: Needs | None = None
    max_attempts: Annotated[int, Meta(ge=1, le=100)] = 3
    #: how long an attempt may run; 0 is the setting of its type
    timeout_seconds: Seconds = 0
    #: how long it may wait before it expires; 0 is for ever
    ttl_seconds: Seconds = 0
    #: at most one unfinished item at a time under this name
    unique: Short = ""


class NewItems(Struct, frozen=True, forbid_unknown_fields=True):
    items: list[NewWork]


class _Shape(Struct):
    items: Raw | UnsetType = UNSET


_one = msgspec.json.Decoder(NewWork).decode
_list = msgspec.json.Decoder(list[NewWork]).decode
_object = msgspec.json.Decoder(NewItems).decode
_shape = msgspec.json.Decoder(_Shape).decode


def decode_items(raw: bytes) -> NewWork | list[NewWork]:
    """One object, a list, or {"items": [...]}."""
    if raw.lstrip()[:1] == b"[":
        return _list(raw)
    if b'"items"' in raw and _shape(raw).items is not UNSET:
        return _object(raw).items
    return _one(raw)


def text(value: Scalar) -> str:
    """A parameter as the law keeps it: text, and numbers in the shortest decimal form that reads back the same."""
    if isinstance(value, str):
        return value
    return ("false", "true")[value] if isinstance(value, bool) else repr(value)


def to_command(item: NewWork, work_id: str, at_ms: int) -> AddWork:
    """The law's command for an item of the door."""
    params = {key: text(value) for key, value in item.params.items()}
    board, players = item.board_type, item.num_players
    key = ""
    if isinstance(item.config, str):
        key = item.config
    else:
        extra = dict(item.config)
        key = text(extra.pop("config_key", ""))
        board = board or text(extra.pop("board_type", ""))
        seats = extra.pop("num_players", 0)
        players = players or (int(seats) if text(seats).isdecimal() else 0)
        params = {**{name: text(value) for name, value in extra.items()}, **params}
    if not key and board:
        if not players:
            raise Problem(Code.INVALID, f"board_type {board!r} needs num_players beside it to name a config")
        key = f"{board}_{players}p"
    return AddWork(
        work=work_id,
        work_type=item.work_type,
        config=key,
        priority=item.priority,
        template=item.template,
        params=params,
        inputs=item.inputs,
        depends_on=item.depends_on,
        needs=item.needs,
        max_attempts=item.max_attempts,
        timeout_ms=round(item.timeout_seconds * 1000),
        ttl_ms=round(item.ttl_seconds * 1000),
        unique=item.unique,
        at_ms=at_ms,
    )
