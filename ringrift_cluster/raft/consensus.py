"""The SyncObj of this project: one replicated method that takes bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pysyncobj import SyncObj, SyncObjConf, replicated
from pysyncobj.node import Node

from ringrift_cluster.raft import seams
from ringrift_cluster.raft.journal import REGULAR
from ringrift_cluster.raft.privates import Inside

seams.install()


class Consensus(SyncObj):  # type: ignore[misc]
    """Elections, log matching and commitment; everything around them is given from outside.

    There is one replicated method for ever: the library numbers methods by position in a sorted list,
    so a second one would change the meaning of entries already in the log.
    """

    def __init__(
        self,
        node_id: str,
        nodes: dict[str, Node],
        conf: SyncObjConf,
        transport: Any,
        apply: Callable[[bytes], None],
    ) -> None:
        self._apply_entry = apply
        others = [nodes[n] for n in sorted(nodes) if n != node_id]
        super().__init__(nodes[node_id], others, conf=conf, nodeClass=Node, transport=transport)
        self.inside = Inside(self)
        self.inside.set_serializer(seams.NoSerializer())

    @replicated  # type: ignore[untyped-decorator]
    def entry(self, data: bytes) -> None:
        """Apply one committed entry. Whatever this raises ends the voter."""
        self._apply_entry(data)

    def append(self, data: bytes) -> None:
        """As the leader: append an entry and send it. Proposing anywhere else is a mistake."""
        if not self._isLeader():
            raise RuntimeError("only a leader appends")
        self._applyCommand(data, None, REGULAR)
        self._checkCommandsToApply()

    def tick(self) -> None:
        """Run the library's timers, commit and apply."""
        self._onTick(0.0)
