"""Where pysyncobj takes time, randomness, storage and its codec from outside.

The library reads these as names of its module, so they are set there once, for the process. Time and
randomness stay a matter of the thread: `outside.clock` and `outside.rng` may be replaced in one thread
(the simulation does) without touching another.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import pysyncobj.syncobj as library


class Outside(threading.local):
    """This thread's clock (seconds, monotonic) and random source for the library."""

    def __init__(self) -> None:
        self.clock: Callable[[], float] = time.monotonic
        self.rng: random.Random = random.Random()


outside = Outside()


class _Randomness:
    """Stands in for the module `random`."""

    @staticmethod
    def random() -> float:
        return outside.rng.random()


class OpaqueCommands:
    """Stands in for pickle: a command is its bytes, and there is one method to give them to.

    Nothing from a wire or a disk is ever unpickled: `loads` builds a call of method 0 with the bytes.
    """

    @staticmethod
    def loads(data: bytes) -> tuple[int, tuple[bytes]]:
        if type(data) is not bytes:
            raise TypeError("a command is bytes")
        return 0, (data,)

    @staticmethod
    def dumps(value: object) -> NoReturn:
        raise TypeError("nothing is pickled here; commands are bytes")


class NoPoller:
    """The library polls no sockets: the transport is ours."""

    def poll(self, timeout: float) -> None: ...


class NoSerializer:
    """Snapshots are ours. The library asks for pieces to send and is told there are none."""

    def getTransmissionData(self, transmission_id: object) -> None:  # noqa: N802 - the library's name
        return None

    def cancelTransmisstion(self, transmission_id: object) -> None: ...  # noqa: N802

    def checkSerializing(self) -> tuple[int, None]:  # noqa: N802
        return library.SERIALIZER_STATE.NOT_SERIALIZING, None


def _now() -> float:
    return outside.clock()


def _given_journal(journal: Any) -> Any:
    return journal


def _no_poller(poller_type: str) -> NoPoller:
    return NoPoller()


#: module attribute of pysyncobj.syncobj -> what it is here
SEAMS: dict[str, Any] = {
    "createJournal": _given_journal,
    "monotonicTime": _now,
    "random": _Randomness,
    "pickle": OpaqueCommands,
    "createPoller": _no_poller,
    "PIPE_NOTIFIER_ENABLED": False,
}


def install() -> None:
    """Set the seams. Safe to call again."""
    for name, value in SEAMS.items():
        setattr(library, name, value)
