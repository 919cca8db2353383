"""The directory of a node's files against what the rows say, and against its quota.

list    what is missing is withdrawn, what nobody names is deleted
evict   over the quota: release in the log first, delete after; the log never lets the last copy go
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from executors.bench import BATCH, Bench
from executors.blobs import Stored
from executors.options import Options
from executors.ports import ClusterError
from statemachine.commands import AddHolder, Command, DropHolder, ReleaseHolder
from statemachine.errors import Code, Done, Rejected
from statemachine.state import State

log = logging.getLogger(__name__)

#: a copy that the log did not let go is not asked for again in this time
KEPT_S = 300.0
#: evict until this share of the quota is used
EVICT_TO = 0.95


@dataclass(frozen=True, slots=True)
class FileRows:
    """What the committed rows say about files: every known digest, and those this peer is said to hold."""

    known: frozenset[str]
    held: frozenset[str]


def file_rows(state: State, peer: str) -> FileRows:
    held = frozenset(d for d, row in state.artifacts.items() if peer in row.holders)
    return FileRows(frozenset(state.artifacts), held)


class Inventory:
    """Belongs to one event loop."""

    def __init__(
        self, bench: Bench, options: Options, peer: str, fail: Callable[[str], None], look: Callable[[], None]
    ) -> None:
        """`fail` is told what could not be done, `look` when the directory must be listed again soon."""
        self._bench = bench
        self._options = options
        self._peer = peer
        self._fail = fail
        self._look = look
        self.files: list[Stored] = []
        #: wall time of the last list, in ms; 0: none yet
        self.listed_at_ms = 0
        self.evicted = 0
        #: until when a copy that the log keeps is left alone
        self._kept_s: dict[str, float] = {}

    async def take(self) -> None:
        """List the directory. Raises ClusterError."""
        bench = self._bench
        # The rows are read before the directory: what a row says is here was stored before it was said.
        rows, _ = await bench.cluster.read(partial(file_rows, peer=self._peer))
        self.files = await bench.on_disk(bench.blobs.stored)
        await bench.on_disk(bench.blobs.used_bytes)
        self.listed_at_ms = bench.clock.wall_ms()
        stored = {file.digest for file in self.files}
        missing = sorted(rows.held - stored)
        strays = sorted(d for d in stored & rows.known if d not in rows.held)
        commands: list[Command] = [DropHolder(digest, self._peer) for digest in missing]
        # What a lost answer or a crash left here is one more copy.
        commands += [AddHolder(digest, self._peer) for digest in strays]
        await bench.propose_all(commands)
        age_s = self._options.blob_min_age_s
        unnamed = await bench.on_disk(partial(bench.blobs.unnamed, rows.known, age_s))
        gone = await self.unknown(unnamed, self._peer)
        swept = await bench.on_disk(partial(bench.blobs.sweep, gone, age_s))
        self.files = [file for file in self.files if file.digest not in swept]
        if swept or missing or strays:
            log.info("event=files_listed deleted=%d missing=%d found=%d", len(swept), len(missing), len(strays))

    async def unknown(self, digests: Sequence[str], holder: str) -> list[str]:
        """Those that the log has no row for; where it has one, `holder` is noted to have the file.

        The rows that are read here may be old, as on a node that is cut off. What is deleted because of them is asked
        of the log itself. Raises ClusterError.
        """
        results = await self._bench.propose_all([AddHolder(digest, holder) for digest in digests])
        return [
            digest
            for digest, result in zip(digests, results, strict=True)
            if isinstance(result, Rejected) and result.code == Code.NOT_FOUND
        ]

    async def evict(self, wanted_bytes: int = 0) -> None:
        """Bring the store below its quota, with room for so much more, by what was used longest ago."""
        blobs = self._bench.blobs
        if not blobs.quota_bytes:
            return
        most = blobs.quota_bytes - wanted_bytes
        if blobs.taken_bytes <= most or await self._bench.on_disk(blobs.used_bytes) <= most:
            return
        self.files = await self._bench.on_disk(blobs.stored)
        excess = blobs.taken_bytes - min(most, int(blobs.quota_bytes * EVICT_TO))
        now = self._bench.clock.boot_s()
        unused_since_s = self._bench.clock.wall_ms() / 1000 - self._options.evict_min_age_s
        chosen: list[Stored] = []
        for file in sorted(self.files, key=lambda file: file.used_s):
            if excess <= 0 or len(chosen) >= BATCH:
                break
            if file.used_s > unused_since_s or file.digest in self._bench.transfers.arrived:
                continue  # its holding may be on its way into the log
            if self._kept_s.get(file.digest, 0.0) <= now and blobs.leave(file.digest):
                chosen.append(file)
                excess -= file.size_bytes
        await self._release(chosen)
        if not chosen:
            self._fail(f"the store is over its quota of {blobs.quota_bytes} bytes and nothing in it may go")

    async def _release(self, chosen: list[Stored]) -> None:
        """Withdraw the holdings in the log, and delete what it let go."""
        if not chosen:
            return
        bench, blobs, now = self._bench, self._bench.blobs, self._bench.clock.boot_s()
        try:
            results = await bench.cluster.propose([ReleaseHolder(file.digest, self._peer) for file in chosen])
        except ClusterError:
            # It may have been released; the next look at the directory finds a stray and says so.
            for file in chosen:
                blobs.keep_left(file.digest)
            raise
        back: list[Command] = []
        freed = 0
        for file, result in zip(chosen, results, strict=True):
            if not isinstance(result, Done):
                blobs.keep_left(file.digest)
                self._kept_s[file.digest] = now + KEPT_S
            elif not result.value:
                # The row does not name this copy, so nobody has looked whether there is another.
                blobs.keep_left(file.digest)
                self._look()
            elif await bench.on_disk(partial(blobs.delete_left, file.digest)):
                freed += file.size_bytes
                self.evicted += 1
            else:
                back.append(AddHolder(file.digest, self._peer))
        if back:
            await bench.cluster.propose(back)
        if freed:
            log.info("event=evicted bytes=%d asked=%d", freed, len(chosen))

    async def make_room(self, digest: str, size_bytes: int) -> bool:
        """Evict until a file finds room; false when it does not."""
        blobs = self._bench.blobs
        if not blobs.quota_bytes or blobs.taken_bytes + size_bytes <= blobs.quota_bytes:
            return True
        await self.evict(size_bytes)
        if blobs.taken_bytes + size_bytes <= blobs.quota_bytes:
            return True
        self._fail(f"no room for the file {digest} of {size_bytes} bytes within the quota")
        return False
