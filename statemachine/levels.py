"""Feature levels of fields: what a release of an earlier level would make of a value.

    restart: Annotated[Restart, Since(2)] = Restart()

Such a field has a default. A cluster below its level refuses every value that names it, as a release without the
field does.
"""

from __future__ import annotations

from functools import cache
from itertools import count
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct, field
from msgspec.structs import fields

#: above every level that a cluster can be at
NEWEST = 1_000


class Since(NamedTuple):
    """Beside a field's type: the feature level at which the field came. Without it that is 1."""

    level: int


@cache
def as_of(kind: type[Struct], level: int) -> type[Struct]:
    """A shape as a release of that level knows it: without the fields that came later, at any depth.

    It is the shape itself where nothing came later.
    """
    now = get_type_hints(kind, include_extras=True)
    then = {name: _as_of(hint, level) for name, hint in now.items() if _since(hint) <= level}
    if then == now:
        return kind
    known = [
        (one.name, then[one.name], field(default=one.default, default_factory=one.default_factory))  # type: ignore[call-overload]
        for one in fields(kind)
        if one.name in then
    ]
    config = kind.__struct_config__
    return msgspec.defstruct(
        kind.__name__,
        known,
        frozen=config.frozen,
        forbid_unknown_fields=config.forbid_unknown_fields,
        omit_defaults=config.omit_defaults,
        kw_only=True,
    )


def seen_at(value: Struct, level: int) -> Struct:
    """A value as a release of that level holds it."""
    return msgspec.convert(value, as_of(type(value), level), from_attributes=True)


def level_of(value: Struct) -> int:
    """The lowest feature level at which nothing of a value is lost, since what came later is at its default."""
    kind = type(value)
    levels = count(1)
    return next(n for n in levels if msgspec.convert(seen_at(value, n), kind, from_attributes=True) == value)


def _since(hint: Any) -> int:
    return max((one.level for one in getattr(hint, "__metadata__", ()) if isinstance(one, Since)), default=1)


def _as_of(hint: Any, level: int) -> Any:
    """A field's type with the shapes in it as of a level."""
    if isinstance(hint, type) and issubclass(hint, Struct):
        return as_of(hint, level)
    now = get_args(hint)
    then = tuple(_as_of(part, level) for part in now)
    if then == now:
        return hint
    origin: Any = Union if isinstance(hint, UnionType) else get_origin(hint)
    return origin[then]
