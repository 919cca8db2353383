"""The next release, as far as a test needs one: the same code, feature level 2, and what needs it: one more command,
one more field of a setting.

python -m tests.support.next_release serve ...
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from statemachine import cluster, commands, settings
from statemachine.levels import Since
from statemachine.values import Short

LEVEL = 2


class Salute(commands.Base, frozen=True, tag="test.salute"):
    """Leave an event."""

    text: Short


def salute(txn: Any, command: Salute) -> bool:
    txn.emit("Saluted", "cluster", text=command.text)
    return True


class Controller(settings.Controller, frozen=True):
    note: Annotated[Short, Since(LEVEL)] = ""


def install() -> None:
    """Become the next release: before anything imports these names from where they are defined."""
    known: Any = commands
    known.Effect = commands.Effect | Salute
    known.Command = known.Effect | commands.Once | commands.Signed
    known._decoder = msgspec.msgpack.Decoder(known.Command)
    commands.FEATURE_LEVELS[Salute] = LEVEL
    changed: Any = cluster
    changed.SUPPORTED_FEATURE_LEVEL = LEVEL
    settings.GROUPS["controller"] = Controller
    from statemachine.machine import HANDLERS

    HANDLERS[Salute] = salute


if __name__ == "__main__":
    install()
    from ringrift_cluster.cli.main import main

    main()
