"""Everything before a program runs: its inputs, what an earlier attempt left, its folder, its keeper."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from executors import processes, templates
from executors.bench import Bench
from executors.checkpoints import BadCheckpoint, Checkpoint
from executors.folder import BadInputName, Folder
from executors.keepers import NoTree
from executors.ledger import LedgerError
from executors.outcome import Failure
from executors.ports import ClusterError
from executors.steps import Steps
from executors.transfers import HoldersGone
from statemachine.queries import Assignment, ResolvedInput
from statemachine.settings import Template

log = logging.getLogger(__name__)
T = TypeVar("T")
_encode = msgspec.msgpack.Encoder().encode


class Preparation:
    """One program's way from its template to a running keeper. `steps` are those of its attempt."""

    def __init__(self, bench: Bench, assignment: Assignment, template: Template, steps: Steps, grace_s: float) -> None:
        self._bench = bench
        self._assignment = assignment
        self._job = assignment.job
        self._template = template
        self._steps = steps
        self._grace_s = grace_s
        #: when its keeper was about to be started
        self.begun_s = 0.0

    async def inputs(self, fetching: Callable[[], None]) -> dict[str, Path]:
        """Input names to verified local files; `fetching` is told when they have to come from elsewhere.

        Raises HoldersGone, OSError, and CancelledError when it was called off.
        """
        inputs = self._assignment.inputs
        found = await self._bench.on_disk(self._at_hand) if inputs else {}
        missing = [item for item in inputs if item.name not in found]
        if missing:
            fetching()
            found |= dict(await self._steps.take(asyncio.gather(*(self._fetch(item) for item in missing))))
        return found

    def _at_hand(self) -> dict[str, Path]:
        paths = {item.name: self._bench.blobs.use(item.digest) for item in self._assignment.inputs}
        return {name: path for name, path in paths.items() if path is not None}

    async def _fetch(self, item: ResolvedInput) -> tuple[str, Path]:
        async def again() -> ResolvedInput:
            with contextlib.suppress(ClusterError):
                return await self._bench.resolved(item.digest)
            return item

        return item.name, await self._bench.transfers.fetch(item, again)

    async def take_up(self, here: Checkpoint, fetching: Callable[[], None]) -> None:
        """Have what an attempt on another node left. When nobody can give it, go on with what is `here`.

        Raises OSError, and CancelledError when it was called off.
        """
        saved, bench = self._assignment.checkpoint, self._bench
        if saved is None or await bench.on_disk(partial(here.goes_on_from, saved.digest)):
            return
        fetching()
        try:
            with bench.blobs.pinned([saved.digest]):
                _, packed = await self._steps.take(self._fetch(saved))
                await bench.on_disk(partial(here.unpack, packed, saved.digest))
        except (HoldersGone, BadCheckpoint) as error:
            log.warning("event=checkpoint_lost job=%s digest=%s error=%s", self._job.job, saved.digest, error)

    async def start(self, folder: Folder, files: dict[str, Path]) -> processes.Identity | Failure:
        """Make the folder and start the keeper. Raises CancelledError when it was called off before the start."""
        bench, driver, path = self._bench, self._bench.driver, folder.path
        order = await self._on_starts(partial(self._order, folder, files))
        if isinstance(order, Failure):
            return order
        try:
            saved = self._assignment.checkpoint
            packed = bench.blobs.path(saved.digest) if saved else None
            await self._steps.take(driver.furnish(folder, files, self._template, packed))
        except NoTree as error:
            return Failure("user", str(error))
        except OSError as error:
            return Failure("infrastructure", f"its folder could not be made: {error}")
        key = self._job.job, self._job.fence
        self.begun_s = bench.clock.boot_s()
        lease_end_s = bench.heard_s + self._job.lease_ms / 1000
        intend = partial(bench.ledger.intend, *key, _encode(self._assignment), str(path), bench.boot_id, self.begun_s)
        await self._on_starts(intend)
        try:
            process = await driver.start(path, order, lease_end_s)
        except OSError as error:
            return Failure("infrastructure", f"its keeper could not be started: {error}")
        try:
            await self._on_starts(partial(bench.ledger.handle, *key, process))
        except LedgerError as error:
            # The item is given back: nothing may run on for it that nobody knows of.
            await driver.end(path, process)
            return Failure("infrastructure", f"its start could not be noted, so it was ended: {error}")
        return process

    async def _on_starts(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._bench.starts, call)

    def _order(self, folder: Folder, files: dict[str, Path]) -> processes.Order | Failure:
        """Write what tells the program about its item, and fill in its template; blocks."""
        bench, work = self._bench, self._assignment.work
        seat = bench.driver.seat(folder)
        try:
            paths = folder.prepare(self._assignment, files, self._template, seat)
            rendered = templates.render(self._template, work.spec, self._job, paths, seat.environ)
        except (templates.TemplateError, BadInputName) as error:
            return Failure("user", str(error))
        except OSError as error:
            return Failure("infrastructure", f"its folder could not be made: {error}")
        return processes.Order(
            argv=rendered.argv,
            env=rendered.env,
            cwd=rendered.cwd,
            nice=rendered.nice,
            cpus=bench.cpus,
            grace_s=self._grace_s,
            margin_s=bench.margin_s,
            max_log_bytes=bench.max_log_bytes,
            result=rendered.result,
        )
