"""Who votes, as the log says it: the snapshot's list, then every entry of the journal that changes it, applied or not.

Such an entry has a type byte of its own and carries the whole list as one command, so the latest one is the
configuration, and truncating it brings the one before back. Lists that follow each other differ in one voter,
so any majority of one meets any majority of the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from statemachine.commands import ConfigureVoters
from statemachine.entries import decode_entry
from statemachine.state import State
from statemachine.values import Voter


@dataclass(frozen=True, slots=True)
class Configuration:
    """The voters from the entry at `index` on; 0 is the list that a cluster begins with and no entry holds."""

    index: int
    voters: tuple[Voter, ...]
    request: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(v.node for v in self.voters)

    @property
    def quorum(self) -> int:
        return len(self.voters) // 2 + 1

    def of(self, node: str) -> Voter | None:
        """The voter of that name, if it is one."""
        return next((v for v in self.voters if v.node == node), None)


def of_state(state: State) -> Configuration:
    """The configuration that a machine has applied."""
    row = state.voters
    return Configuration(row.index, row.voters, row.request)


def of_entry(index: int, data: bytes) -> Configuration:
    """Read a configuration entry, without its type byte. Raises ValueError when it is none."""
    try:
        commands = decode_entry(data).commands
    except msgspec.MsgspecError as error:
        raise ValueError(f"entry {index} holds no list of voters: {error}") from error
    if len(commands) != 1 or not isinstance(commands[0], ConfigureVoters):
        raise ValueError(f"entry {index} holds something else than a list of voters")
    return Configuration(index, commands[0].voters, commands[0].request)


class Configurations:
    """The configurations of one journal, oldest first. The journal calls `added`, `truncated` and `compacted`."""

    def __init__(self) -> None:
        self._first = Configuration(0, ())
        self._known: list[Configuration] = [self._first]
        #: called when another configuration takes effect
        self.changed: Callable[[], None] = lambda: None

    @property
    def effective(self) -> Configuration:
        """The one that counts: the latest in the log, committed or not."""
        return self._known[-1]

    def since(self, commit: int) -> list[Configuration]:
        """The last one that is committed, and those after it."""
        known = self._known
        if known[-1].index <= commit:
            return known[-1:]
        first = max((at for at, c in enumerate(known) if c.index <= commit), default=0)
        return known[first:]

    def begin(self, first: tuple[Voter, ...], base: Configuration) -> None:
        """Start from the snapshot's configuration; while there is none, from the list that the cluster begins with."""
        before = self.effective
        self._first = Configuration(0, first)
        base = base if base.index else self._first
        self._known = [base, *(c for c in self._known if c.index > base.index)]
        self._tell(before)

    def restart(self, base: Configuration) -> None:
        """A snapshot took the place of the whole log."""
        before = self.effective
        self._known = [base if base.index else self._first]
        self._tell(before)

    def added(self, index: int, data: bytes) -> None:
        """A configuration entry was appended. Raises ValueError when it cannot be read."""
        before = self.effective
        self._known.append(of_entry(index, data))
        self._tell(before)

    def truncated(self, index: int) -> None:
        """The entries at or above `index` are gone."""
        before = self.effective
        self._known = [c for c in self._known if c.index < index]
        self._tell(before)

    def compacted(self, first: int) -> None:
        """The entries below `first` are in a snapshot; the last configuration among them stays."""
        self._known = self.since(first - 1)

    def _tell(self, before: Configuration) -> None:
        if self.effective != before:
            self.changed()
