"""One copy of what many rows say alike.

Rows that the law made share their texts: a job names the item's own id, its peer's, its class's. Rows that were read
from a snapshot have a copy each, which at a million items is a third of the memory. They are told alike again before
anybody else has seen them, so it does not matter that rows are frozen.
"""

from __future__ import annotations

from typing import Any, cast

from msgspec.structs import force_setattr

from statemachine.rows import Row, Work

#: fields by table that repeat what other rows say; the empty dicts among the rest are shared as well
_TEXTS = {
    "jobs": ("work", "work_type", "config", "peer"),
    "artifacts": ("kind", "config", "name", "job", "holders"),
}
_SPEC = ("work_type", "config", "template")
_DICTS = {"work": ("counts", "metrics"), "jobs": ("total", "metrics")}
_NOTHING: dict[str, Any] = {}


class Pool:
    """The values seen so far while a snapshot is loaded."""

    def __init__(self) -> None:
        self._seen: dict[Any, Any] = {}

    def share(self, table: str, rows: list[Row]) -> None:
        """Let fresh rows refer to values that were seen before where they are equal."""
        if table == "work":
            for row in rows:
                spec = cast(Work, row).spec
                self._seen[spec.work] = spec.work
                self._point(spec, _SPEC)
        texts, dicts = _TEXTS.get(table, ()), _DICTS.get(table, ())
        for row in rows if texts or dicts else ():
            self._point(row, texts)
            for name in dicts:
                if not getattr(row, name):
                    force_setattr(row, name, _NOTHING)

    def _point(self, row: Any, fields: tuple[str, ...]) -> None:
        seen = self._seen
        for name in fields:
            value = getattr(row, name)
            known = seen.setdefault(value, value)
            if known is not value:
                force_setattr(row, name, known)
