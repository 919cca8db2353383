"""Voters compare digests: a voter whose history a majority of the voters does not share must stop.

At intervals each voter asks the others, as a follower would, to go on from its own position. One that has the same
entry with another digest refuses. A single refusal says only that one of the two is wrong (the other one finds out by
itself); when a majority refuses, it is this one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import httpx

from ringrift_cluster.feed import wire
from ringrift_cluster.feed.source import FeedEntry
from ringrift_cluster.problem import read_problem
from ringrift_cluster.replica import ReplicaStatus

log = logging.getLogger("ringrift.agreement")

EVERY_S = 15.0
#: how far back the newest entry is looked for; no-ops of elections leave gaps
REACH = 64
TIMEOUT_S = 3.0


class Log(Protocol):
    """What a voter has applied."""

    def status(self) -> ReplicaStatus: ...

    def feed_since(self, index: int, limit: int = 1000) -> Sequence[FeedEntry] | None: ...


class Agreement:
    """Compares this voter's digest with the others' and calls `disagreed` with a sentence when it stands alone."""

    def __init__(
        self,
        own: Log,
        others: Callable[[], Mapping[str, str]],
        http: httpx.AsyncClient,
        disagreed: Callable[[str], None],
    ) -> None:
        self._own = own
        self._others = others
        self._http = http
        self._disagreed = disagreed

    async def run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            await self.compare()

    async def compare(self) -> None:
        """One round; voters that do not answer, or have not come that far, say nothing."""
        status = self._own.status()
        newest = self._own.feed_since(max(status.applied - REACH, 0))
        others = self._others()
        if not newest or not others:
            return
        entry = newest[-1]
        answers = await asyncio.gather(
            *(self._refuses(url, status.cluster_id, entry.index, entry.chain) for url in others.values())
        )
        refused = [name for name, no in zip(others, answers, strict=True) if no]
        if refused:
            log.error("event=digest_differs index=%d from=%s", entry.index, ",".join(refused))
        if stands_alone(len(refused), len(others) + 1):
            self._disagreed(
                f"the state of {status.node_id} at entry {entry.index} is not the one that "
                f"{' and '.join(refused)} have; "
                "its history cannot be trusted: run `ringrift-node voters remove` with its name, move its raft "
                "directory away (keep it for analysis), start it again and run `ringrift-node voters add`"
            )

    async def _refuses(self, url: str, cluster: str, index: int, chain: bytes) -> bool:
        query: dict[str, str | int] = {"cluster": cluster, "after": index, "chain": chain.hex()}
        try:
            answer = await self._http.get(url + wire.ENTRIES, params=query, timeout=TIMEOUT_S)
        except httpx.HTTPError:
            return False
        return answer.status_code == 409 and read_problem(answer.content).code == wire.OTHER_HISTORY


def stands_alone(refused: int, voters: int) -> bool:
    """Whether so many refusals mean that this voter is the wrong one."""
    return refused > voters // 2
