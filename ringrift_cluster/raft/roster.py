"""Whom this voter counts, sends entries to and dials: the configuration in effect, carried out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from ringrift_cluster.raft.changes import VoterChanges
from ringrift_cluster.raft.errors import Removed
from ringrift_cluster.raft.guard import Guard
from ringrift_cluster.raft.journal import Journal
from ringrift_cluster.raft.membership import Membership
from ringrift_cluster.raft.messages import Message
from ringrift_cluster.raft.privates import Inside, Peer


class Links(Protocol):
    """The connections to the other voters."""

    def send(self, peer: str, message: Message) -> None:
        """Send if connected, else drop. Never blocks."""
        ...

    def reach(self, addresses: Mapping[str, str]) -> None:
        """Keep connections to these peers (node id to host:port), and dial no others."""
        ...


class Peers(dict[str, Peer]):
    """The library's names of peers, made when they are first spoken of."""

    def __missing__(self, name: str) -> Peer:
        peer = self[name] = Peer(name)
        return peer


class Roster:
    """The peers that are connected, and those that the library and the links should know."""

    def __init__(
        self,
        peers: Peers,
        membership: Membership,
        inside: Inside,
        journal: Journal,
        guard: Guard,
        links: Links,
        clock: Callable[[], float],
    ) -> None:
        self._peers = peers
        self._membership = membership
        self._inside = inside
        self._journal = journal
        self._guard = guard
        self._links = links
        self._clock = clock
        self.peers_up: set[str] = set()
        #: the peers that are dialed, node id to host:port
        self.addresses: Mapping[str, str] = {}
        #: the commit index up to which peers were last looked over
        self._certain_to = 0

    def attach(self, changes: VoterChanges) -> None:
        """Follow the journal's configurations, and the invitations of a change under way."""
        self._changes = changes
        self._journal.configurations.changed = self.reconfigure
        self.reconfigure()

    def up(self, peer: str) -> None:
        """The handshake with a peer is complete."""
        self.peers_up.add(peer)
        self.reconfigure()

    def down(self, peer: str) -> None:
        self.peers_up.discard(peer)
        self._membership.lost(peer)

    @property
    def may_win(self) -> bool:
        """Whether so many voters are connected that an election here can be won."""
        return len(self.peers_up.intersection(self._membership.others)) + 1 >= self._membership.quorum

    def reconfigure(self) -> None:
        """Let everyone who counts, sends or dials go by the configuration in effect.

        A peer that is no voter is sent entries only when that is committed, or when it is invited: a voter that is
        about to be removed must not learn of it before, since its vote may still be needed to commit it.
        """
        membership, inside = self._membership, self._inside
        others = membership.others
        certain = membership.configuration.index <= max(inside.commit, inside.applied)
        invited = membership.invited
        observers = {p for p in self.peers_up if p not in others and (certain or p in invited)}
        peers = self._peers
        for known in list(inside.match_index):
            if known not in others and known not in observers:
                self._guard.forget(known)
        inside.set_peers(
            {peers[p] for p in others}, {peers[p] for p in observers}, self._clock(), self._journal.last_index + 1
        )
        addresses = {**self._changes.invitations(), **membership.addresses(inside.commit)}
        if addresses != self.addresses:
            self.addresses = addresses
            self._links.reach(addresses)

    def settle(self) -> None:
        """Once a configuration is committed, treat peers by it. Raises Removed when this node votes no longer."""
        membership, commit = self._membership, self._inside.commit
        if self._certain_to != commit and membership.configuration.index <= commit:
            self._certain_to = commit
            strangers = self.peers_up.difference(membership.others)
            if strangers or len(self.addresses) != len(membership.others):
                self.reconfigure()
        sentence = membership.settle(commit)
        if sentence is not None:
            raise Removed(sentence)
