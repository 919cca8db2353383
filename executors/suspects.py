"""GPUs that this node doubts, and why: each is drained for a while, alone. No I/O.

doubted for          when
an XID               at once, unless it is one that a program causes
slow clocks          the hardware slowed it down at several looks in a row
failures             jobs of several items in a row failed on it for CUDA, and none succeeded in between
"""

from __future__ import annotations

from collections.abc import Collection

#: looks in a row at which the hardware has slowed a device down
SLOW_LOOKS = 5
#: different items in a row that failed on a device for CUDA
FAILED_ITEMS = 3


class Suspects:
    """What speaks against each device. `doubts` holds what the cluster has to be told: UUID to reason."""

    def __init__(self) -> None:
        self.doubts: dict[str, str] = {}
        self._slow: dict[str, int] = {}
        self._failed: dict[str, list[str]] = {}

    def event(self, uuid: str, xid: int) -> None:
        self.doubts[uuid] = f"xid {xid}: the driver reported a critical error"

    def clocks(self, uuid: str, slowdown: str) -> None:
        """One look at a device's clocks; `slowdown` is empty when nothing slows it down."""
        self._slow[uuid] = self._slow.get(uuid, 0) + 1 if slowdown else 0
        if self._slow[uuid] >= SLOW_LOOKS:
            self._slow[uuid] = 0
            self.doubts[uuid] = f"slow: {slowdown} at {SLOW_LOOKS} looks in a row"

    def ended(self, work: str, gpus: Collection[str], error_class: str) -> None:
        """An attempt of an item ended on these devices; `error_class` is empty when it succeeded."""
        for uuid in gpus:
            if error_class != "cuda":
                if not error_class:
                    self._failed.pop(uuid, None)
                continue
            items = self._failed.setdefault(uuid, [])
            if work not in items:
                items.append(work)
            if len(items) >= FAILED_ITEMS:
                self._failed.pop(uuid)
                self.doubts[uuid] = f"cuda: jobs of {FAILED_ITEMS} items in a row failed on it, {', '.join(items)}"[
                    :256
                ]

    def told(self, uuid: str) -> None:
        """The cluster knows, or does not have the device (any more)."""
        self.doubts.pop(uuid, None)
