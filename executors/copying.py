"""The copies that are a node's to make, by the plan.

copy    fetch what the plan gives to this node; with access to an object store: put it there
send    what another node was to fetch from this one and could not (nobody reaches this one) is sent to it
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from executors.bench import Bench
from executors.blobs import BlobError
from executors.inventory import Inventory
from executors.offsite import Offsite
from executors.sending import NotSent, Sender
from statemachine import copies
from statemachine.copies import Copy
from statemachine.settings import Artifacts

log = logging.getLogger(__name__)


class Copying:
    """Belongs to one event loop."""

    def __init__(
        self, bench: Bench, peer: str, inventory: Inventory, offsite: Offsite | None, fail: Callable[[str], None]
    ) -> None:
        """`fail` is told what could not be done."""
        self._bench = bench
        self._peer = peer
        self._inventory = inventory
        self._offsite = offsite
        self._fail = fail
        self._transfers = bench.transfers
        self._sender = Sender(bench.transfers)
        #: where the next plan goes on among the rows; 0: they have been gone through
        self.skip = 0
        #: the copies of this node's concern that the present round of plans has met: (digest, target)
        self._met: set[tuple[str, str]] = set()
        #: since when a copy that this node could send has been missing
        self._missing_s: dict[tuple[str, str], float] = {}
        #: when a copy that failed was last tried
        self._tried_s: dict[tuple[str, str], float] = {}
        self.copied = self.sent = 0
        #: copies that this node was to make at its last look and has not
        self.waiting = 0

    def anew(self) -> None:
        """Begin at the first row, and leave nobody alone any more."""
        self._transfers.book.clear()
        self._missing_s.clear()
        self._met.clear()
        self.skip = 0

    async def plan(self, rules: Artifacts, *, at_once: bool) -> None:
        """Look at the next rows of the plan; fetch what is this node's to have, send what waits too long for it."""
        plan, _ = await self._bench.cluster.read(lambda state: copies.plan_copies(state, self.skip))
        self.skip = plan.next
        mine = [copy for copy in plan.copies if self._peer in (copy.target, copy.via)]
        holds = [
            c
            for c in plan.copies
            if c.address and c.target != self._peer and any(name == self._peer for name, _ in c.sources)
        ]
        due = self._overdue(holds, 0.0 if at_once else rules.push_after_ms / 1000)
        self._remember(mine + holds)
        self.waiting = len(mine)
        for copy in self._in_turn(mine, rules.files_per_job):
            if await self._try(copy, self._store if copy.via else self._copy):
                self.waiting -= 1
        for copy in self._in_turn(due, rules.files_per_job):
            await self._try(copy, self._send)

    def _in_turn(self, wanted: list[Copy], most: int) -> list[Copy]:
        """As many as one look carries out: none whose target is left alone for now, and last those that failed last."""
        able = [copy for copy in wanted if not self._transfers.book.wait_s(copy.target)]
        able.sort(key=lambda copy: self._tried_s.get((copy.digest, copy.target), float("-inf")))
        return able[:most]

    async def _try(self, copy: Copy, carry_out: Callable[[Copy], Awaitable[bool]]) -> bool:
        key = copy.digest, copy.target
        # Noted before: an error that ends this look must not bring the same copy to the front of the next one.
        self._tried_s[key] = self._bench.clock.boot_s()
        done = await carry_out(copy)
        if done:
            self._tried_s.pop(key, None)
        return done

    def _remember(self, met: list[Copy]) -> None:
        """At the end of the rows, forget what no plan of this round has met."""
        self._met.update((copy.digest, copy.target) for copy in met)
        if not self.skip:
            self._missing_s = {key: at for key, at in self._missing_s.items() if key in self._met}
            self._tried_s = {key: at for key, at in self._tried_s.items() if key in self._met}
            self._met.clear()

    async def _copy(self, copy: Copy) -> bool:
        """Fetch a file; whether it is here."""
        if self._bench.blobs.path(copy.digest) is not None:
            return True
        if not await self._inventory.make_room(copy.digest, copy.size_bytes):
            return False
        try:
            await self._transfers.round(copy.digest, copy.size_bytes, copy.sources, copy.gates)
        except BlobError as error:
            self._fail(str(error))
            log.info("event=copy_waits digest=%s error=%s", copy.digest, error)
            return False
        self.copied += 1
        return True

    async def _store(self, copy: Copy) -> bool:
        """Put a file into the object store, fetched before where need be; whether it is there."""
        offsite = self._offsite
        if offsite is None or not offsite.takes(copy.target):
            return False
        return await self._copy(copy) and await offsite.put(copy)

    def _overdue(self, missing: list[Copy], wait_s: float) -> list[Copy]:
        """Copies that have been missing for `wait_s`, the oldest first."""
        now = self._bench.clock.boot_s()
        since = self._missing_s
        for copy in missing:
            since.setdefault((copy.digest, copy.target), now)
        due = [c for c in missing if now - since[c.digest, c.target] >= wait_s]
        return sorted(due, key=lambda c: since[c.digest, c.target])

    async def _send(self, copy: Copy) -> bool:
        """Send a file; whether its target has it."""
        path = self._bench.blobs.path(copy.digest)
        if path is None or self._transfers.book.wait_s(copy.target):
            return False
        try:
            with self._bench.blobs.pinned([copy.digest]):
                await self._sender.send(path, copy)
        except NotSent as error:
            self._fail(str(error))
            log.info("event=send_waits digest=%s target=%s error=%s", copy.digest, copy.target, error)
            return False
        self.sent += 1
        return True
