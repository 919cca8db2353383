"""One voter on a bench: messages in by hand, messages out in a list, time by hand, a disk in memory.

`Guarded` is our voter; `Stock` is pysyncobj as it comes (with the same clock and an in-memory journal), for
the tests that show what each correction is for.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from msgspec.structs import replace
from pysyncobj import SyncObj, SyncObjConf, replicated
from pysyncobj.journal import MemoryJournal
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from ringrift_cluster.raft import seams
from ringrift_cluster.raft.conf import Limits, Timing, VoterConfig, sync_obj_settings
from ringrift_cluster.raft.messages import (
    AppendEntries,
    AppendReply,
    Hello,
    Message,
    PreVote,
    PreVoteReply,
    RequestVote,
    Vote,
)
from ringrift_cluster.raft.node import RaftNode
from ringrift_cluster.raft.privates import Inside
from ringrift_cluster.raft.snapshots import SnapshotDir
from statemachine.entries import encode_entry
from tests.simulation.disk import Disk

seams.install()

M = TypeVar("M", bound=Message)
VOTERS = ("a", "b", "c")


def entry(index: int, term: int) -> tuple[bytes, int, int]:
    """A regular log entry that the law can read."""
    return b"\x00" + encode_entry(term, 0, []), index, term


def entries(first: int, last: int, term: int) -> list[tuple[bytes, int, int]]:
    return [entry(i, term) for i in range(first, last + 1)]


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Guarded:
    """Our voter `a` among a, b, c, admitted and connected to both unless told otherwise."""

    def __init__(
        self,
        directory: Path,
        *,
        voters: tuple[str, ...] = VOTERS,
        node_id: str = "a",
        disk: Disk | None = None,
        time: Time | None = None,
        limits: Limits | None = None,
        join: bool = True,
    ) -> None:
        self.time = time or Time()
        self._rng = random.Random(7)
        seams.outside.clock, seams.outside.rng = self.time, self._rng
        self.disk = disk or Disk(node_id)
        self.sent: list[tuple[str, Message]] = []
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.node = RaftNode(
            VoterConfig(
                node_id=node_id,
                voters=dict.fromkeys(voters, "x:1"),
                bind="x:1",
                data_dir=directory,
                limits=limits or Limits(),
            ),
            self.disk,
            SnapshotDir(directory),
            self,
            clock=self.time,
            rng=self._rng,
        )
        self.node.begin()
        if join:
            for peer in self.node.membership.others:
                self.greet(peer)
        self.turn()
        self.sent.clear()

    @property
    def inside(self) -> Inside:
        return self.node.inside

    def greet(self, peer: str, *, log_id: str = "", cluster_id: str = "", configured: int = 0) -> None:
        voters = list(self.node.membership.voters)
        hello = Hello(1, peer, cluster_id, log_id or f"log-of-{peer}", True, voters, b"", configured)
        answer = self.node.judge(hello)
        assert not answer.reason, answer.detail
        self.node.welcomed(hello, answer)
        self.node.connected(peer)

    def send(self, peer: str, message: Message) -> None:
        if isinstance(message, AppendReply):
            # No test here is about how far the machine stands.
            message = replace(message, applied=0)
        self.sent.append((peer, message))

    def reach(self, addresses: Mapping[str, str]) -> None:
        self.reached = dict(addresses)

    def turn(self) -> None:
        self.node.gather()
        self.node.sync()
        self.node.settle()

    def get(self, peer: str, *messages: Message) -> None:
        """Messages of a peer, and one whole turn."""
        for message in messages:
            self.node.deliver(peer, message)
        self.turn()

    def take(self, kind: type[M]) -> list[tuple[str, M]]:
        """Messages of one kind sent since the last call."""
        found = [(peer, m) for peer, m in self.sent if isinstance(m, kind)]
        self.sent = [(peer, m) for peer, m in self.sent if not isinstance(m, kind)]
        return found

    def wait(self, seconds: float) -> None:
        """Let time pass in small steps, with a turn after each."""
        for _ in range(int(seconds / 0.025)):
            self.time.now += 0.025
            self.turn()

    def lead(self) -> int:
        """Win an election with b's vote; returns the term."""
        for _ in range(100):
            self.wait(0.025)
            for peer, question in self.take(PreVote):
                self.node.deliver(peer, PreVoteReply(question.round, question.term - 1, True))
            for peer, request in self.take(RequestVote):
                self.node.deliver(peer, Vote(request.term))
            if self.node.status.role == "leader":
                self.take(AppendEntries)
                return self.inside.term
        raise AssertionError("no election was won")

    def follow(self, term: int = 1, last: int = 1, commit: int = 1) -> None:
        """Take entries 2 to `last` of `term` from leader b."""
        self.get("b", AppendEntries(term, commit, 1, 0, entries(2, last, term)))
        self.sent.clear()

    def acknowledge(self, peer: str, up_to: int) -> None:
        last = self.node.journal.last_index
        self.get(peer, AppendReply(self.inside.term, up_to + 1, True, last))


class _Wire(Transport):
    def __init__(self) -> None:
        super().__init__(None, None, [])
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        self.sent.append((node.id, message))
        return True


class Stock(SyncObj):
    """pysyncobj 0.3.17, without any correction."""

    def __init__(self, **settings: Any) -> None:
        self.applied: list[bytes] = []
        self.wire = _Wire()
        self.time = Time()
        self.log = MemoryJournal()
        seams.outside.clock, seams.outside.rng = self.time, random.Random(7)
        self.nodes = {name: Node(name) for name in VOTERS}
        conf = SyncObjConf(**{**sync_obj_settings(Timing(), Limits(), self.log), **settings})
        super().__init__(
            self.nodes["a"], [self.nodes["b"], self.nodes["c"]], conf=conf, nodeClass=Node, transport=self.wire
        )
        self.inside = Inside(self)
        for peer in ("b", "c"):
            self.wire._onNodeConnected(self.nodes[peer])

    @replicated
    def entry(self, data: bytes) -> None:
        self.applied.append(data)

    def get(self, peer: str, message: dict[str, Any]) -> None:
        self.wire._onMessageReceived(self.nodes[peer], message)

    def take(self, kind: str) -> list[dict[str, Any]]:
        found = [m for _, m in self.wire.sent if m["type"] == kind]
        self.wire.sent.clear()
        return found

    def append(self, term: int, prev: int, prev_term: int, new: list[tuple[bytes, int, int]], commit: int = 1) -> None:
        """What leader b would send."""
        self.get(
            "b",
            {
                "type": "append_entries",
                "term": term,
                "commit_index": commit,
                "entries": new,
                "prevLogIdx": prev,
                "prevLogTerm": prev_term,
            },
        )

    def lead(self) -> int:
        for _ in itertools.repeat(None, 100):
            self.time.now += 0.05
            self.doTick()
            votes = self.take("request_vote")
            if votes:
                self.get("b", {"type": "response_vote", "term": votes[0]["term"]})
            if self.inside.role == 2:
                self.take("append_entries")
                return self.inside.term
        raise AssertionError("no election was won")

    def propose(self, count: int) -> None:
        for _ in range(count):
            self._applyCommand(b"x", None, 0)
        self._checkCommandsToApply()
