"""This machine: attempts are its own processes, their folders lie on its own disk."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import TypeVar

from executors import collect, host, processes
from executors.folder import Folder, Seat
from executors.processes import Identity, Order
from statemachine.settings import Template

T = TypeVar("T")


class Local:
    """`disk` are threads for large files, `starts` threads that only start processes."""

    def __init__(self, data_dir: Path, disk: Executor, starts: Executor, boot_id: str = "") -> None:
        self.boot_id = boot_id or host.boot_id()
        self._data_dir = data_dir
        self._disk = disk
        self._starts = starts

    def reached(self) -> bool:
        return True

    def room(self) -> int:
        return sys.maxsize

    def facts(self) -> host.Facts:
        return host.facts(self._data_dir)

    def disks(self) -> tuple[host.Disk, ...]:
        usage = shutil.disk_usage(self._data_dir)
        return (host.Disk(usage.free, usage.total),)

    async def claim(self, incarnation: int, held: Collection[Path]) -> None:
        """Nobody else starts anything in this data directory."""

    def seat(self, folder: Folder) -> Seat:
        return Seat(folder.path, sys.executable, os.environ)

    async def furnish(
        self, folder: Folder, files: Mapping[str, Path], template: Template, checkpoint: Path | None
    ) -> None:
        making = asyncio.ensure_future(self._on(self._starts, partial(folder.furnish, files, template)))
        try:
            await asyncio.shield(making)
        except asyncio.CancelledError:
            await asyncio.wait([making])  # a thread cannot be called off, and nobody else may touch its folder
            raise

    async def start(self, folder: Path, order: Order, lease_ends_at_s: float) -> Identity:
        return await self._on(self._starts, partial(processes.start, folder, order, lease_ends_at_s, self.boot_id))

    async def find(self, folder: Path, known: Identity) -> Identity | None:
        if known.pid:
            return known if processes.alive(known, self.boot_id) else None
        return await self._on(self._disk, partial(processes.keeper_of, folder, self.boot_id))

    async def has_ended(self, folder: Path) -> bool:
        return processes.exit_record(folder) is not None

    async def gone(self, folder: Path, process: Identity) -> None:
        await processes.gone(process, self.boot_id)

    def stop(self, folder: Path, process: Identity) -> None:
        processes.stop(process, self.boot_id)

    def kill(self, folder: Path, process: Identity) -> None:
        processes.kill(process, self.boot_id)

    def put_down(self, folder: Path, process: Identity) -> None:
        self._disk.submit(processes.put_down, process, folder, self.boot_id)

    def renew(self, folder: Path, ends_at_s: float) -> None:
        processes.renew(folder, ends_at_s)

    async def end(self, folder: Path, process: Identity) -> None:
        await self._on(self._disk, partial(processes.end, process, folder, self.boot_id))

    async def end_leftovers(self, folder: Path) -> bool:
        return await self._on(self._disk, partial(processes.end_leftovers, folder, self.boot_id))

    async def gather(self, folder: Path, template: Template) -> None:
        await self._on(self._disk, partial(collect.end_the_rest, folder, self.boot_id))

    async def checkpoint(self, folder: Folder) -> Path | None:
        return None

    def ask(self, folder: Path, template: Template) -> bytes:
        return collect.ask(folder, template.result)

    async def clear(self, folder: Folder, *, checkpoint: str = "") -> None:
        await self._on(self._disk, partial(folder.clear, checkpoint=checkpoint))

    async def _on(self, threads: Executor, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, call)
