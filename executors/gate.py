"""How much a node sends: a bound on transfers at a time, and its share of the copies of one file.

A holder sends a file `copies_per_holder` times and then names the others: whoever got it sends it on. Fifty nodes
that want one file so get it in four steps, and no holder sends it more often than three times.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from executors.pace import Pace
from statemachine.settings import Artifacts

#: a holder's share of the copies of a file is for this time
WINDOW_S = 600.0
#: who has just got a file becomes a holder within this time
SETTLE_S = 15.0
#: when a refused asker should come back
RETRY_S = 1


class Sending:
    """One transfer that was let through."""

    __slots__ = ("sent_bytes",)

    def __init__(self) -> None:
        self.sent_bytes = 0


class Gate:
    """Belongs to one event loop."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        #: bounds what all transfers send together
        self.pace = Pace()
        self._clock_s = clock_s
        self._sending: Counter[str] = Counter()
        #: by digest: (when, bytes) of transfers that ended
        self._sent: dict[str, deque[tuple[float, int]]] = {}
        self.refused = 0
        self.sent_bytes = 0

    @property
    def sending(self) -> int:
        """Transfers that go on now."""
        return self._sending.total()

    def admits(self, digest: str, size_bytes: int, others: int, rules: Artifacts, *, spread: bool) -> bool:
        """Whether one more transfer of a file may begin. `others` are the live nodes that hold it as well.

        Who cannot go elsewhere (`spread` is false) is only bound by the number of transfers at a time.
        """
        allowed = self.sending < rules.uploads_per_holder and not (
            spread and self._shared(digest, size_bytes, others, rules)
        )
        self.refused += not allowed
        return allowed

    def _shared(self, digest: str, size_bytes: int, others: int, rules: Artifacts) -> bool:
        """Whether others can serve the file by now, or soon, and this node has sent its share."""
        now = self._clock_s()
        ended = self._sent.get(digest, deque())
        while ended and now - ended[0][0] > WINDOW_S:
            ended.popleft()
        coming = self._sending[digest] + sum(now - at <= SETTLE_S for at, _ in ended)
        copies = self._sending[digest] + sum(size for _, size in ended) / max(size_bytes, 1)
        return bool(others or coming) and copies > rules.copies_per_holder - 1

    @contextmanager
    def transfer(self, digest: str) -> Iterator[Sending]:
        """Count one transfer while it goes on, and what it sent afterwards."""
        one = Sending()
        self._sending[digest] += 1
        try:
            yield one
        finally:
            self._sending[digest] -= 1
            self.sent_bytes += one.sent_bytes
            if one.sent_bytes:
                self._sent.setdefault(digest, deque(maxlen=1_000)).append((self._clock_s(), one.sent_bytes))
            if not self._sending[digest]:
                del self._sending[digest]
            self._forget()

    def _forget(self) -> None:
        """Let go of files that nobody asked for in a long time."""
        if len(self._sent) > 10_000:
            horizon = self._clock_s() - WINDOW_S
            self._sent = {digest: ended for digest, ended in self._sent.items() if ended[-1][0] > horizon}
