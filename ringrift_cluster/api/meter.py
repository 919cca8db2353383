"""What the routes did since the process began, counted where they answer."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

#: upper bounds in seconds of the latency histogram
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(slots=True)
class Meter:
    """One route's requests by status, and the histogram of their times."""

    method: str
    path: str
    by_status: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0
    #: one more than BOUNDS: the last bucket is everything above
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))

    def count(self, status: int, seconds: float) -> None:
        self.by_status[status] = self.by_status.get(status, 0) + 1
        self.seconds += seconds
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
