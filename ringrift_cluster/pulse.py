"""Whether the loops of a node turn, for whoever asks if it is alive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from ringrift_cluster.feed.follower import FeedReplica
from ringrift_cluster.raft.engine import RaftReplica

PULSE_S = 0.5
LOOKS = 10


class Pulse:
    """Turns with the event loop, and notices when it, or the consensus thread, did not."""

    def __init__(self, replica: RaftReplica | FeedReplica) -> None:
        self._replica = replica
        #: the longest time that the event loop was late
        self.stall_max_s = 0.0
        self._turned_s = time.monotonic()
        self._turns_seen = -1
        self._turns_seen_s = self._turned_s

    async def beat(self) -> None:
        """One beat of half a second."""
        self._turned_s = time.monotonic()
        turns = self._replica.counters.turns if isinstance(self._replica, RaftReplica) else 0
        if turns != self._turns_seen:
            self._turns_seen, self._turns_seen_s = turns, self._turned_s
        for _ in range(LOOKS):
            # A stall shows only where it meets the end of a sleep, so these are short.
            slept_s = time.monotonic()
            await asyncio.sleep(PULSE_S / LOOKS)
            self.stall_max_s = max(self.stall_max_s, time.monotonic() - slept_s - PULSE_S / LOOKS)

    def ages(self) -> Mapping[str, float]:
        """By loop: the seconds since it should have turned."""
        ages = {"http": max(time.monotonic() - self._turned_s - PULSE_S, 0.0)}
        if isinstance(self._replica, RaftReplica):
            ages["consensus"] = max(time.monotonic() - self._turns_seen_s - 2 * PULSE_S, 0.0)
        return ages
