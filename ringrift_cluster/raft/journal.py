"""The log of one voter: entries in memory for the library, changes gathered for the disk.

Nothing here touches a file. `take` hands out what changed since the last time as one `Batch`, which the
store writes in one transaction; until then `dirty` says that whatever shows the change must wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

from pysyncobj.journal import Journal as LibraryJournal

from ringrift_cluster.raft.configuration import Configurations
from ringrift_cluster.raft.errors import WAY_OUT, Diverged, JournalDamaged
from ringrift_cluster.raft.messages import LogEntry

SCHEMA = 1
#: type bytes of the library's entries that we admit
REGULAR, NO_OP, CONFIGURATION = 0, 1, 2


@dataclass(slots=True)
class Batch:
    """One durable step: first the deletions, then the entries, then the facts."""

    #: every entry goes (a snapshot takes their place)
    clear: bool = False
    #: entries at or above go
    truncate_from: int | None = None
    #: entries below go
    drop_before: int | None = None
    entries: list[LogEntry] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stored:
    """What a store holds when it is opened."""

    facts: Mapping[str, str]
    entries: Sequence[LogEntry]


class Store(Protocol):
    """Durable storage of a journal. `write` returns once the batch would survive a power cut."""

    def load(self) -> Stored: ...

    def write(self, batch: Batch) -> None: ...

    def close(self) -> None: ...


class Journal(LibraryJournal):  # type: ignore[misc]
    """The library's list of entries, with term, vote and commit index, and our own facts.

    `birth_id` goes into the no-op of a leader that knows no cluster id: the first one committed names
    the cluster, on every voter alike.
    """

    def __init__(self, stored: Stored, birth_id: str = "") -> None:
        self._entries: list[LogEntry] = [(e[0], e[1], e[2]) for e in stored.entries]
        self._facts: dict[str, str] = dict(stored.facts)
        self._batch = Batch()
        self._birth_id = birth_id
        #: entries at or below are committed or applied here and can never be removed from the tail
        self.settled = 0
        #: bytes of the entries held
        self.size_bytes = sum(len(e[0]) for e in self._entries)
        self._dirty = False
        #: who votes, as the entries say it
        self.configurations = Configurations()
        for data, index, _ in self._entries:
            self._note_configuration(data, index)
        for before, after in zip(self._entries, self._entries[1:], strict=False):
            if after[1] != before[1] + 1 or after[2] < before[2]:
                raise JournalDamaged(
                    f"the journal has a gap: entry {after[1]} of term {after[2]} follows entry {before[1]} "
                    f"of term {before[2]}; {WAY_OUT}"
                )

    # What the library calls

    def add(self, command: bytes, idx: int, term: int) -> None:
        if self._entries and idx != self._entries[-1][1] + 1:
            raise Diverged(f"entry {idx} was to follow entry {self._entries[-1][1]}")
        if command == b"\x01" and idx > 1 and not self.fact("cluster_id"):
            command += self._birth_id.encode()
        entry = (command, idx, term)
        self._entries.append(entry)
        self._batch.entries.append(entry)
        self.size_bytes += len(command)
        self._dirty = True
        self._note_configuration(command, idx)

    def _note_configuration(self, data: bytes, index: int) -> None:
        if data[0] != CONFIGURATION:
            return
        try:
            self.configurations.added(index, data[1:])
        except ValueError as error:
            raise JournalDamaged(f"{error}; {WAY_OUT}") from error

    def clear(self) -> NoReturn:
        raise Diverged("the library wanted to clear the journal")

    def deleteEntriesFrom(self, entryFrom: int) -> None:  # noqa: N802, N803 - the library's names
        index = self._entries[0][1] + entryFrom
        if index <= self.settled:
            raise Diverged(
                f"entry {index} was to be removed, but everything up to {self.settled} is committed here; "
                "this voter's log and its leader's differ where they cannot"
            )
        self.size_bytes -= sum(len(e[0]) for e in self._entries[entryFrom:])
        del self._entries[entryFrom:]
        self._batch.entries = [e for e in self._batch.entries if e[1] < index]
        earlier = self._batch.truncate_from
        self._batch.truncate_from = index if earlier is None else min(earlier, index)
        self._dirty = True
        self.configurations.truncated(index)

    def deleteEntriesTo(self, entryTo: int) -> None:  # noqa: N802, N803
        if not 0 <= entryTo < len(self._entries):
            raise Diverged(f"{entryTo} of {len(self._entries)} entries were to be compacted; one must stay")
        if entryTo == 0:
            return
        self.size_bytes -= sum(len(e[0]) for e in self._entries[:entryTo])
        del self._entries[:entryTo]
        first = self._entries[0][1]
        self._batch.entries = [e for e in self._batch.entries if e[1] >= first]
        self._batch.drop_before = first
        self.configurations.compacted(first)

    def __getitem__(self, item: Any) -> Any:
        return self._entries[item]

    def __len__(self) -> int:
        return len(self._entries)

    def _destroy(self) -> None: ...

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:  # noqa: N802, N803
        # Alone it forces no fsync: it travels with the next batch.
        self._note("commit", str(raftCommitIndex))

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        return int(self.fact("commit") or 1)

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:  # noqa: N802, N803
        if term < self.getCurrentTerm():
            raise Diverged(f"the term was to go back from {self.getCurrentTerm()} to {term}")
        self._note("term", str(term))
        self._note("vote", votedForNodeId or "")
        self._dirty = True

    def getCurrentTerm(self) -> int:  # noqa: N802
        return int(self.fact("term") or 0)

    def getVotedForNodeId(self) -> str | None:  # noqa: N802
        return self.fact("vote") or None

    # What the room calls

    @property
    def dirty(self) -> bool:
        """Whether something a message or a commit may show is not on disk yet."""
        return self._dirty

    @property
    def first_index(self) -> int:
        return self._entries[0][1]

    @property
    def last_index(self) -> int:
        return self._entries[-1][1]

    @property
    def last_term(self) -> int:
        return self._entries[-1][2]

    def holds(self, index: int) -> bool:
        return bool(self._entries) and self._entries[0][1] <= index <= self._entries[-1][1]

    def term_at(self, index: int) -> int | None:
        """The term of an entry, or None when it is not held."""
        return self._entries[index - self._entries[0][1]][2] if self.holds(index) else None

    def entry(self, index: int) -> LogEntry:
        """An entry that is held; raises KeyError."""
        if not self.holds(index):
            raise KeyError(index)
        return self._entries[index - self._entries[0][1]]

    def fact(self, name: str) -> str:
        """A durable fact by name, empty when unknown."""
        return self._facts.get(name, "")

    def set_fact(self, name: str, value: str) -> None:
        """Change a fact that messages may show: it is on disk before they leave."""
        if self._facts.get(name) != value:
            self._note(name, value)
            self._dirty = True

    def _note(self, name: str, value: str) -> None:
        if self._facts.get(name) != value:
            self._facts[name] = value
            self._batch.facts[name] = value

    def drop_before(self, index: int) -> None:
        """Compact: forget entries below `index`, which must be held."""
        self.deleteEntriesTo(index - self._entries[0][1])

    def reset(self, index: int, term: int) -> None:
        """Let a snapshot's position take the place of every entry."""
        base = (bytes((NO_OP,)), index, term)
        self._entries = [base]
        self.size_bytes = 1
        self._batch = Batch(clear=True, entries=[base], facts=self._batch.facts)
        self._note("commit", str(index))
        self.settled = index
        self._dirty = True

    def take(self) -> Batch | None:
        """Hand out the changes since the last call, or None when there are none."""
        batch = self._batch
        self._dirty = False
        if not (batch.clear or batch.entries or batch.facts or batch.truncate_from or batch.drop_before):
            return None
        self._batch = Batch()
        return batch
