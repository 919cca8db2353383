"""How the interpreter of a node process is set, for two busy threads and for years of work."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import msgspec

#: How long one thread may keep the interpreter from another that wants it. Each system call of the consensus
#: thread gives it away, so with Python's 5 ms a turn of a busy voter took a dozen times that.
SWITCH_S = 0.0005
#: New containers after which the collector looks for young garbage. Cycles are rare here, and at Python's 700 those
#: looks were a twentieth of what a command costs.
YOUNG = 10_000


def tune() -> None:
    """Once, when everything is imported: that lives as long as the process."""
    sys.setswitchinterval(SWITCH_S)
    know_types()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])
    leave_alone()


def know_types() -> list[type[msgspec.Struct]]:
    """Have msgspec learn every Struct there is, before there are threads; returns them.

    It learns a type at its first use, and a second thread that decodes the type in the middle of that finds half of it
    and takes the process down with it (0.22, by a null pointer).
    """
    known = []
    for kind in _kinds(msgspec.Struct):
        try:
            msgspec.json.Decoder(kind)
        except TypeError:  # a generic base, or one that is never decoded
            continue
        known.append(kind)
    return known


def _kinds(base: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds(kind)


def leave_alone() -> None:
    """The collector looks no more at what is there now: modules, or the rows of a state that was loaded."""
    gc.collect()
    gc.freeze()
