"""The attempts whose keepers were alive on a host at the last look, and what is passed on to them by the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from executors.drivers.bringing import Carrier
from executors.drivers.line import Line
from executors.drivers.link import Link
from executors.processes import Identity


@dataclass(slots=True)
class Life:
    folder: Path
    process: Identity
    #: the end of its lease on this machine's clock; 0: as it was when it started
    lease_ends_at_s: float = 0.0
    #: stop or kill, until a look has passed it on
    signal: str = ""
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class Lives:
    """By the names of their folders. Belongs to one event loop."""

    def __init__(self, line: Line, carrier: Carrier) -> None:
        self._line = line
        self._carrier = carrier
        self._lives: dict[str, Life] = {}

    def __len__(self) -> int:
        return len(self._lives)

    @property
    def processes(self) -> set[Identity]:
        return {life.process for life in self._lives.values()}

    def note(self, folder: Path, seen: Mapping[str, Any]) -> Identity:
        """A keeper that the host says is alive."""
        process = Identity(self._line.boot_id, int(seen["pid"]), int(seen["ticks"]))
        self._line.wake.set()
        return self._lives.setdefault(folder.name, Life(folder, process)).process

    def forget(self, folder: Path) -> None:
        self._lives.pop(folder.name, None)

    async def gone(self, folder: Path) -> None:
        """Return when a look has found its keeper gone."""
        if life := self._lives.get(folder.name):
            await life.gone.wait()

    def tell(self, folder: Path, signal: str) -> None:
        if life := self._lives.get(folder.name):
            life.signal = signal
            self._line.wake.set()

    def renew(self, folder: Path, ends_at_s: float) -> None:
        if life := self._lives.get(folder.name):
            life.lease_ends_at_s = ends_at_s

    async def look(self, link: Link) -> bool:
        """Pass on and bring what there is; returns whether more waits to be brought. Raises Unreachable, Rebooted."""
        asked = {}
        for name, life in list(self._lives.items()):
            asked[name] = {
                "pid": life.process.pid,
                "ticks": life.process.ticks,
                "lease": self._line.over_there(life.lease_ends_at_s) if life.lease_ends_at_s else 0.0,
                "signal": life.signal,
                "files": await self._carrier.brought(life.folder),
            }
        answer = await link.call("look", jobs=asked)
        self._line.heard(answer)
        body, more = answer["body"], False
        for name, seen in answer["jobs"].items():
            found, size = self._lives.get(name), sum(count for _, count, _ in seen["files"].values())
            part, body = body[:size], body[size:]
            if found is None:
                continue
            more |= await self._carrier.mirror(found.folder, part, seen["files"])
            if found.signal == asked[name]["signal"]:
                found.signal = ""
            if not seen["alive"]:
                del self._lives[name]
                found.gone.set()
        return more
