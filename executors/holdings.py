"""The files of a peer that has no store of its own: what its jobs make lies in its gateway's store, and is said to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from executors.bench import BATCH, Bench
from executors.inventory import file_rows
from executors.ports import ClusterError
from statemachine.commands import AddHolder, Command, DropHolder

log = logging.getLogger(__name__)

RETRY_S = 5.0


class Holdings:
    """Moves what the log says `peer` holds over to `keeper`. Belongs to the loop that calls `run`."""

    def __init__(self, bench: Bench, peer: str, keeper: str) -> None:
        self._bench = bench
        self._peer = peer
        self._keeper = keeper
        self._made: set[str] = set()
        self._news = bench.transfers.news

    def made(self, digests: Iterable[str]) -> None:
        """The log has just been told that the peer holds these."""
        self._made.update(digests)
        self._news.set()

    def hurry(self) -> None:
        """The keeper looks after the files."""

    async def run(self) -> None:
        """Until cancelled; what a crash left under the peer's name comes first."""
        left: frozenset[str] | None = None
        while True:
            try:
                if left is None:
                    left = (await self._bench.cluster.read(lambda state: file_rows(state, self._peer)))[0].held
                    self.made(left)
                await self._move()
            except ClusterError as error:
                log.info("event=holdings_wait peer=%s error=%s", self._peer, error)
                await asyncio.sleep(RETRY_S)
                continue
            await self._news.wait()
            self._news.clear()

    async def _move(self) -> None:
        arrived = self._bench.transfers.arrived
        while self._made or arrived:
            made, fetched = sorted(self._made)[:BATCH], sorted(arrived)[:BATCH]
            commands: list[Command] = [AddHolder(digest, self._keeper) for digest in (*made, *fetched)]
            commands += [DropHolder(digest, self._peer) for digest in made]
            await self._bench.cluster.propose(commands)
            self._made.difference_update(made)
            arrived.difference_update(fetched)
