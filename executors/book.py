"""Who answered lately: one that does not is left alone for a while, longer each time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

#: seconds that a node is left alone after it did not answer: doubles up to the cap, and no exclusion is for ever
FIRST_S = 1.0
CAP_S = 60.0


class Book:
    """Remembers failures by name, such as a node's."""

    def __init__(
        self,
        clock_s: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        first_s: float = FIRST_S,
        cap_s: float = CAP_S,
    ) -> None:
        self._first_s = first_s
        self._cap_s = cap_s
        self._clock_s = clock_s
        self._rng = rng or random.Random()
        self._failures: dict[str, int] = {}
        self._until_s: dict[str, float] = {}

    def failed(self, name: str) -> None:
        count = self._failures[name] = self._failures.get(name, 0) + 1
        delay = min(self._cap_s, self._first_s * 2.0 ** min(count - 1, 16))
        self._until_s[name] = self._clock_s() + delay * self._rng.uniform(0.5, 1.0)

    def answered(self, name: str) -> None:
        self._failures.pop(name, None)
        self._until_s.pop(name, None)

    def wait_s(self, name: str) -> float:
        """How long it is still left alone; 0 when it may be asked."""
        return max(0.0, self._until_s.get(name, 0.0) - self._clock_s())

    def clear(self) -> None:
        """Forget all failures, as after an operator's order to try again."""
        self._failures.clear()
        self._until_s.clear()
