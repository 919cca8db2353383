"""Reading the stored files again, slowly: a bad copy is taken out at once, withdrawn and fetched again."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from functools import partial
from pathlib import Path

from executors.bench import Bench
from executors.options import Options
from executors.pace import Pace
from statemachine.commands import AddHolder, DropHolder
from statemachine.settings import Artifacts

log = logging.getLogger(__name__)

#: bytes hashed between two looks at the clock
CHUNK_BYTES = 4 * 1024 * 1024


class Scrub:
    """Belongs to one event loop."""

    def __init__(self, bench: Bench, options: Options, peer: str, rng: random.Random) -> None:
        self._bench = bench
        self._options = options
        self._peer = peer
        self._rng = rng
        self._pace = Pace(options.scrub_bytes_per_s)
        #: every file is read once in this time
        self.every_ms = Artifacts().scrub_ms
        #: files whose holders say are bad, to be read before the others
        self.doubted: set[str] = set()
        self.scrubbed = self.quarantined = 0

    async def read_all(self) -> None:
        """Read every file once in `every_ms`, and those that somebody doubts first."""
        files = await self._bench.on_disk(self._bench.blobs.digests)
        order = sorted(files)
        # A node that is restarted often begins elsewhere each time.
        at = self._rng.randrange(len(order)) if order else 0
        began = self._bench.clock.boot_s()
        for done, digest in enumerate(order[at:] + order[:at], 1):
            await self._read_again(digest)
            # Spread over the whole time, so that it is never a load.
            await self._rest(began + done * self.every_ms / 1000 / len(order))
        if not order:
            await self._rest(began + self._options.storage_every_s)

    async def _rest(self, until_s: float) -> None:
        """Wait, but read at once what somebody doubts."""
        while True:
            for digest in sorted(self.doubted):
                await self._read_again(digest)
            left_s = until_s - self._bench.clock.boot_s()
            if left_s <= 0:
                return
            await asyncio.sleep(min(left_s, self._options.storage_every_s))

    async def _read_again(self, digest: str) -> None:
        """Compare one file with its name; a copy that went bad is out of the store when this returns."""
        path = self._bench.blobs.path(digest)
        doubted = digest in self.doubted
        self.doubted.discard(digest)
        if path is None:
            return
        try:
            actual = await self.digest(path)
        except FileNotFoundError:
            return  # evicted meanwhile
        self.scrubbed += 1
        if actual == digest:
            if doubted:
                await self._bench.cluster.propose([AddHolder(digest, self._peer)])
            return
        await self.condemn(digest)

    async def digest(self, path: Path) -> str:
        """The sha256 of a file, read at the pace of the scrub. Raises OSError."""
        hashed = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := await self._bench.on_disk(partial(file.read, CHUNK_BYTES)):
                await self._bench.on_disk(partial(hashed.update, chunk))
                await self._pace.take(len(chunk))
        return hashed.hexdigest()

    async def condemn(self, digest: str) -> None:
        """Take a bad copy out, say so, and fetch a good one."""
        aside = await self._bench.on_disk(partial(self._bench.blobs.quarantine, digest))
        self.quarantined += 1
        log.error("event=bad_copy digest=%s kept_at=%s", digest, aside)
        await self._bench.cluster.propose([DropHolder(digest, self._peer)])
        item = await self._bench.resolved(digest)
        if item.holders:
            await self._bench.transfers.fetch(item, partial(self._bench.resolved, digest))
