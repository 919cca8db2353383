"""What the attempts of one agent share: ports, stores, threads, counters."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from executors.blobs import Blobs
from executors.drivers.driver import Driver
from executors.ledger import Ledger, LedgerError
from executors.ports import Clock, Cluster
from executors.transfers import Transfers
from statemachine import queries
from statemachine.commands import Command
from statemachine.errors import Result
from statemachine.queries import ResolvedInput
from statemachine.settings import Timing

log = logging.getLogger(__name__)
T = TypeVar("T")

#: commands in one proposal, where there may be many
BATCH = 200


@dataclass
class Bench:
    """One for all attempts of an agent."""

    cluster: Cluster
    clock: Clock
    ledger: Ledger
    blobs: Blobs
    #: threads for hashing and large files; threads that only start processes
    disk: Executor
    starts: Executor
    data_dir: Path
    #: the machine on which attempts live
    driver: Driver
    margin_s: float
    max_log_bytes: int
    #: wakes the agent's loop
    wake: Callable[[], None]
    transfers: Transfers
    #: called when a checkpoint has been registered
    saved: Callable[[], None] = lambda: None
    #: told of GPUs on which an attempt's program has ended
    freed: Callable[[Collection[str]], None] = lambda gpus: None
    #: cores of programs; empty: any
    cpus: tuple[int, ...] = ()
    #: told of the files that the log has just been told this peer holds
    made: Callable[[Iterable[str]], None] = lambda digests: None
    timing: Timing = field(default_factory=Timing)
    #: when the last acknowledged sign of life was sent; every lease is counted from it
    heard_s: float = 0.0
    #: counters since the start
    started: int = 0
    restarted: int = 0
    completed: int = 0
    failed: int = 0

    @property
    def boot_id(self) -> str:
        return self.driver.boot_id

    async def on_disk(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.disk, call)

    async def resolved(self, digest: str) -> ResolvedInput:
        """Who has a file, by the rows as they are now. Raises ClusterUnavailable."""
        return (await self.cluster.read(lambda state: queries.resolve(state, "", digest)))[0]

    async def propose_all(self, commands: Sequence[Command]) -> list[Result]:
        """Commit commands in order, a batch in a proposal; one result each. Raises ClusterError."""
        results: list[Result] = []
        for at in range(0, len(commands), BATCH):
            results += await self.cluster.propose(commands[at : at + BATCH])
        return results

    def note(self, write: Callable[[str, int], None], key: tuple[str, int]) -> None:
        """Write to the ledger what saves work after a restart but is not needed to be right."""
        try:
            write(*key)
        except LedgerError as error:
            log.error("event=not_noted job=%s fence=%d error=%s", *key, error)
