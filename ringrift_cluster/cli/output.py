"""One value, two faces: JSON for programs, lines and tables for people."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import msgspec
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

T = TypeVar("T")

#: wide enough that text in a pipe is never cut or wrapped
_PIPE_COLUMNS = 10_000


def console() -> Console:
    """For stdout; outside a terminal lines are as long as they are."""
    terminal = sys.stdout.isatty()
    return Console(width=None if terminal else _PIPE_COLUMNS, highlight=False, soft_wrap=not terminal)


def emit(value: T, as_json: bool, render: Callable[[T], Iterable[RenderableType]]) -> None:
    """Print a value as JSON, or as what `render` makes of it."""
    if as_json:
        emit_json(value)
        return
    out = console()
    for part in render(value):
        out.print(part if not isinstance(part, str) else Text(part))


def emit_json(value: object, indent: int = 0) -> None:
    """One JSON value and a newline."""
    data = msgspec.json.encode(value)
    sys.stdout.write((msgspec.json.format(data, indent=indent) if indent else data).decode() + "\n")
    sys.stdout.flush()


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A plain table; a column whose name ends in a blank is aligned to the right."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        right = name.endswith(" ")
        made.add_column(name.strip(), justify="right" if right else "left", overflow="fold", no_wrap=False)
    for row in rows:
        made.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    return made


def span(ms: float) -> str:
    """A span as people say it: 45 s, 12 min, 3.5 h, 2.1 d."""
    seconds = ms / 1000
    if seconds < 0:
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:.1f} d"


def size(count: float) -> str:
    """Bytes with a binary prefix."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def short(digest: str) -> str:
    """The first twelve digits of a hash, and what follows an @."""
    head, at, rest = digest.partition("@")
    return (head[:12] if len(head) == 64 else head) + at + rest


def pairs(values: dict[str, int] | dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())
