"""The private attributes of pysyncobj 0.3.17 that the corrections read or set, all in one place.

A test asserts that each exists, so that another version of the library fails there and not in a cluster.
"""

from __future__ import annotations

from typing import Any

from pysyncobj.node import Node

FOLLOWER, CANDIDATE, LEADER = 0, 1, 2

TERM = "_SyncObj__raftCurrentTerm"
ROLE = "_SyncObj__raftState"
COMMIT = "_SyncObj__raftCommitIndex"
APPLIED = "_SyncObj__raftLastApplied"
ELECTION_DEADLINE = "_SyncObj__raftElectionDeadline"
NEXT_APPEND_AT = "_SyncObj__newAppendEntriesTime"
NEXT_INDEX = "_SyncObj__raftNextIndex"
MATCH_INDEX = "_SyncObj__raftMatchIndex"
ANSWERED_AT = "_SyncObj__lastResponseTime"
SERIALIZER = "_SyncObj__serializer"
VOTERS = "_SyncObj__otherNodes"
OBSERVERS = "_SyncObj__readonlyNodes"
#: a method that is replaced, not read
APPLY_ENTRIES = "_SyncObj__applyLogEntries"

ATTRIBUTES = (
    TERM,
    ROLE,
    COMMIT,
    APPLIED,
    ELECTION_DEADLINE,
    NEXT_APPEND_AT,
    NEXT_INDEX,
    MATCH_INDEX,
    ANSWERED_AT,
    SERIALIZER,
    VOTERS,
    OBSERVERS,
)


class Peer(str, Node):  # type: ignore[misc]
    """A voter's name, and the library's node of that name.

    The library looks nodes up in its tables dozens of times for one command; a string's hash is computed once.
    """

    __slots__ = ()


class Inside:
    """Typed access to the private state of one SyncObj."""

    __slots__ = ("_state", "_sync_obj")

    def __init__(self, sync_obj: Any) -> None:
        self._sync_obj = sync_obj
        self._state: dict[str, Any] = sync_obj.__dict__

    @property
    def term(self) -> int:
        term: int = self._state[TERM]
        return term

    @property
    def role(self) -> int:
        role: int = self._state[ROLE]
        return role

    @property
    def commit(self) -> int:
        commit: int = self._state[COMMIT]
        return commit

    @commit.setter
    def commit(self, index: int) -> None:
        self._state[COMMIT] = index

    @property
    def applied(self) -> int:
        applied: int = self._state[APPLIED]
        return applied

    @applied.setter
    def applied(self, index: int) -> None:
        self._state[APPLIED] = index

    @property
    def deadline(self) -> float:
        """When an election is due, in seconds of the library's clock."""
        deadline: float = self._state[ELECTION_DEADLINE]
        return deadline

    @deadline.setter
    def deadline(self, at: float) -> None:
        self._state[ELECTION_DEADLINE] = at

    def send_soon(self) -> None:
        """Make the leader's next tick send, instead of the next heartbeat."""
        self._state[NEXT_APPEND_AT] = 0.0

    def send_by(self, at: float) -> None:
        """Make the leader's first tick after `at` send, unless it sends before."""
        self._state[NEXT_APPEND_AT] = min(self._state[NEXT_APPEND_AT], at)

    @property
    def next_index(self) -> dict[str, int]:
        found: dict[str, int] = self._state[NEXT_INDEX]
        return found

    @property
    def match_index(self) -> dict[str, int]:
        found: dict[str, int] = self._state[MATCH_INDEX]
        return found

    @property
    def answered_at(self) -> dict[str, float]:
        """Leader: when each voter last answered."""
        found: dict[str, float] = self._state[ANSWERED_AT]
        return found

    def set_peers(self, voters: set[Peer], observers: set[Peer], now: float, next_index: int) -> None:
        """Whom the library counts, and whom it only sends entries to; what it knows of those that stay is kept."""
        everyone = voters | observers
        for known in (self.next_index, self.match_index, self.answered_at):
            for node in [n for n in known if n not in everyone]:
                del known[node]
        for node in everyone:
            self.next_index.setdefault(node, next_index)
            self.match_index.setdefault(node, 0)
            self.answered_at.setdefault(node, now)
        self._state[VOTERS] = voters
        self._state[OBSERVERS] = observers

    def set_serializer(self, serializer: object) -> None:
        self._state[SERIALIZER] = serializer

    @property
    def leader_id(self) -> str | None:
        leader = self._sync_obj._getLeader()
        return None if leader is None else str(leader)
