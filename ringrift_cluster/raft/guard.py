"""Between the transport and the library: every message passes here once and is made safe.

pysyncobj's Raft is right about most things; where it is not, the message is changed, answered or refused
here instead (the names G1 to G15 of the corrections are explained in the documents of this room):

- a follower truncates on every append, so entries it already has are cut away first (G1);
- a leader sets `nextIndex` back at every success, so the larger value is kept (G2);
- replies carry no term, so they are tagged when they are made and stale ones dropped (G3);
- a rejection backs off by one, so it is answered with the end of what is certain (G4);
- snapshots travel as files, not in pieces (G5), and piecewise entries do not exist (G10);
- acks and votes are held until what they show is on disk (G7).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pysyncobj.transport import Transport

from ringrift_cluster.raft.conf import Timing
from ringrift_cluster.raft.configuration import of_entry
from ringrift_cluster.raft.counters import Counters
from ringrift_cluster.raft.elections import Elections
from ringrift_cluster.raft.errors import Diverged
from ringrift_cluster.raft.journal import CONFIGURATION, NO_OP, REGULAR, Journal
from ringrift_cluster.raft.membership import Membership
from ringrift_cluster.raft.messages import (
    AppendEntries,
    AppendReply,
    LogEntry,
    Message,
    OfferSnapshot,
    PreVote,
    PreVoteReply,
    RequestVote,
    TimeoutNow,
    Vote,
)
from ringrift_cluster.raft.privates import CANDIDATE, LEADER, Inside, Peer
from ringrift_cluster.raft.snapshots import SnapshotFile

Send = Callable[[str, Message], None]

#: No cluster holds so many elections while a voter is away (one a second for half a year). A voter that follows
#: any term it is told could be led to the end of the numbers by one message; this way it takes 2^38 of them.
MAX_TERM_JUMP = 2**24


class Guard(Transport):  # type: ignore[misc]
    """The library's transport. `attach` before the first message."""

    def __init__(
        self,
        membership: Membership,
        peers: Mapping[str, Peer],
        journal: Journal,
        timing: Timing,
        counters: Counters,
        send: Send,
        latest_snapshot: Callable[[], SnapshotFile | None],
        want_snapshot: Callable[[str, OfferSnapshot], None],
    ) -> None:
        super().__init__(None, None, [])
        self._membership = membership
        self._peers = peers
        self._journal = journal
        self._timing = timing
        self._counters = counters
        self._send_now = send
        self._latest_snapshot = latest_snapshot
        self._want_snapshot = want_snapshot
        self._held: list[tuple[str, Message]] = []
        self._voted_for_us: tuple[int, set[str]] = (0, set())
        self._backed_off: dict[str, tuple[int, int, float]] = {}
        #: how far each voter said that its machine stands
        self.applied_by: dict[str, int] = {}
        #: the term of the leadership in which each voter answered here last
        self.heard_in: dict[str, int] = {}
        #: voters that lost what they had acknowledged, and the sentence about it
        self.excluded: dict[str, str] = {}
        self._clock: Callable[[], float] = lambda: 0.0

    def attach(self, inside: Inside, clock: Callable[[], float]) -> None:
        """Connect to the SyncObj that was made with this transport."""
        self._inside = inside
        self._clock = clock
        self.elections = Elections(
            self._membership, inside, self._journal, self._timing, self._counters, self._send_now
        )

    def forget(self, peer: str) -> None:
        """A peer is no voter any more: if it comes back, it comes with another log."""
        self.excluded.pop(peer, None)
        self.applied_by.pop(peer, None)
        self.heard_in.pop(peer, None)
        self._backed_off.pop(peer, None)

    # Outbound: what the library sends

    def send(self, node: Peer, message: dict[str, Any]) -> bool:
        """Called by the library; nothing it says leaves before what it shows is durable."""
        peer = str(node)
        match message["type"]:
            case "append_entries":
                self._send_append(peer, message)
            case "next_node_idx":
                self._reply(peer, message["next_node_idx"], success=message["success"])
            case "request_vote":
                self._emit(peer, RequestVote(message["term"], message["last_log_index"], message["last_log_term"]))
            case "response_vote":
                self._emit(peer, Vote(message["term"]))
            case "timeout_now":
                self._send_now(peer, TimeoutNow(message["term"]))
            case kind:
                raise Diverged(f"the library wanted to send {kind}, which voters do not say to each other")
        return True

    def _emit(self, peer: str, message: Message) -> None:
        if self._journal.dirty:
            self._held.append((peer, message))
        else:
            self._send_now(peer, message)

    def release(self) -> None:
        """Send what waited for the disk. Call after the journal's batch is durable."""
        held, self._held = self._held, []
        for peer, message in held:
            self._send_now(peer, message)

    def _reply(self, peer: str, next_index: int, *, success: bool) -> None:
        # The term is the one of now: a held reply that leaves in a later term must not count there.
        inside = self._inside
        self._emit(peer, AppendReply(inside.term, next_index, success, self._journal.last_index, inside.applied))

    def _send_append(self, peer: str, message: dict[str, Any]) -> None:
        if "transmission" in message:
            raise Diverged("the library wanted to send an entry in pieces; entries are smaller than that")
        if "serialized" in message:
            self._offer_snapshot(peer, message["term"])
            return
        append = AppendEntries(
            message["term"],
            message["commit_index"],
            message["prevLogIdx"],
            message["prevLogTerm"],
            message["entries"],
        )
        self._send_now(peer, append)

    def _offer_snapshot(self, peer: str, term: int) -> None:
        snapshot = self._latest_snapshot()
        if snapshot is None:
            raise Diverged(f"{peer} needs entries that are compacted here, and there is no snapshot")
        offer = OfferSnapshot(term, snapshot.index, snapshot.term, snapshot.size_bytes, snapshot.sha256)
        self._send_now(peer, offer)
        # The library would repeat this in a loop for a whole heartbeat. Let it go on as if the voter had
        # everything: until it does, its rejections bring us back here once a heartbeat.
        self._inside.next_index[peer] = self._journal.last_index + 1

    # Inbound

    def connected(self, peer: str) -> None:
        if self._inside.role == LEADER and peer in self._inside.match_index:
            # What was in flight on the old connection is gone: go on after what is certain. Of a voter that
            # has not answered this leader yet nothing is; its first rejection will tell.
            match = self._inside.match_index[peer]
            self._inside.next_index[peer] = (match or self._journal.last_index) + 1
            self._inside.send_soon()
        self._backed_off.pop(peer, None)
        self._onNodeConnected(self._peers[peer])

    def disconnected(self, peer: str) -> None:
        self._onNodeDisconnected(self._peers[peer])
        if self._inside.leader_id == peer:
            self.elections.lost_leader(self._clock())

    def receive(self, peer: str, message: Message) -> None:
        """Take one message of another voter."""
        if peer in self.excluded:
            self._counters.refusals["excluded"] += 1
            return
        if getattr(message, "term", 0) > self._inside.term + MAX_TERM_JUMP:
            self._counters.refusals["term_too_far"] += 1
            return
        match message:
            case AppendEntries():
                self._on_append(peer, message)
            case AppendReply():
                self._on_append_reply(peer, message)
            case RequestVote() if not self._membership.may_vote:
                self._counters.refusals["not_admitted"] += 1
            case RequestVote():
                before = self._inside.role
                self._deliver(
                    peer,
                    {
                        "type": "request_vote",
                        "term": message.term,
                        "last_log_index": message.last_index,
                        "last_log_term": message.last_term,
                    },
                )
                self._stepped_down(before)
            case Vote():
                self._on_vote(peer, message)
            case PreVote():
                self.elections.on_pre_vote(peer, message, self._clock())
            case PreVoteReply():
                if message.term > self._inside.term:
                    self.observe(message.term)
                else:
                    self.elections.on_reply(peer, message)
            case TimeoutNow():
                if message.term >= self._inside.term and self._inside.leader_id == peer:
                    self.elections.ordered()
                self._deliver(peer, {"type": "timeout_now", "term": message.term})
            case OfferSnapshot():
                self._on_offer(peer, message)
            case _:
                self._counters.refusals["unexpected"] += 1

    def _deliver(self, peer: str, message: dict[str, Any]) -> None:
        self._onMessageReceived(self._peers[peer], message)

    def observe(self, term: int) -> None:
        """Step up to a higher term without voting in it.

        A request for a vote by a log that is behind everybody's does exactly this in the library.
        """
        before = self._inside.role
        if term > self._inside.term:
            request = {"type": "request_vote", "term": term, "last_log_index": -1, "last_log_term": -1}
            self._onMessageReceived(self._peers[self._membership.node_id], request)
        self._stepped_down(before)

    def _stepped_down(self, before: int) -> None:
        if before == LEADER and self._inside.role != LEADER:
            # The deadline is the one from before the leadership, long passed.
            self.elections.postpone(self._clock())

    def _on_vote(self, peer: str, vote: Vote) -> None:
        if vote.term != self._inside.term or self._inside.role != CANDIDATE or peer not in self._membership.others:
            return
        term, voters = self._voted_for_us
        if term != vote.term:
            voters = set()
        if peer in voters:
            self._counters.refusals["double_vote"] += 1
            return
        self._voted_for_us = (vote.term, voters | {peer})
        self._deliver(peer, {"type": "response_vote", "term": vote.term})

    # A voter's side of replication

    def _heartbeat(self, peer: str, term: int, commit: int) -> None:
        """Tell the library that the leader lives, and how far it may commit; nothing about entries."""
        before = self._inside.role
        self._deliver(peer, {"type": "append_entries", "term": term, "commit_index": commit})
        self._stepped_down(before)

    def _leader_speaks(self, peer: str, term: int) -> bool:
        """Whether `peer` leads the present or a later term; an older leader is told our term."""
        if term < self._inside.term:
            self._counters.refusals["old_term"] += 1
            self._reply(peer, 1, success=False)
            return False
        if term == self._inside.term and self._inside.role == LEADER:
            raise Diverged(f"{peer} leads term {term}, and so does this voter; the cluster is broken")
        self.elections.heard_leader(self._clock())
        return True

    def _on_append(self, peer: str, append: AppendEntries) -> None:
        if not self._admissible(append):
            self._counters.refusals["malformed"] += 1
            return
        if not self._leader_speaks(peer, append.term):
            return
        journal, inside = self._journal, self._inside
        journal.settled = max(inside.commit, inside.applied)
        entries: list[LogEntry] = append.entries
        kept = 0
        while kept < len(entries) and self._has(entries[kept][1], entries[kept][2]):
            kept += 1
        previous = (entries[kept - 1][1], entries[kept - 1][2]) if kept else (append.prev_index, append.prev_term)
        rest = entries[kept:]
        odd = previous[0] if not self._has(*previous) else rest[0][1] if rest else journal.last_index + 1
        if odd <= journal.settled:
            raise Diverged(
                f"{peer} leads term {append.term} with another entry at {odd}, which is committed "
                "here; this voter's log and its leader's differ where they cannot"
            )
        if not self._has(*previous):
            self._heartbeat(peer, append.term, inside.commit)
            self._reply(peer, max(journal.settled, journal.first_index) + 1, success=False)
            return
        if not rest:
            self._heartbeat(peer, append.term, max(inside.commit, min(append.commit, previous[0])))
            self._reply(peer, previous[0] + 1, success=True)
            return
        before = inside.role
        self._deliver(
            peer,
            {
                "type": "append_entries",
                "term": append.term,
                "commit_index": append.commit,
                "entries": rest,
                "prevLogIdx": previous[0],
                "prevLogTerm": previous[1],
            },
        )
        self._stepped_down(before)

    def _has(self, index: int, term: int) -> bool:
        """Whether our log holds this entry; what is compacted is committed, so it matches."""
        if index < self._journal.first_index:
            return True
        return self._journal.term_at(index) == term

    @staticmethod
    def _admissible(append: AppendEntries) -> bool:
        index, term = append.prev_index, append.prev_term
        for data, at, of in append.entries:
            if at != index + 1 or of < term or not data or data[0] not in (REGULAR, NO_OP, CONFIGURATION):
                return False
            if data[0] == CONFIGURATION and not _readable(at, data):
                return False
            index, term = at, of
        return term <= append.term

    def _on_offer(self, peer: str, offer: OfferSnapshot) -> None:
        if not self._leader_speaks(peer, offer.term):
            return
        self._heartbeat(peer, offer.term, self._inside.commit)
        settled = max(self._inside.commit, self._inside.applied)
        if offer.index <= settled or self._journal.term_at(offer.index) == offer.snapshot_term:
            self._reply(peer, offer.index + 1, success=True)
        else:
            self._want_snapshot(peer, offer)

    def installed(self, leader: str | None, index: int) -> None:
        """A snapshot took the place of the log up to `index`: say so to the leader."""
        if leader is not None and leader != self._membership.node_id:
            self._reply(leader, index + 1, success=True)

    # A leader's side of replication

    def _on_append_reply(self, peer: str, reply: AppendReply) -> None:
        inside = self._inside
        if reply.term > inside.term:
            self.observe(reply.term)
            return
        if reply.term < inside.term or inside.role != LEADER:
            self._counters.refusals["stale_reply"] += 1
            return
        if peer not in inside.match_index:
            self._counters.refusals["not_a_voter"] += 1
            return
        self.applied_by[peer] = reply.applied
        self.heard_in[peer] = inside.term
        match = inside.match_index[peer]
        if reply.last_index < match:
            self.excluded[peer] = (
                f"{peer} acknowledged entry {match} in term {reply.term} and now ends at {reply.last_index}: "
                f"its disk lost data; run `ringrift-node voters remove {peer}`, start it again and run "
                f"`ringrift-node voters add {peer}`"
            )
            inside.match_index[peer] = 0
            return
        if reply.next_index > self._journal.last_index + 1:
            self._counters.refusals["malformed"] += 1
            return
        if reply.success:
            before = inside.next_index[peer]
            self._deliver(
                peer,
                {"type": "next_node_idx", "next_node_idx": reply.next_index, "reset": False, "success": True},
            )
            inside.next_index[peer] = max(before, reply.next_index, inside.match_index[peer] + 1)
            return
        target = max(reply.next_index, match + 1, 2)
        now = self._clock()
        earlier = self._backed_off.get(peer)
        repeated = (
            earlier is not None and earlier[:2] == (target, match) and now - earlier[2] < self._timing.heartbeat_s
        )
        if repeated:
            # One of several appends in flight that met the same gap: it was answered by going back once.
            inside.answered_at[peer] = now
            return
        self._backed_off[peer] = (target, match, now)
        self._deliver(peer, {"type": "next_node_idx", "next_node_idx": target, "reset": True, "success": False})
        inside.send_soon()


def _readable(index: int, data: bytes) -> bool:
    try:
        of_entry(index, data[1:])
    except ValueError:
        return False
    return True
