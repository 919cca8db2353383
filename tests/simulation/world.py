"""Virtual time, and the story of what happened in it."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

#: where virtual time begins; stories count from it
BEGAN_AT = 1000.0


class Broken(AssertionError):  # noqa: N818 - names what happened to the run
    """An invariant does not hold."""


class World:
    """A clock that only events move. Equal seeds give equal stories."""

    def __init__(self, seed: int, trace: bool = False, *, held_up_s: float = 0.0) -> None:
        self.seed = seed
        self.held_up_s = held_up_s
        self.now = BEGAN_AT
        self.story: list[str] = []
        self.rng = random.Random(seed)
        self._trace = trace
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._broken: Broken | None = None

    def clock(self) -> float:
        return self.now

    def at(self, when: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (max(when, self.now), self._count, event))

    def after(self, delay: float, event: Callable[[], None]) -> None:
        self.at(self.now + delay, event)

    def run_until(self, end: float) -> None:
        while self._events and self._events[0][0] <= end:
            self.now, _, event = heapq.heappop(self._events)
            event()
            if self._broken is not None:
                raise self._broken
        self.now = max(self.now, end)

    def fail(self, sentence: str) -> None:
        """End the run from inside a task, whose exceptions go to whoever awaits it."""
        self._broken = self._broken or Broken(sentence)

    def tell(self, text: str) -> None:
        line = f"{self.now - BEGAN_AT:9.4f} {text}"
        self.story.append(line)
        if self._trace:
            print(line)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def between(self, low: float, high: float) -> float:
        return self.rng.uniform(low, high)
