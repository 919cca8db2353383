"""A disk that keeps what was synced and forgets the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ringrift_cluster.raft.errors import DiskFailed
from ringrift_cluster.raft.journal import CONFIGURATION, Batch, Stored
from ringrift_cluster.raft.messages import LogEntry
from tests.simulation.world import Broken

FAST_S = (0.0002, 0.003)
SLOW_S = (0.02, 0.3)


class Disk:
    """A journal's store. The driver calls `write` when the virtual fsync returns."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.facts: dict[str, str] = {}
        self.entries: dict[int, LogEntry] = {}
        #: everything up to here is in the journal or in a snapshot
        self.base = 0
        #: whether some replica has applied the entry at an index with a term
        self.committed: Callable[[int, int], bool] = lambda index, term: False
        #: seconds of one fsync, at least and at most
        self.fsync_s = FAST_S
        #: less free space than the floor: the voter's door closes
        self.low = False
        #: no space at all: the next write fails
        self.full = False

    def load(self) -> Stored:
        return Stored(dict(self.facts), [self.entries[i] for i in sorted(self.entries)])

    def write(self, batch: Batch) -> None:
        if self.full:
            raise DiskFailed(f"{self.owner}: no space left on the device")
        self._check(batch.facts)
        if batch.truncate_from is not None:
            self._check_kept(batch.truncate_from, batch.entries)
        if batch.clear:
            base = batch.entries[0][1]
            self._check_kept(base + 1, batch.entries)
            self.entries.clear()
            self.base = base
        if batch.truncate_from is not None:
            self.entries = {i: e for i, e in self.entries.items() if i < batch.truncate_from}
        if batch.drop_before is not None:
            self.entries = {i: e for i, e in self.entries.items() if i >= batch.drop_before}
            self.base = max(self.base, batch.drop_before - 1)
        for entry in batch.entries:
            self.entries[entry[1]] = entry
        self.facts.update(batch.facts)

    def holds(self, index: int, term: int) -> bool:
        """Whether this entry would be there after a power cut."""
        entry = self.entries.get(index)
        return index <= self.base if entry is None else entry[2] == term

    @property
    def list_at(self) -> int | None:
        """Index of the last list of voters among the entries; None when there is none."""
        return max((i for i, (data, _, _) in self.entries.items() if data[0] == CONFIGURATION), default=None)

    def _check(self, facts: dict[str, str]) -> None:
        before, after = int(self.facts.get("term", "0")), int(facts.get("term", self.facts.get("term", "0")))
        if after < before:
            raise Broken(f"{self.owner}: the term went back from {before} to {after}")
        vote_before, vote_after = self.facts.get("vote", ""), facts.get("vote", self.facts.get("vote", ""))
        if after == before and vote_before and vote_after != vote_before:
            raise Broken(f"{self.owner}: the vote of term {after} changed from {vote_before} to {vote_after or 'none'}")

    def _check_kept(self, first: int, anew: Sequence[LogEntry]) -> None:
        """What is committed never leaves a disk that holds it, not even for a moment."""
        written = {index for _, index, _ in anew}
        for _, index, term in self.entries.values():
            if index >= first and index not in written and self.committed(index, term):
                raise Broken(f"{self.owner} removes entry {index} of term {term} from its disk, which is committed")

    def close(self) -> None: ...
