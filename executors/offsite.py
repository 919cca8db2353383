"""What a node does about the object store that it has access to.

put      files that the plan gives to the store by way of this node
restore  files that somebody asks this node for, and that the store has
audit    now and then, on one of the nodes with access: what is in the store against the rows
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context

from executors.bench import Bench
from executors.blobs import BlobError
from executors.book import Book
from executors.inventory import Inventory
from executors.ports import ClusterError
from executors.scrub import Scrub
from executors.transfers import Vault
from statemachine import queries
from statemachine.commands import AddHolder, DropHolder
from statemachine.copies import Copy
from statemachine.state import State

log = logging.getLogger(__name__)

#: an object that no row names is deleted at this age
STORED_S = 86_400.0
#: an audit that failed is tried again after this long: doubles up to the cap
AUDIT_AGAIN_S = 60.0
AUDIT_CAP_S = 3600.0
#: files that are fetched from the object store for others at a time
RESTORED = 16


class Offsite:
    """Belongs to one event loop."""

    def __init__(
        self, bench: Bench, vault: Vault, peer: str, inventory: Inventory, scrub: Scrub, fail: Callable[[str], None]
    ) -> None:
        """`fail` is told what could not be done."""
        self._bench = bench
        self._vault = vault
        self._peer = peer
        self._inventory = inventory
        self._scrub = scrub
        self._fail = fail
        self._transfers = bench.transfers
        #: files that this node put into the store
        self.stored = 0
        #: why the last audit failed; empty when it did not
        self.trouble = ""
        self._audited_s = float("-inf")
        self._audits = Book(bench.clock.boot_s, first_s=AUDIT_AGAIN_S, cap_s=AUDIT_CAP_S)
        #: files that are fetched from the store for others
        self._restoring: dict[str, asyncio.Task[None]] = {}

    def takes(self, store: str) -> bool:
        """Whether this node has access to the store, and the store answered lately."""
        return self._vault.name == store and not self._transfers.book.wait_s(store)

    async def put(self, copy: Copy) -> bool:
        """Put a file of this node into the store, read once more on the way; whether it is there."""
        vault, book = self._vault, self._transfers.book
        path = self._bench.blobs.place(copy.digest)
        with self._bench.blobs.pinned([copy.digest]):
            try:
                if await self._scrub.digest(path) != copy.digest:
                    await self._scrub.condemn(copy.digest)
                    return False
                await self._transfers.pace.take(copy.size_bytes)
                await vault.put(copy.digest, path)
            except FileNotFoundError:
                return False  # evicted meanwhile
            except BlobError as error:
                book.failed(vault.name)
                self._fail(str(error))
                log.warning("event=store_waits digest=%s store=%s error=%s", copy.digest, vault.name, error)
                return False
        book.answered(vault.name)
        await self._bench.cluster.propose([AddHolder(copy.digest, vault.name)])
        self.stored += 1
        return True

    def restore(self, digest: str) -> None:
        """Begin to get a file for somebody who asks for it, in this node's own name: whoever asks may do less."""
        if digest not in self._restoring and len(self._restoring) < RESTORED:
            task = asyncio.create_task(self._restore(digest), name=f"restore of {digest}", context=Context())
            self._restoring[digest] = task
            task.add_done_callback(lambda _: self._restoring.pop(digest, None))

    async def _restore(self, digest: str) -> None:
        try:
            item = await self._bench.resolved(digest)
            if await self._inventory.make_room(digest, item.size_bytes):
                await self._transfers.round(digest, item.size_bytes, item.holders, item.gates)
        except (ClusterError, BlobError, OSError) as error:
            self._fail(str(error) or type(error).__name__)
            log.warning("event=restore_failed digest=%s error=%s", digest, error)

    async def audit(self, every_s: float, *, asked: bool) -> None:
        """Bring the store and the rows together, `every_s` after the last time, or sooner when that failed.

        When somebody `asked` for a look, one that failed does not wait any longer.
        """
        store, now = self._vault.name, self._bench.clock.boot_s()
        if asked:
            self._audits.clear()
        if now - self._audited_s < every_s or self._audits.wait_s(store):
            return
        try:
            await self._audit()
        except (BlobError, ClusterError, OSError) as error:
            self._audits.failed(store)
            self.trouble = f"{store} could not be compared with the rows and is tried again within the hour: {error}"
            log.warning("event=audit_waits store=%s retry_s=%.0f error=%s", store, self._audits.wait_s(store), error)
            return
        self._audits.answered(store)
        self._audited_s, self.trouble = now, ""

    async def _audit(self) -> None:
        """On the first node of those that have access. Raises BlobError, ClusterError and OSError."""
        vault, store = self._vault, self._vault.name

        def ask(state: State) -> tuple[bool, frozenset[str], frozenset[str]]:
            near = [p for p in queries.keepers_of(state, store) if not p.draining]
            held = frozenset(d for d, row in state.artifacts.items() if store in row.holders)
            return bool(near) and near[0].peer == self._peer, frozenset(state.artifacts), held

        # The rows are read before the store: what a row says is there was put before it was said.
        (elected, known, held), _ = await self._bench.cluster.read(ask)
        if not elected:
            return
        there: set[str] = set()
        old: list[str] = []
        async for digest, age_s in vault.listed():
            there.add(digest)
            if digest not in known and age_s >= STORED_S:
                old.append(digest)
        old = await self._inventory.unknown(old, store)
        for digest in old:
            await vault.delete(digest)
        missing = sorted(held - there)
        await self._bench.propose_all([DropHolder(digest, store) for digest in missing])
        log.info(
            "event=store_listed store=%s files=%d deleted=%d missing=%d", store, len(there), len(old), len(missing)
        )
