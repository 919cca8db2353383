"""Getting files from the nodes that hold them, whole and verified.

round      every holder once: those that answered lately first, for each node in an order of its own, so
           that fifty nodes that want one file spread over those that have it
busy       a holder that sends enough already says when to come back; nothing counts as failed then
resume     what arrived is kept, and the next holder is asked for the rest
verify     the bytes are hashed as they are written; a file gets its name only when they fit
store      what no node delivers comes from an object store, directly or through a node that has access to it
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import httpx

from executors.blobs import BlobError, Blobs, TooLarge, digest_of
from executors.book import Book
from executors.download import BusyError, Download
from executors.pace import Pace
from statemachine.queries import ResolvedInput

log = logging.getLogger(__name__)
Holder = tuple[str, str]

#: rounds after which a file that every holder has refused is given up
ROUNDS = 3
LONGEST_PAUSE_S = 5.0
#: a holder that sent wrong bytes of a file is not asked for that file again in this time
CAUGHT_S = 600.0


class HoldersGone(BlobError):  # noqa: N818
    """No holder could deliver the file; the text says what each of them answered."""

    def __init__(self, text: str, retry_after_s: float = 0.0, unreachable: bool = False) -> None:
        super().__init__(text)
        #: above 0: a holder is busy and asked to come back then
        self.retry_after_s = retry_after_s
        #: a holder that may have the file did not answer
        self.unreachable = unreachable


class Vault(Protocol):
    """A place outside of the cluster that holds files, such as a bucket. All calls raise BlobError and OSError."""

    #: as a holder, and as the label of the nodes that have access to it
    name: str

    async def get(self, digest: str, target: Path, size_bytes: int) -> bool:
        """Write the file to `target`, at most so many bytes (0: any); false when it is not there."""
        ...

    async def put(self, digest: str, source: Path) -> None:
        """Store a verified file, whole or not at all."""
        ...

    def listed(self) -> AsyncIterator[tuple[str, float]]:
        """(digest, age in seconds) of everything in it."""
        ...

    async def delete(self, digest: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a file is tried for, in seconds."""

    #: while holders cannot be reached: they may come back, or send it to a node that can
    unreachable_s: float = 60.0
    #: while holders have too much to do
    busy_s: float = 300.0
    #: between two rounds: this, times the square of their number
    pause_s: float = 0.2


@dataclass
class Transfers:
    """What one node fetches. Belongs to one event loop."""

    blobs: Blobs
    http: httpx.AsyncClient
    #: this node: it is no holder to ask, and its name makes its order of the others
    peer: str = ""
    pace: Pace = field(default_factory=Pace)
    book: Book = field(default_factory=Book)
    vault: Vault | None = None
    patience: Patience = Patience()
    rng: random.Random = field(default_factory=random.Random)
    clock_s: Callable[[], float] = time.monotonic
    #: files that arrived and whose new holder the cluster does not know yet
    arrived: set[str] = field(default_factory=set)
    #: holders caught with wrong bytes and not reported yet: (digest, holder)
    wrong: set[tuple[str, str]] = field(default_factory=set)
    #: files that the object store should have and has not, not reported yet
    absent: set[str] = field(default_factory=set)
    #: until when those are not asked again
    _caught_until_s: dict[tuple[str, str], float] = field(default_factory=dict)
    #: set when there is something in `arrived`, `wrong` or `absent`
    news: asyncio.Event = field(default_factory=asyncio.Event)
    fetched_bytes: int = 0
    fetched_files: int = 0
    #: by digest: how large a file is that is on its way, and how much of it is here
    under_way: dict[str, tuple[int, int]] = field(default_factory=dict)
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(4))

    async def fetch(self, item: ResolvedInput, again: Callable[[], Awaitable[ResolvedInput]]) -> Path:
        """The file, from here or from whoever has it; `again` asks the rows who does by now.

        Raises HoldersGone and OSError.
        """
        began = self.clock_s()
        attempt = 0
        while True:
            try:
                return await self.round(item.digest, item.size_bytes, item.holders, item.gates)
            except HoldersGone as error:
                waited = self.clock_s() - began
                if error.retry_after_s:
                    if waited > self.patience.busy_s:
                        raise
                    pause = error.retry_after_s * self.rng.uniform(0.5, 1.0)
                else:
                    attempt += 1
                    if attempt >= ROUNDS and (not error.unreachable or waited > self.patience.unreachable_s):
                        raise
                    pause = min(self.patience.pause_s * attempt * attempt, LONGEST_PAUSE_S)
            await asyncio.sleep(pause)
            item = await again()

    async def round(
        self, digest: str, size_bytes: int, holders: Sequence[Holder], gates: Sequence[Holder] = ()
    ) -> Path:
        """The file, from here or from the first of `holders` (name, address) that delivers it whole; else from the
        object store, where this node has access to it, or through one of the `gates`, which have.

        What arrived before a holder was lost is kept and the next one is asked for the rest. A holder
        whose bytes do not fit the digest is not asked again. Raises HoldersGone and OSError.
        """
        async with self.blobs.arrivals.alone(digest):
            found = await self.blobs.run(partial(self.blobs.use, digest))
            if found is None:
                async with self._slots:
                    self.under_way[digest] = (size_bytes, 0)
                    try:
                        found = await self._from_any(digest, size_bytes, holders, gates)
                    finally:
                        del self.under_way[digest]
                self.arrived.add(digest)
                self.news.set()
            return found

    async def _from_any(self, digest: str, size_bytes: int, holders: Sequence[Holder], gates: Sequence[Holder]) -> Path:
        said: list[str] = []
        try:
            return await self._from_holders(digest, size_bytes, self._order(digest, holders), said)
        except HoldersGone as error:
            # Nobody asks the store for what a busy node will send.
            if error.retry_after_s or not gates:
                raise
            unreachable = error.unreachable
        if self.vault is not None and any(name == self.peer for name, _ in gates):
            if path := await self._from_vault(self.vault, digest, size_bytes, said):
                return path
        elif others := self._order(digest, gates):
            return await self._from_holders(digest, size_bytes, others, said)
        raise HoldersGone(_given_up(digest, said), unreachable=unreachable)

    async def _from_holders(self, digest: str, size_bytes: int, holders: Sequence[Holder], said: list[str]) -> Path:
        busy: list[float] = []
        unreachable: list[str] = []
        answered: list[Holder] = []
        for name, address in holders:
            if self._caught_until_s.get((digest, name), 0.0) > self.clock_s():
                said.append(f"{name} delivered other bytes a while ago and is not asked")
                continue
            if wait_s := self.book.wait_s(name):
                said.append(f"{name} did not answer lately and is left alone for {wait_s:.0f} s")
                unreachable.append(name)
                continue
            try:
                return await self._from_one(digest, size_bytes, (name, address), spread=True)
            except BusyError as error:
                busy.append(error.retry_after_s)
                answered.append((name, address))
                said.append(f"{name}: {error}")
            except httpx.TransportError as error:
                self.book.failed(name)
                unreachable.append(name)
                said.append(f"{name} at {address}: {str(error) or type(error).__name__}")
            except (httpx.HTTPError, httpx.InvalidURL, BlobError) as error:
                said.append(f"{name} at {address}: {str(error) or type(error).__name__}")
        if len(answered) == 1 and unreachable:
            # The others that the busy one counts on are out of our reach.
            try:
                return await self._from_one(digest, size_bytes, answered[0], spread=False)
            except BusyError:
                pass
            except (httpx.HTTPError, BlobError) as error:
                said.append(f"{answered[0][0]}: {str(error) or type(error).__name__}")
        raise HoldersGone(_given_up(digest, said), min(busy, default=0.0), bool(unreachable))

    def _order(self, digest: str, holders: Sequence[Holder]) -> list[Holder]:
        def rank(holder: Holder) -> bytes:
            return hashlib.blake2b(f"{self.peer} {holder[0]} {digest}".encode(), digest_size=8).digest()

        return sorted((h for h in holders if h[0] != self.peer), key=rank)

    async def _from_one(self, digest: str, size_bytes: int, holder: Holder, *, spread: bool) -> Path:
        name, _ = holder

        def tell(arrived_bytes: int) -> None:
            self.under_way[digest] = (size_bytes, arrived_bytes)

        one = Download(self.http, self.blobs, self.pace, digest, size_bytes, holder, spread, tell)
        for _ in range(2):
            alone = not one.senders - {name}
            try:
                actual = await one.get()
            except TooLarge:
                await one.forget()
                self._caught(digest, name)
                raise
            finally:
                self.fetched_bytes += one.got_bytes
            if actual == digest:
                path = await one.settle()
                self.book.answered(name)
                self.fetched_files += 1
                return path
            await one.forget()
            if alone:
                break
            # The wrong bytes may be another's: the whole file from this one tells.
        self._caught(digest, name)
        raise BlobError(f"it delivered other bytes (digest {actual[:12]}...)")

    def _caught(self, digest: str, name: str) -> None:
        log.error("event=wrong_bytes digest=%s holder=%s", digest, name)
        self.wrong.add((digest, name))
        self._caught_until_s[digest, name] = self.clock_s() + CAUGHT_S
        self.news.set()

    async def _from_vault(self, vault: Vault, digest: str, size_bytes: int, said: list[str]) -> Path | None:
        beside = self.blobs.partial / f"vault-{digest}-{time.monotonic_ns()}"
        try:
            if not await vault.get(digest, beside, size_bytes):
                said.append(f"{vault.name} does not have it")
                self.absent.add(digest)
                self.news.set()
                return None
            actual = await self.blobs.run(partial(digest_of, beside))
            if actual == digest:
                self.fetched_files += 1
                self.fetched_bytes += beside.stat().st_size
                await self.blobs.run(partial(self.blobs.settle, beside, digest))
                return self.blobs.place(digest)
            said.append(f"{vault.name} has other bytes (digest {actual[:12]}...)")
            self._caught(digest, vault.name)
        except TooLarge as error:
            said.append(str(error))
            self._caught(digest, vault.name)
        except BlobError as error:
            said.append(str(error))
        finally:
            await self.blobs.run(lambda: beside.unlink(missing_ok=True))
        return None


def _given_up(digest: str, said: Sequence[str]) -> str:
    return f"the file {digest} could not be fetched: " + ("; ".join(said) or "no live node holds it")
