"""The SyncObj of this project: one replicated method that takes bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pysyncobj import SyncObj, SyncObjConf, replicated

from ringrift_cluster.raft import seams
from ringrift_cluster.raft.journal import CONFIGURATION, NO_OP, REGULAR, Journal
from ringrift_cluster.raft.privates import Inside, Peer

seams.install()

#: bounds of what one tick applies
APPLY_S = 0.02
APPLY_ENTRIES = 256
#: other voters learn of a commit with the next entries, or at the first tick after this time
TELL_COMMIT_S = 0.005
_NEVER = float("inf")


class Consensus(SyncObj):  # type: ignore[misc]
    """Elections, log matching and commitment; everything around them is given from outside.

    There is one replicated method for ever: the library numbers methods by position in a sorted list,
    so a second one would change the meaning of entries already in the log.
    """

    def __init__(
        self,
        node_id: Peer,
        peers: Sequence[Peer],
        conf: SyncObjConf,
        transport: Any,
        apply: Callable[[int, int, bytes], None],
        urgent: Callable[[], bool],
    ) -> None:
        """`apply` gets (index, term, data) of each committed entry with commands; what it raises ends the voter.

        `urgent` says whether the other voters must learn at once of what was applied.
        """
        self._apply = apply
        self._urgent = urgent
        self._journal: Journal = conf.journalFile
        super().__init__(node_id, peers, conf=conf, nodeClass=Peer, transport=transport)
        self.inside = Inside(self)
        self.inside.set_serializer(seams.NoSerializer())

    @replicated  # type: ignore[untyped-decorator]
    def entry(self, data: bytes) -> None:
        """The method that the log's entries name. They are applied below, with their position."""
        # Only its name is used. Were the library to call it, an entry would be applied without its position: that
        # must stop the voter, never pass in silence.
        raise NotImplementedError("the library applied an entry itself; this voter must not go on")

    def _SyncObj__applyLogEntries(self) -> bool:  # noqa: N802 - takes the place of the library's
        """Apply what is committed, but only for a moment; the rest waits for the next tick.

        The library applies everything at once. A voter that catches up, or a leader with a large backlog,
        would be silent for seconds. Returns whether appends should be sent now (they carry the commit index):
        while commands keep coming the next one carries it anyway, and a message of its own costs every voter a turn.
        """
        inside = self.inside
        first, last = inside.applied + 1, min(inside.commit, inside.applied + APPLY_ENTRIES)
        until = seams.outside.clock() + APPLY_S
        for index in range(first, last + 1):
            data, _, term = self._journal.entry(index)
            if data[0] != NO_OP:
                self._apply(index, term, data[1:])
            inside.applied = index
            if seams.outside.clock() > until:
                break
        if first <= last:
            inside.send_by(until - APPLY_S + TELL_COMMIT_S)
        return first <= last and self._urgent()

    def append(self, data: bytes, *, configuration: bool = False) -> None:
        """As the leader: append an entry and send it. Proposing anywhere else is a mistake."""
        if not self._isLeader():
            raise RuntimeError("only a leader appends")
        self._applyCommand(data, None, CONFIGURATION if configuration else REGULAR)
        self._checkCommandsToApply()

    def tick(self, *, election: bool) -> None:
        """Run the library's timers, commit and apply; `election` says whether it may begin one.

        If not, its deadline is out of its sight. It reads the clock itself, and a deadline that passes after we looked
        would let a log campaign that must not, or a voter that asked nobody.
        """
        inside = self.inside
        deadline = inside.deadline
        if not election:
            inside.deadline = _NEVER
        self._onTick(0.0)
        if inside.deadline == _NEVER:
            inside.deadline = deadline
