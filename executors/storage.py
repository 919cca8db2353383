"""Looking after the files of one node: what is done when, and what a node says about it.

tell       what arrived here and who sent wrong bytes, as soon as it happens
inventory  the directory is compared with the rows and kept within its quota
copying    what the plan gives to this node is fetched, or sent
offsite    with access to an object store: files are put there, and now and then it is compared with the rows
scrub      every file is read again, slowly
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from functools import partial

from msgspec import Struct

from executors.bench import BATCH, Bench
from executors.blobs import BlobError
from executors.copying import Copying
from executors.inventory import Inventory
from executors.offsite import Offsite
from executors.options import Options
from executors.ports import ClusterError
from executors.scrub import Scrub
from statemachine.commands import AddHolder, Command, DoubtHolder, DropHolder
from statemachine.settings import Artifacts
from statemachine.state import State

log = logging.getLogger(__name__)

#: files that arrive within this time are told together
GATHER_S = 0.05


class Fetching(Struct, frozen=True):
    """A file that is on its way here."""

    digest: str
    size_bytes: int
    received_bytes: int


class StorageStatus(Struct, frozen=True):
    """What a node says about its files; reading it costs nothing."""

    files: int = 0
    used_bytes: int = 0
    quota_bytes: int = 0
    #: wall time of the last look at the directory, in ms; 0 when it has never looked
    listed_at_ms: int = 0
    copied: int = 0
    sent: int = 0
    #: files that this node put into its object store
    stored: int = 0
    evicted: int = 0
    scrubbed: int = 0
    quarantined: int = 0
    fetched_files: int = 0
    fetched_bytes: int = 0
    fetching: tuple[Fetching, ...] = ()
    #: copies that this node was to make at its last look and has not
    waiting: int = 0
    last_error: str = ""


def _orders(state: State, peer: str) -> tuple[Artifacts, int, set[str]]:
    """The rules, how often a look was asked for, and the files of this peer that somebody doubts."""
    doubted = {d for d in state.index.doubted if peer in state.artifacts[d].doubted}
    return state.spreading, state.cluster.syncs, doubted


class Storage:
    """Belongs to the loop that calls `run`."""

    def __init__(self, bench: Bench, options: Options, peer: str, rng: random.Random | None = None) -> None:
        self._bench = bench
        self._options = options
        self._peer = peer
        self._transfers = bench.transfers
        self.inventory = Inventory(bench, options, peer, self._fail, self.look)
        self.scrub = Scrub(bench, options, peer, rng or random.Random())
        vault = bench.transfers.vault
        self.offsite = Offsite(bench, vault, peer, self.inventory, self.scrub, self._fail) if vault else None
        self.copying = Copying(bench, peer, self.inventory, self.offsite, self._fail)
        self._look = asyncio.Event()
        #: send at once what is missing elsewhere: this machine may not be here for long
        self._hurried = False
        #: how often a look was asked for by the last one of this process
        self._syncs: int | None = None
        self._listed_s = self._planned_s = float("-inf")
        self._last_error = ""
        #: something failed in the present look
        self._failed = False

    def status(self) -> StorageStatus:
        blobs, transfers = self._bench.blobs, self._transfers
        return StorageStatus(
            files=len(self.inventory.files),
            used_bytes=blobs.taken_bytes,
            quota_bytes=blobs.quota_bytes,
            listed_at_ms=self.inventory.listed_at_ms,
            copied=self.copying.copied,
            sent=self.copying.sent,
            stored=self.offsite.stored if self.offsite else 0,
            evicted=self.inventory.evicted,
            scrubbed=self.scrub.scrubbed,
            quarantined=self.scrub.quarantined,
            fetched_files=transfers.fetched_files,
            fetched_bytes=transfers.fetched_bytes,
            fetching=tuple(Fetching(d, *sizes) for d, sizes in sorted(transfers.under_way.items())),
            waiting=self.copying.waiting,
            last_error=self._last_error or (self.offsite.trouble if self.offsite else ""),
        )

    def restore(self, digest: str) -> bool:
        """Begin to get a file from the object store for somebody who asks for it; false without one."""
        if self.offsite is None:
            return False
        self.offsite.restore(digest)
        return True

    def look(self) -> None:
        """Look at the directory and the plan now."""
        self._listed_s = self._planned_s = float("-inf")
        self._look.set()

    def hurry(self) -> None:
        """Get to storage nodes what only this node has, now."""
        self._hurried = True
        self.look()

    async def run(self) -> None:
        """Until cancelled. What fails is tried again; it ends no other part of the node."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._forever(self._tell))
            group.create_task(self._forever(self._keep))
            group.create_task(self._forever(self.scrub.read_all))

    async def _forever(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await step()
            except (ClusterError, BlobError, OSError) as error:
                self._fail(str(error) or type(error).__name__)
                log.warning("event=storage_waits step=%s error=%s", step.__name__.strip("_"), self._last_error)
                await asyncio.sleep(self._options.storage_every_s)

    def _fail(self, sentence: str) -> None:
        """Show what went wrong until a whole look finds nothing wrong."""
        self._last_error = sentence
        self._failed = True

    async def _tell(self) -> None:
        transfers = self._transfers
        await transfers.news.wait()
        await asyncio.sleep(GATHER_S)
        transfers.news.clear()
        arrived = sorted(transfers.arrived)[:BATCH]
        wrong = sorted(transfers.wrong)[:BATCH]
        commands: list[Command] = [AddHolder(digest, self._peer) for digest in arrived]
        commands += [DoubtHolder(digest, holder, self._peer) for digest, holder in wrong]
        absent = sorted(transfers.absent)[:BATCH]
        if transfers.vault is not None:
            commands += [DropHolder(digest, transfers.vault.name) for digest in absent]
        try:
            await self._bench.cluster.propose(commands)
            transfers.absent.difference_update(absent)
            transfers.arrived.difference_update(arrived)
            transfers.wrong.difference_update(wrong)
        finally:
            if transfers.arrived or transfers.wrong or transfers.absent:
                transfers.news.set()

    async def _keep(self) -> None:
        """One look at what is due, then a rest."""
        (rules, syncs, doubted), _ = await self._bench.cluster.read(partial(_orders, peer=self._peer))
        self.scrub.every_ms = rules.scrub_ms
        self.scrub.doubted |= doubted
        asked, self._syncs = self._syncs is not None and syncs != self._syncs, syncs
        asked, self._hurried = asked or self._hurried, False
        now = self._bench.clock.boot_s()
        if asked:
            self.copying.anew()
        if asked or now - self._listed_s >= rules.manifest_age_ms / 1000:
            self._listed_s = now
            await self.inventory.take()
        await self.inventory.evict()
        if asked or self.copying.skip or now - self._planned_s >= rules.collect_ms / 1000:
            self._planned_s = now
            self._failed = False
            await self.copying.plan(rules, at_once=asked)
            while asked and self.copying.skip:
                # The newest files are in the last rows, and whoever asks may not be here for another look.
                await self.copying.plan(rules, at_once=True)
            if self.offsite is not None:
                await self.offsite.audit(rules.store_audit_ms / 1000, asked=asked)
            if not self._failed:
                self._last_error = ""
        try:
            async with asyncio.timeout(self._options.storage_every_s):
                await self._look.wait()
        except TimeoutError:
            return
        self._look.clear()
