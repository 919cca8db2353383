"""The corrections of pysyncobj, each with what the voter does without it.

Nothing of this is in the product: a switch replaces methods of its classes while a run lasts. `make simulate-proof`
shows that the simulation notices each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from msgspec.structs import replace

from ringrift_cluster.raft.changes import VoterChanges
from ringrift_cluster.raft.configuration import Configuration
from ringrift_cluster.raft.consensus import Consensus
from ringrift_cluster.raft.elections import Elections
from ringrift_cluster.raft.guard import Guard
from ringrift_cluster.raft.handover import Handover
from ringrift_cluster.raft.journal import Journal
from ringrift_cluster.raft.membership import WELCOME, Membership
from ringrift_cluster.raft.messages import (
    AppendEntries,
    AppendReply,
    Hello,
    Message,
    OfferSnapshot,
    TimeoutNow,
    Welcome,
)
from ringrift_cluster.raft.node import RaftNode
from ringrift_cluster.raft.privates import LEADER
from ringrift_cluster.raft.proposals import Proposals
from ringrift_cluster.raft.snapshots import SnapshotFile
from ringrift_cluster.replica import NoLeader, ReplicaError
from statemachine.machine import Machine
from statemachine.snapshot import Header
from statemachine.values import Voter


@dataclass(frozen=True, slots=True)
class Switch:
    """What is replaced while a correction is off, and the faults under which that shows soonest."""

    says: str
    #: (class, attribute, what takes its place)
    patches: Sequence[tuple[type, str, Any]]
    kinds: tuple[str, ...] = ()
    #: voters; 0 lets the seed choose
    size: int = 0
    #: as in the run's options
    held_up_s: float = 0.0


@contextmanager
def without(names: Sequence[str]) -> Iterator[None]:
    """Run with the named corrections off."""
    with ExitStack() as stack:
        for name in names:
            for owner, attribute, instead in SWITCHES[name].patches:
                stack.enter_context(patch.object(owner, attribute, instead))
        yield


# G1


def _append_whole(self: Guard, peer: str, append: AppendEntries) -> None:
    """Every append goes to the library as it came, which truncates behind its previous entry."""
    if not self._leader_speaks(peer, append.term):
        return
    self._journal.settled = 0
    before = self._inside.role
    message = {
        "type": "append_entries",
        "term": append.term,
        "commit_index": append.commit,
        "entries": append.entries,
        "prevLogIdx": append.prev_index,
        "prevLogTerm": append.prev_term,
    }
    self._deliver(peer, message)
    self._stepped_down(before)


# G2

_take_reply = Guard._on_append_reply


def _go_back(self: Guard, peer: str, reply: AppendReply) -> None:
    """After a success the leader goes on where the reply says, whatever is on its way already."""
    _take_reply(self, peer, reply)
    if reply.success and reply.term == self._inside.term and self._inside.role == LEADER:
        self._inside.next_index[peer] = reply.next_index


# G3


def _take_any_term(self: Guard, peer: str, reply: AppendReply) -> None:
    """A late reply to an earlier term counts in the present one."""
    _take_reply(self, peer, replace(reply, term=max(reply.term, self._inside.term)))


# G4

_on_append = Guard._on_append


def _back_off_by_one(self: Guard, peer: str, append: AppendEntries) -> None:
    """A rejection is answered with the entry before the one that did not match."""
    journal = self._journal
    if append.term >= self._inside.term and not self._has(append.prev_index, append.prev_term):
        if self._leader_speaks(peer, append.term):
            self._heartbeat(peer, append.term, self._inside.commit)
            self._reply(peer, min(append.prev_index, journal.last_index + 1), success=False)
        return
    _on_append(self, peer, append)


def _go_where_told(self: Guard, peer: str, reply: AppendReply) -> None:
    """The leader follows each rejection, those that others under way have caused too."""
    inside = self._inside
    if reply.success or reply.term != inside.term or inside.role != LEADER or peer not in inside.match_index:
        _take_reply(self, peer, reply)
        return
    target = max(reply.next_index, 2)
    self._deliver(peer, {"type": "next_node_idx", "next_node_idx": target, "reset": True, "success": False})


# G5

_offered = Guard._on_offer


def _commit_on_offer(self: Guard, peer: str, offer: OfferSnapshot) -> None:
    """The commit index follows the snapshot before it is there, over whatever entries are."""
    if offer.term >= self._inside.term:
        self._heartbeat(peer, offer.term, min(offer.index, self._journal.last_index))
    _offered(self, peer, offer)


# G6


def _install_always(self: RaftNode, file: SnapshotFile, head: Header, machine: Machine) -> None:
    """Whatever was fetched takes the place of the whole log."""
    self._snapshots.adopt(file)
    self._parts.done()
    self.journal.reset(file.index, file.term)
    self.membership.learn_cluster_id(head.cluster_id)
    self.inside.commit = self.inside.applied = file.index
    self.machine = machine
    self._compaction.rebase(file.index)
    self.window.restart(file.index)
    self.guard.installed(self.inside.leader_id, file.index)


def _offer_always(self: Guard, peer: str, offer: OfferSnapshot) -> None:
    if self._leader_speaks(peer, offer.term):
        self._heartbeat(peer, offer.term, self._inside.commit)
        self._want_snapshot(peer, offer)


# G7


def _emit_now(self: Guard, peer: str, message: Message) -> None:
    """Acks and votes leave before what they show is on disk."""
    self._send_now(peer, message)


# G9


def _gate_open(self: Elections, now: float, may_campaign: bool) -> bool:
    """Whoever's deadline has passed starts an election."""
    if self._inside.role == LEADER or self._inside.deadline >= now:
        return False
    self._missed = True
    if not may_campaign:
        self.postpone(now)
    return may_campaign


def _tick_whenever(self: Consensus, *, election: bool) -> None:
    """The library begins an election when its deadline has passed by the time that it looks."""
    self._onTick(0.0)


# G13


def _never_mind(self: Proposals, peer: str) -> None:
    """What was forwarded over a connection that broke is forgotten, and so is whoever waits for it."""
    self._forwarded = {n: (leader, p) for n, (leader, p) in self._forwarded.items() if leader != peer}


def _no_deadline(self: Proposals, now: float) -> None:
    """Nothing that was proposed ever ends without its answer."""


# G14


def _believe_the_name(self: Membership, own: Voter | None) -> bool:
    """Whoever has the name is the voter, whatever it holds."""
    return own is not None


def _welcome_the_name(self: Membership, hello: Hello) -> Welcome:
    known = self.configuration.of(hello.node_id) is not None
    return WELCOME if known else _judge(self, hello)


_judge = Membership._judge


def _any_number_at_once(self: VoterChanges, what: str) -> ReplicaError | None:
    """A leader carries out whatever it is told."""
    return None if self.inside.role == LEADER else NoLeader(f"{what} is for the leader")


def _at_any_time(self: VoterChanges, voters: tuple[Voter, ...], now: float) -> None:
    """A list is appended whatever became of the last one."""


_opened = Membership.__init__


def _open_with_what_is_applied(
    self: Membership, node_id: str, bootstrap: tuple[Voter, ...], journal: Journal, log_id: str, base: Configuration
) -> None:
    """A list of voters in the log is forgotten at a restart, until it is applied."""
    _opened(self, node_id, bootstrap, journal, log_id, base)
    self._configurations.truncated(journal.getRaftCommitIndex() + 1)


# G15


def _transfer_at_once(self: Handover, now: float) -> None:
    """Proposals go on, and leadership moves only if the target has the last entry at this very moment."""
    self._proposals.held = False
    if self._inside.role != LEADER:
        return
    last = self._journal.last_index
    for node, match in self._inside.match_index.items():
        if match == last and self._journal.last_index == self._inside.commit and not self._proposals.waiting:
            self._send(str(node.id), TimeoutNow(self._inside.term))
            return


SWITCHES: dict[str, Switch] = {
    "G1": Switch("a follower truncates on every append", [(Guard, "_on_append", _append_whole)], ("succession",)),
    "G2": Switch("a success sets nextIndex back", [(Guard, "_on_append_reply", _go_back)]),
    "G3": Switch(
        "replies of an earlier term count", [(Guard, "_on_append_reply", _take_any_term)], ("stale_reply",), size=5
    ),
    "G4": Switch(
        "a rejection backs off by one entry",
        [(Guard, "_on_append", _back_off_by_one), (Guard, "_on_append_reply", _go_where_told)],
        ("diverge",),
    ),
    "G5": Switch(
        "the commit index runs ahead of a snapshot", [(Guard, "_on_offer", _commit_on_offer)], ("succession", "pause")
    ),
    "G6": Switch(
        "any snapshot replaces the log",
        [(RaftNode, "_install", _install_always), (Guard, "_on_offer", _offer_always)],
        ("stale_snapshot",),
        size=3,
    ),
    "G7": Switch("acks and votes leave before their fsync", [(Guard, "_emit", _emit_now)]),
    "G9": Switch("elections ask nobody first", [(Elections, "gate", _gate_open)], ("return_late",), size=3),
    "G9-late": Switch("the library goes by a later time", [(Consensus, "tick", _tick_whenever)], held_up_s=0.05),
    "G13": Switch(
        "callbacks may never come",
        [(Proposals, "peer_lost", _never_mind), (Proposals, "expire", _no_deadline)],
    ),
    "G14": Switch(
        "a voter is its name, not its log",
        [(Membership, "_is_us", _believe_the_name), (Membership, "_judge", _welcome_the_name)],
        ("return_empty",),
        size=3,
    ),
    "G14-two": Switch(
        "voters change while a change is under way",
        [(VoterChanges, "_refusal", _any_number_at_once), (VoterChanges, "_not_yet", _at_any_time)],
        ("two_changes",),
        size=5,
    ),
    "G14-restart": Switch(
        "a restart forgets a list that is not applied",
        [(Membership, "__init__", _open_with_what_is_applied)],
        ("return_unapplied",),
    ),
    "G15": Switch("a transfer does not hold proposals", [(Handover, "_advance", _transfer_at_once)]),
}

#: corrections against what no run shows, since it cannot happen where the others hold: the tests that show each
#: with the messages that break the library
BY_MESSAGES: dict[str, tuple[str, str]] = {
    "G8": (
        "what is committed may be truncated",
        "tests/ringrift_cluster/raft/test_replication.py::TestWhatIsCommittedIsNeverRemoved",
    ),
    "G10": (
        "large entries travel in pieces",
        "tests/ringrift_cluster/raft/test_replication.py::TestEntriesTravelWhole",
    ),
    "G11": (
        "compaction may empty the log",
        "tests/ringrift_cluster/raft/test_replication.py::TestCompactionKeepsOneEntry",
    ),
    "G12": (
        "an exception in a transition stops everyone",
        "tests/ringrift_cluster/raft/test_proposals.py::TestAnExceptionWhileApplying",
    ),
}
