"""Looking after the files of one node: tell, list, evict, copy, send, read again.

tell    what arrived here and who sent wrong bytes, as soon as it happens
list    compare the directory with the rows: what is missing is withdrawn, what nobody names is deleted
evict   over the quota: release in the log first, delete after; the log never lets the last copy go
copy    on a storage node: fetch what the plan gives to it; on a node with access to an object store: put it there
send    on a holder: what a storage node was to fetch and could not (nobody reaches this node) is sent to it
audit   on one node with access to an object store, now and then: what is in it against the rows
scrub   read every file again, slowly; a bad copy is taken out at once, withdrawn and fetched again
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from msgspec import Struct

from executors.bench import Bench
from executors.blobs import BlobError, Stored
from executors.options import Options
from executors.pace import Pace
from executors.ports import ClusterError
from executors.sending import NotSent, Sender
from statemachine import copies, queries
from statemachine.commands import AddHolder, Command, DoubtHolder, DropHolder, ReleaseHolder
from statemachine.copies import Copy
from statemachine.errors import Code, Done, Rejected
from statemachine.queries import ResolvedInput
from statemachine.settings import Artifacts
from statemachine.state import State

log = logging.getLogger(__name__)

#: commands about holders in one proposal
HOLDERS_PER_BATCH = 200
#: files that arrive within this time are told together
GATHER_S = 0.05
#: bytes hashed between two looks at the clock
SCRUB_BYTES = 4 * 1024 * 1024
#: a copy that the log did not let go is not asked for again in this time
KEPT_S = 300.0
#: evict until this share of the quota is used
EVICT_TO = 0.95
#: an object that no row names is deleted at this age
STORED_S = 86_400.0
#: files that are fetched from the object store for others at a time
RESTORED = 16


@dataclass(frozen=True, slots=True)
class FileRows:
    """What the committed rows say about files: every known digest, and those this peer is said to hold."""

    known: frozenset[str]
    held: frozenset[str]


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


def file_rows(state: State, peer: str) -> FileRows:
    held = frozenset(d for d, row in state.artifacts.items() if peer in row.holders)
    return FileRows(frozenset(state.artifacts), held)


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
        self._rng = rng or random.Random()
        self._transfers = bench.transfers
        self._sender = Sender(bench.transfers)
        self._scrub_pace = Pace(options.scrub_bytes_per_s)
        self._rules = Artifacts()
        self._look = asyncio.Event()
        #: send at once what is missing elsewhere: this machine may not be here for long
        self._hurried = False
        #: how often a look was asked for by the last one of this process
        self._syncs: int | None = None
        self._listed_s = self._planned_s = float("-inf")
        self._listed_at_ms = 0
        self._files: list[Stored] = []
        #: where the next plan goes on among the rows
        self._skip = 0
        #: the copies of this node's concern that the present round of plans has met: (digest, target)
        self._met: set[tuple[str, str]] = set()
        #: since when a copy that this node could send has been missing
        self._missing_s: dict[tuple[str, str], float] = {}
        #: when a copy that failed was last tried
        self._tried_s: dict[tuple[str, str], float] = {}
        #: until when a copy that the log keeps is left alone
        self._kept_s: dict[str, float] = {}
        #: files whose holders say are bad, to be read before the others
        self._doubted: set[str] = set()
        self._copied = self._sent = self._stored = self._evicted = self._scrubbed = self._quarantined = 0
        self._waiting = 0
        self._last_error = ""
        #: something failed in the present look
        self._failed = False
        self._audited_s = float("-inf")
        #: files that are fetched from the object store for others
        self._restoring: dict[str, asyncio.Task[None]] = {}

    def status(self) -> StorageStatus:
        return StorageStatus(
            files=len(self._files),
            used_bytes=self._bench.blobs.taken_bytes,
            quota_bytes=self._bench.blobs.quota_bytes,
            listed_at_ms=self._listed_at_ms,
            copied=self._copied,
            sent=self._sent,
            stored=self._stored,
            evicted=self._evicted,
            scrubbed=self._scrubbed,
            quarantined=self._quarantined,
            fetched_files=self._transfers.fetched_files,
            fetched_bytes=self._transfers.fetched_bytes,
            fetching=tuple(Fetching(d, *sizes) for d, sizes in sorted(self._transfers.under_way.items())),
            waiting=self._waiting,
            last_error=self._last_error,
        )

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
            group.create_task(self._forever(self._scrub))

    async def _forever(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await step()
            except (ClusterError, BlobError, OSError) as error:
                self._fail(str(error) or type(error).__name__)
                log.warning("storage_waits step=%s error=%s", step.__name__.strip("_"), self._last_error)
                await asyncio.sleep(self._options.storage_every_s)

    def _fail(self, sentence: str) -> None:
        """Show what went wrong until a whole look finds nothing wrong."""
        self._last_error = sentence
        self._failed = True

    # --- tell -------------------------------------------------------------------------------------

    async def _tell(self) -> None:
        transfers = self._transfers
        await transfers.news.wait()
        await asyncio.sleep(GATHER_S)
        transfers.news.clear()
        arrived = sorted(transfers.arrived)[:HOLDERS_PER_BATCH]
        wrong = sorted(transfers.wrong)[:HOLDERS_PER_BATCH]
        commands: list[Command] = [AddHolder(digest, self._peer) for digest in arrived]
        commands += [DoubtHolder(digest, holder, self._peer) for digest, holder in wrong]
        absent = sorted(transfers.absent)[:HOLDERS_PER_BATCH]
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

    # --- list, evict, copy, send ------------------------------------------------------------------

    async def _keep(self) -> None:
        """One look at what is due, then a rest."""
        state_of = self._bench.cluster.read
        (rules, syncs, doubted), _ = await state_of(partial(_orders, peer=self._peer))
        self._rules = rules
        self._doubted |= doubted
        asked, self._syncs = self._syncs is not None and syncs != self._syncs, syncs
        asked, self._hurried = asked or self._hurried, False
        now = self._bench.clock.boot_s()
        if asked:
            self._transfers.book.clear()
            self._missing_s.clear()
            self._met.clear()
            self._skip = 0
        if asked or now - self._listed_s >= rules.manifest_age_ms / 1000:
            self._listed_s = now
            await self._list()
        await self._evict()
        if asked or self._skip or now - self._planned_s >= rules.collect_ms / 1000:
            self._planned_s = now
            self._failed = False
            await self._plan(at_once=asked)
            while asked and self._skip:
                # The newest files are in the last rows, and whoever asks may not be here for another look.
                await self._plan(at_once=True)
            if now - self._audited_s >= rules.store_audit_ms / 1000:
                self._audited_s = now
                await self._audit()
            if not self._failed:
                self._last_error = ""
        try:
            async with asyncio.timeout(self._options.storage_every_s):
                await self._look.wait()
        except TimeoutError:
            return
        self._look.clear()

    async def _list(self) -> None:
        bench = self._bench
        # The rows are read before the directory: what a row says is here was stored before it was said.
        rows, _ = await bench.cluster.read(partial(file_rows, peer=self._peer))
        self._files = await bench.on_disk(bench.blobs.stored)
        await bench.on_disk(bench.blobs.used_bytes)
        self._listed_at_ms = bench.clock.wall_ms()
        stored = {file.digest for file in self._files}
        missing = sorted(rows.held - stored)
        strays = sorted(d for d in stored & rows.known if d not in rows.held)
        commands: list[Command] = [DropHolder(digest, self._peer) for digest in missing]
        # What a lost answer or a crash left here is one more copy.
        commands += [AddHolder(digest, self._peer) for digest in strays]
        for at in range(0, len(commands), HOLDERS_PER_BATCH):
            await bench.cluster.propose(commands[at : at + HOLDERS_PER_BATCH])
        age_s = self._options.blob_min_age_s
        unnamed = await bench.on_disk(partial(bench.blobs.unnamed, rows.known, age_s))
        gone = await self._unknown(unnamed, self._peer)
        swept = await bench.on_disk(partial(bench.blobs.sweep, gone, age_s))
        self._files = [file for file in self._files if file.digest not in swept]
        if swept or missing or strays:
            log.info("files_listed deleted=%d missing=%d found=%d", len(swept), len(missing), len(strays))

    async def _unknown(self, digests: Sequence[str], holder: str) -> list[str]:
        """Those that the log has no row for; where it has one, `holder` is noted to have the file.

        The rows that are read here may be old, as on a node that is cut off. What is deleted because of them is asked
        of the log itself. Raises ClusterError.
        """
        found: list[str] = []
        for at in range(0, len(digests), HOLDERS_PER_BATCH):
            batch = digests[at : at + HOLDERS_PER_BATCH]
            results = await self._bench.cluster.propose([AddHolder(digest, holder) for digest in batch])
            found += [
                digest
                for digest, result in zip(batch, results, strict=True)
                if isinstance(result, Rejected) and result.code == Code.NOT_FOUND
            ]
        return found

    async def _evict(self, wanted_bytes: int = 0) -> None:
        """Bring the store below its quota, with room for so much more, by what was used longest ago."""
        blobs = self._bench.blobs
        if not blobs.quota_bytes:
            return
        most = blobs.quota_bytes - wanted_bytes
        if blobs.taken_bytes <= most or await self._bench.on_disk(blobs.used_bytes) <= most:
            return
        self._files = await self._bench.on_disk(blobs.stored)
        excess = blobs.taken_bytes - min(most, int(blobs.quota_bytes * EVICT_TO))
        now, unused_since_s = (
            self._bench.clock.boot_s(),
            self._bench.clock.wall_ms() / 1000 - self._options.evict_min_age_s,
        )
        chosen: list[Stored] = []
        for file in sorted(self._files, key=lambda file: file.used_s):
            if excess <= 0 or len(chosen) >= HOLDERS_PER_BATCH:
                break
            if file.used_s > unused_since_s or file.digest in self._transfers.arrived:
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
                self.look()
            elif await bench.on_disk(partial(blobs.delete_left, file.digest)):
                freed += file.size_bytes
                self._evicted += 1
            else:
                back.append(AddHolder(file.digest, self._peer))
        if back:
            await bench.cluster.propose(back)
        if freed:
            log.info("evicted bytes=%d asked=%d", freed, len(chosen))

    async def _plan(self, *, at_once: bool) -> None:
        """Look at the next rows of the plan; fetch what is this node's to have, send what waits too long for it."""
        plan, _ = await self._bench.cluster.read(lambda state: copies.plan_copies(state, self._skip))
        self._skip = plan.next
        mine = [copy for copy in plan.copies if self._peer in (copy.target, copy.via)]
        holds = [
            c
            for c in plan.copies
            if c.address and c.target != self._peer and any(name == self._peer for name, _ in c.sources)
        ]
        due = self._overdue(holds, at_once=at_once)
        self._remember(mine + holds)
        self._waiting = len(mine)
        for copy in self._in_turn(mine):
            if await self._try(copy, self._store if copy.via else self._copy):
                self._waiting -= 1
        for copy in self._in_turn(due):
            await self._try(copy, self._send)

    def _in_turn(self, wanted: list[Copy]) -> list[Copy]:
        """As many as one look carries out: none whose target is left alone for now, and last those that failed last."""
        able = [copy for copy in wanted if not self._transfers.book.wait_s(copy.target)]
        able.sort(key=lambda copy: self._tried_s.get((copy.digest, copy.target), float("-inf")))
        return able[: self._rules.files_per_job]

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
        if not self._skip:
            self._missing_s = {key: at for key, at in self._missing_s.items() if key in self._met}
            self._tried_s = {key: at for key, at in self._tried_s.items() if key in self._met}
            self._met.clear()

    async def _copy(self, copy: Copy) -> bool:
        """Fetch a file; whether it is here."""
        if self._bench.blobs.path(copy.digest) is not None:
            return True
        if not await self._make_room(copy.digest, copy.size_bytes):
            return False
        try:
            await self._transfers.round(copy.digest, copy.size_bytes, copy.sources, copy.gates)
        except BlobError as error:
            self._fail(str(error))
            log.info("copy_waits digest=%s error=%s", copy.digest, error)
            return False
        self._copied += 1
        return True

    async def _make_room(self, digest: str, size_bytes: int) -> bool:
        blobs = self._bench.blobs
        if not blobs.quota_bytes or blobs.taken_bytes + size_bytes <= blobs.quota_bytes:
            return True
        await self._evict(size_bytes)
        if blobs.taken_bytes + size_bytes <= blobs.quota_bytes:
            return True
        self._fail(f"no room for the file {digest} of {size_bytes} bytes within the quota")
        return False

    # --- object store -----------------------------------------------------------------------------

    async def _store(self, copy: Copy) -> bool:
        """Put a file into the object store, read once more on the way; whether it is there."""
        vault, book = self._transfers.vault, self._transfers.book
        if vault is None or vault.name != copy.target or book.wait_s(vault.name) or not await self._copy(copy):
            return False
        path = self._bench.blobs.place(copy.digest)
        with self._bench.blobs.pinned([copy.digest]):
            try:
                if await self._digest(path) != copy.digest:
                    await self._condemn(copy.digest)
                    return False
                await self._transfers.pace.take(copy.size_bytes)
                await vault.put(copy.digest, path)
            except FileNotFoundError:
                return False  # evicted meanwhile
            except BlobError as error:
                book.failed(vault.name)
                self._fail(str(error))
                log.warning("store_waits digest=%s store=%s error=%s", copy.digest, vault.name, error)
                return False
        book.answered(vault.name)
        await self._bench.cluster.propose([AddHolder(copy.digest, vault.name)])
        self._stored += 1
        return True

    def restore(self, digest: str) -> bool:
        """Begin to get a file from the object store for somebody who asks for it; false when that cannot be."""
        if self._transfers.vault is None:
            return False
        if digest not in self._restoring and len(self._restoring) < RESTORED:
            task = asyncio.create_task(self._restore(digest), name=f"restore of {digest}")
            self._restoring[digest] = task
            task.add_done_callback(lambda _: self._restoring.pop(digest, None))
        return True

    async def _restore(self, digest: str) -> None:
        try:
            item = await self._resolved(digest)
            if await self._make_room(digest, item.size_bytes):
                await self._transfers.round(digest, item.size_bytes, item.holders, item.gates)
        except (ClusterError, BlobError, OSError) as error:
            self._fail(str(error) or type(error).__name__)
            log.warning("restore_failed digest=%s error=%s", digest, error)

    async def _audit(self) -> None:
        """Bring the object store and the rows together, on the first node of those that have access to it."""
        vault = self._transfers.vault
        if vault is None:
            return
        store = vault.name

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
        try:
            async for digest, age_s in vault.listed():
                there.add(digest)
                if digest not in known and age_s >= STORED_S:
                    old.append(digest)
            old = await self._unknown(old, store)
            for digest in old:
                await vault.delete(digest)
        except BlobError as error:
            self._fail(str(error))
            log.warning("audit_waits store=%s error=%s", store, error)
            return
        missing = sorted(held - there)
        for at in range(0, len(missing), HOLDERS_PER_BATCH):
            batch = missing[at : at + HOLDERS_PER_BATCH]
            await self._bench.cluster.propose([DropHolder(digest, store) for digest in batch])
        log.info("store_listed store=%s files=%d deleted=%d missing=%d", store, len(there), len(old), len(missing))

    # --- send -------------------------------------------------------------------------------------

    def _overdue(self, missing: list[Copy], *, at_once: bool) -> list[Copy]:
        """Copies that should have been fetched by now, the oldest first."""
        now = self._bench.clock.boot_s()
        since = self._missing_s
        for copy in missing:
            since.setdefault((copy.digest, copy.target), now)
        wait_s = 0.0 if at_once else self._rules.push_after_ms / 1000
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
            log.info("send_waits digest=%s target=%s error=%s", copy.digest, copy.target, error)
            return False
        self._sent += 1
        return True

    # --- scrub ------------------------------------------------------------------------------------

    async def _scrub(self) -> None:
        """Read every file once in `scrub_ms`, and those that somebody doubts first."""
        files = await self._bench.on_disk(self._bench.blobs.digests)
        order = sorted(files)
        # A node that is restarted often begins elsewhere each time.
        at = self._rng.randrange(len(order)) if order else 0
        began = self._bench.clock.boot_s()
        for done, digest in enumerate(order[at:] + order[:at], 1):
            await self._read_again(digest)
            # Spread over the whole time, so that it is never a load.
            await self._rest(began + done * self._rules.scrub_ms / 1000 / len(order))
        if not order:
            await self._rest(began + self._options.storage_every_s)

    async def _rest(self, until_s: float) -> None:
        """Wait, but read at once what somebody doubts."""
        while True:
            for digest in sorted(self._doubted):
                await self._read_again(digest)
            left_s = until_s - self._bench.clock.boot_s()
            if left_s <= 0:
                return
            await asyncio.sleep(min(left_s, self._options.storage_every_s))

    async def _read_again(self, digest: str) -> None:
        """Compare one file with its name; a copy that went bad is out of the store when this returns."""
        path = self._bench.blobs.path(digest)
        doubted = digest in self._doubted
        self._doubted.discard(digest)
        if path is None:
            return
        try:
            actual = await self._digest(path)
        except FileNotFoundError:
            return  # evicted meanwhile
        self._scrubbed += 1
        if actual == digest:
            if doubted:
                await self._bench.cluster.propose([AddHolder(digest, self._peer)])
            return
        await self._condemn(digest)

    async def _digest(self, path: Path) -> str:
        hashed = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := await self._bench.on_disk(partial(file.read, SCRUB_BYTES)):
                await self._bench.on_disk(partial(hashed.update, chunk))
                await self._scrub_pace.take(len(chunk))
        return hashed.hexdigest()

    async def _condemn(self, digest: str) -> None:
        """Take a bad copy out, say so, and fetch a good one."""
        aside = await self._bench.on_disk(partial(self._bench.blobs.quarantine, digest))
        self._quarantined += 1
        log.error("bad_copy digest=%s kept_at=%s", digest, aside)
        await self._bench.cluster.propose([DropHolder(digest, self._peer)])
        item, _ = await self._bench.cluster.read(lambda state: queries.resolve(state, "", digest))
        if item.holders:
            await self._transfers.fetch(item, partial(self._resolved, digest))

    async def _resolved(self, digest: str) -> ResolvedInput:
        return (await self._bench.cluster.read(lambda state: queries.resolve(state, "", digest)))[0]
