"""One voter without threads, sockets or clocks of its own.

Whoever drives it (the engine with asyncio, the simulation with a virtual clock) does, in turns:

    deliver / submit / read / ...      whatever arrived
    gather()                           hand it to the library; appends leave at once
    sync()                             one durable batch; the only step that waits, any thread
    settle()                           release acks and votes, tick, commit, apply, answer
    take_job() -> run() -> finish()    now and then: work for another thread (snapshots)

Between `gather` and `settle` nothing else may be called except `deliver`, `submit` and the reads,
which only queue.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ringrift_cluster.raft.changes import Done, VoterChanges, VoterState
from ringrift_cluster.raft.compaction import Compaction, Job
from ringrift_cluster.raft.conf import VoterConfig, sync_obj_conf
from ringrift_cluster.raft.configuration import of_state
from ringrift_cluster.raft.consensus import Consensus
from ringrift_cluster.raft.counters import Counters
from ringrift_cluster.raft.errors import DiskLost, Diverged, Removed
from ringrift_cluster.raft.fetch import Fetch, verified
from ringrift_cluster.raft.guard import Guard
from ringrift_cluster.raft.handover import Handover
from ringrift_cluster.raft.journal import NO_OP, Batch, Journal, Store
from ringrift_cluster.raft.membership import Membership
from ringrift_cluster.raft.messages import (
    AppendReply,
    FetchPart,
    Forward,
    Forwarded,
    HandOver,
    Hello,
    Message,
    OfferSnapshot,
    Part,
    Ping,
    Welcome,
)
from ringrift_cluster.raft.opening import open_machine
from ringrift_cluster.raft.privates import CANDIDATE, LEADER, Peer
from ringrift_cluster.raft.proposals import Outcome, Proposals
from ringrift_cluster.raft.reads import Reads
from ringrift_cluster.raft.snapshots import SnapshotDir, SnapshotFile
from ringrift_cluster.raft.window import Applied, Window
from ringrift_cluster.replica import Halted, ReplicaStatus
from statemachine.commands import ConfigureVoters, encode_command
from statemachine.machine import Machine
from statemachine.snapshot import Header
from statemachine.values import Voter

_UP, _DOWN = "up", "down"
#: how often expired waiters are looked for
_EXPIRE_S = 0.05
#: the longest that a leader at rest leaves its timers alone (they are looked at every 20 ms anyway)
_AT_REST_S = 0.02
#: how old the ages in the published status may be
_PUBLISH_S = 0.05


class Links(Protocol):
    """The connections to the other voters."""

    def send(self, peer: str, message: Message) -> None:
        """Send if connected, else drop. Never blocks."""
        ...

    def reach(self, addresses: Mapping[str, str]) -> None:
        """Keep connections to these peers (node id to host:port), and dial no others."""
        ...


class _Peers(dict[str, Peer]):
    """The library's names of peers, made when they are first spoken of."""

    def __missing__(self, name: str) -> Peer:
        peer = self[name] = Peer(name)
        return peer


class RaftNode:
    """The consensus of one voter and the machine it feeds."""

    def __init__(
        self,
        config: VoterConfig,
        store: Store,
        snapshots: SnapshotDir,
        links: Links,
        *,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        """Open what is on disk. Raises JournalDamaged, MembersContradict.

        `clock` is monotonic seconds, the same one the library sees in this thread.
        """
        self.config = config
        self.node_id = config.node_id
        self.counters = Counters()
        self._clock = clock
        self._links = links
        self._store = store
        self._snapshots = snapshots
        self.journal = Journal(store.load(), birth_id=f"{rng.getrandbits(96):024x}")
        self.machine = open_machine(config.node_id, self.journal, snapshots)
        base = self.machine.index
        first = tuple(Voter(v, config.voters[v], config.urls.get(v, "")) for v in sorted(config.voters))
        self.membership = Membership(
            config.node_id, first, self.journal, f"{rng.getrandbits(128):032x}", of_state(self.machine.state)
        )
        peers = self._peers = _Peers()
        self._fetch = Fetch(snapshots.directory, links.send)
        self.guard = Guard(
            self.membership,
            peers,
            self.journal,
            config.timing,
            self.counters,
            self._send,
            lambda: snapshots.latest,
            self._want_snapshot,
        )
        conf = sync_obj_conf(config.timing, config.limits, self.journal)
        others = [peers[name] for name in self.membership.others]
        self._consensus = Consensus(peers[self.node_id], others, conf, self.guard, self._apply, self._owes_answers)
        self.inside = self._consensus.inside
        self.inside.applied = max(self.inside.applied, base)
        self.inside.commit = min(max(self.inside.commit, base), self.journal.last_index)
        self.journal.settled = self.inside.commit
        self.guard.attach(self.inside, clock)
        self.proposals = Proposals(config.limits, config.timing, self.counters, self._send, self._append, self._level)
        self.reads = Reads(self.proposals, config.timing, clock)
        self.window = Window(config.limits.window_entries, config.limits.window_bytes, start=base)
        self._handover = Handover(self.membership, config.timing, self.inside, self.journal, self.proposals, self._send)
        self.changes = VoterChanges(
            self.membership,
            self.inside,
            self.journal,
            self.guard,
            config.timing,
            self._append_voters,
            self._reconfigure,
        )
        self._reached: dict[str, str] = {}
        self._inbox: deque[tuple[str, Message | str]] = deque()
        self.peers_up: set[str] = set()
        self._batch: Batch | None = None
        self._compaction = Compaction(
            config.limits, self.journal, self.membership, snapshots, self.counters, clock, base
        )
        self._expired_at = 0.0
        self._settled_at = 0.0
        #: the applied index that the window's readers were last told of
        self._told = self.inside.applied
        #: the commit index up to which peers were last looked over
        self._certain_to = 0
        self.halted: str | None = None
        self._status = self._make_status()
        self._published_at = 0.0
        self.journal.configurations.changed = self._reconfigure
        self._reconfigure()

    # In: these only queue

    def deliver(self, peer: str, message: Message) -> None:
        """A message of a connected voter."""
        self._inbox.append((peer, message))

    def connected(self, peer: str) -> None:
        """The handshake with a voter is complete at both ends."""
        self._inbox.append((peer, _UP))

    def disconnected(self, peer: str) -> None:
        self._inbox.append((peer, _DOWN))

    def submit(self, commands: Sequence[bytes], timeout_s: float, done: Callable[[Outcome], None]) -> None:
        """Propose encoded commands; `done` is called once, on this thread."""
        if self.halted is not None:
            done(Halted(self.halted))
            return
        self.proposals.submit(commands, self._clock(), timeout_s, done)

    def hand_over(self, target: str | None, timeout_s: float, done: Callable[[str | None], None]) -> None:
        """Give leadership away; `done` gets who leads then, or None when nobody took it."""
        self._handover.start(target, self._clock(), timeout_s, done)

    # Who votes

    def add_voter(self, voter: Voter, request: str, timeout_s: float, done: Done) -> None:
        """As the leader: let the log of `voter` catch up, then make it one."""
        self.changes.add(voter, request, self._clock(), timeout_s, done)

    def remove_voter(self, node: str, request: str, done: Done) -> None:
        """As the leader: let a voter vote no longer."""
        self.changes.remove(node, request, self._clock(), done)

    def voter_states(self) -> list[VoterState]:
        """The voters with their progress, as far as it is known here (all of it at the leader)."""
        return self.changes.view(self._clock())

    def _append_voters(self, voters: tuple[Voter, ...], request: str) -> int:
        command = encode_command(ConfigureVoters(voters, request))
        entry = self.proposals.stamped(self.inside.term, self._clock(), [command])
        self._consensus.append(entry, configuration=True)
        return self.journal.last_index

    def _reconfigure(self) -> None:
        """Let everyone who counts, sends or dials go by the configuration in effect.

        A peer that is no voter is sent entries only when that is committed, or when it is invited: a voter that is
        about to be removed must not learn of it before, since its vote may still be needed to commit it.
        """
        others = self.membership.others
        certain = self.membership.configuration.index <= max(self.inside.commit, self.inside.applied)
        invited = self.membership.invited
        observers = {p for p in self.peers_up if p not in others and (certain or p in invited)}
        peers = self._peers
        for known in list(self.inside.match_index):
            if known not in others and known not in observers:
                self.guard.forget(known)
        self.inside.set_peers(
            {peers[p] for p in others}, {peers[p] for p in observers}, self._clock(), self.journal.last_index + 1
        )
        addresses = {**self.changes.invitations(), **self.membership.addresses(self.inside.commit)}
        if addresses != self._reached:
            self._reached = addresses
            self._links.reach(addresses)

    @property
    def addresses(self) -> Mapping[str, str]:
        """The peers that are dialed."""
        return self._reached

    # Handshakes. The answer may leave once `sync` has run.

    def hello(self, nonce: bytes) -> Hello:
        return self.membership.hello(nonce)

    def judge(self, hello: Hello) -> Welcome:
        return self.membership.judge(hello)

    def welcomed(self, hello: Hello, answer: Welcome) -> None:
        """Take a peer's answer to our greeting. Raises DiskLost when it knows us by another log."""
        self.membership.answered(hello, answer)
        if self.membership.disowned is not None:
            raise DiskLost(self.membership.disowned)

    # The turn

    def begin(self) -> None:
        """One whole turn, before anyone is greeted: a log id that others record must be durable."""
        self.gather()
        self.sync()
        self.settle()

    @property
    def dirty(self) -> bool:
        """Whether something waits for `sync`."""
        return self.journal.dirty

    @property
    def behind(self) -> bool:
        """Whether committed entries wait for the next turn to be applied."""
        return self.inside.applied < self.inside.commit

    @property
    def batch_waiting(self) -> bool:
        """Whether the last `gather` left something to write."""
        return self._batch is not None

    def gather(self) -> bool:
        """Hand over what arrived; as the leader, make entries of what waits. Returns whether it settled already.

        Acknowledgements may commit what is on disk here: whoever waits for that need not wait for the next write.
        """
        now = self._clock()
        role = self.inside.role
        heard = bool(self._inbox)
        while self._inbox:
            peer, message = self._inbox.popleft()
            self._receive(peer, message, now)
        settled = heard and self.inside.role == LEADER and not self.journal.dirty
        if settled and not self._at_rest(now):
            self.settle()
        self.reads.start_barriers(now)
        if self.membership.admitted:
            self._propose(now)
        self._note_role(role)
        self._batch = self.journal.take() if self.journal.dirty else None
        return settled

    def _at_rest(self, now: float) -> bool:
        """Whether a leader that only heard acknowledgements has nothing to do before its next timer.

        Every command is acknowledged once more than it takes to commit it; those need no turn of the library's.
        """
        inside = self.inside
        return (
            inside.applied == inside.commit == self.journal.last_index
            and now - self._settled_at < _AT_REST_S
            and not (self.reads.waiting or self.proposals.owes_answers or self.proposals.held or self.changes.running)
        )

    def _propose(self, now: float) -> None:
        if self.inside.role == LEADER:
            idle = self.journal.last_index == self.inside.commit
            self.proposals.propose(self.inside.term, now, idle=idle)
            return
        leader = self.leader_id
        if leader is not None and leader in self.peers_up:
            self.proposals.forward(leader, now)

    def sync(self) -> None:
        """Write what `gather` found. May run in another thread. Raises DiskFailed."""
        batch, self._batch = self._batch, None
        if batch is None:
            return
        started = time.perf_counter()
        self._store.write(batch)
        took = time.perf_counter() - started
        self.counters.fsyncs += 1
        self.counters.fsync_s += took
        self.counters.fsync_max_s = max(self.counters.fsync_max_s, took)

    def settle(self) -> None:
        """Everything gathered is durable: show it, tick, apply, answer. Raises what must end the voter."""
        now = self._settled_at = self._clock()
        role = self.inside.role
        self.guard.release()
        self.journal.settled = max(self.inside.commit, self.inside.applied)
        others = self.membership.others
        may_campaign = self.membership.admitted and (not others or bool(self.peers_up))
        self.guard.elections.gate(now, may_campaign)
        self._consensus.tick()
        self._note_role(role)
        self._mind_voters(now)
        applied = self.inside.applied
        self.proposals.passed(applied)
        self._handover.step(now)
        if self.reads.waiting:
            self.reads.answer(self.machine, applied, self.contact_age_s(now), now)
        if now - self._expired_at >= _EXPIRE_S:
            self._expired_at = now
            self.proposals.expire(now)
        self.proposals.send_answers()
        if not self.membership.cluster_id:
            self._find_cluster_id()
        self._compaction.keep(self.machine, now, leading=self.inside.role == LEADER)
        self._publish(now)
        if self._told != applied:
            self._told = applied
            self.window.wake()

    def _mind_voters(self, now: float) -> None:
        """Carry changes on, send entries to peers that no longer vote, and notice that this one does not."""
        commit = self.inside.commit
        if not self.proposals.held:
            self.changes.step(now)
        if self._certain_to != commit and self.membership.configuration.index <= commit:
            self._certain_to = commit
            strangers = self.peers_up.difference(self.membership.others)
            if strangers or len(self._reached) != len(self.membership.others):
                self._reconfigure()
        sentence = self.membership.settle(commit)
        if sentence is not None:
            raise Removed(sentence)

    def _note_role(self, before: int) -> None:
        if before == LEADER and self.inside.role != LEADER:
            self.guard.elections.postpone(self._clock())

    def _receive(self, peer: str, message: Message | str, now: float) -> None:
        if message == _UP:
            self.peers_up.add(peer)
            self._reconfigure()
            self.guard.connected(peer)
            return
        if message == _DOWN:
            self.peers_up.discard(peer)
            self.membership.lost(peer)
            self.guard.disconnected(peer)
            self.proposals.peer_lost(peer)
            self._reconfigure()
            return
        if peer == self.node_id or peer not in self.peers_up:
            self.counters.refusals["not_a_voter"] += 1
            return
        if not self.membership.listening:
            self.counters.refusals["not_admitted"] += 1
            return
        if isinstance(message, AppendReply):
            self.membership.proved(peer)
        match message:
            case Forward():
                self.proposals.take_forward(peer, message, now, leading=self.inside.role == LEADER)
            case Forwarded():
                self.proposals.take_forwarded(peer, message)
            case FetchPart():
                self._send_part(peer, message, now)
            case Part():
                self._take_part(peer, message, now)
            case HandOver():
                self._handover.start(message.target or None, now, 5.0, lambda leader: None)
            case Ping():
                pass
            case Message():
                self.guard.receive(peer, message)

    def _send(self, peer: str, message: Message) -> None:
        self._links.send(peer, message)

    def _append(self, entry: bytes) -> int:
        self._consensus.append(entry)
        return self.journal.last_index

    def _level(self) -> int:
        return self.machine.state.cluster.feature_level

    def _apply(self, index: int, term: int, data: bytes) -> None:
        results = self.machine.apply(index, term, data)
        self.counters.entries_applied += 1
        self.counters.commands_applied += len(results)
        self._compaction.applied(len(data))
        self.window.append(Applied(index, term, data, self.machine.chain))
        self.proposals.applied(index, term, results)

    def _owes_answers(self) -> bool:
        """Whether voters that forwarded commands are about to learn what came of them."""
        return self.proposals.owes_answers

    def _find_cluster_id(self) -> None:
        """The first committed no-op that carries an id names the cluster, on every voter alike."""
        for index in range(max(2, self.journal.first_index), self.inside.commit + 1):
            data = self.journal.entry(index)[0]
            if data[0] == NO_OP and len(data) > 1:
                self.membership.learn_cluster_id(data[1:].decode("ascii"))
                return

    # Snapshots

    def want_snapshot(self, max_behind: int, done: Callable[[SnapshotFile], None]) -> None:
        """Call `done` with a file at most `max_behind` entries old, making one when there is none.

        The entries after the file are still in the window, or whoever takes it could not go on from it.
        """
        latest = self._snapshots.latest
        if latest is not None and self.window.since(latest.index, 1) is None:
            max_behind = 0
        self._compaction.want(self.machine, max_behind, done)

    def take_job(self) -> Job | None:
        """Work for another thread, if there is any."""
        jobs = self._compaction.jobs
        return jobs.popleft() if jobs else None

    def _want_snapshot(self, peer: str, offer: OfferSnapshot) -> None:
        self._fetch.want(peer, offer, self._clock())

    def _send_part(self, peer: str, request: FetchPart, now: float) -> None:
        data = self._snapshots.part(
            request.index, request.snapshot_term, request.offset, self.config.limits.part_bytes, now
        )
        self._send(peer, Part(request.index, request.snapshot_term, request.offset, data))
        if data:
            self._compaction.reads(peer, request.index)
        if request.offset == 0:
            self._compaction.asked_again(peer, request.index, request.snapshot_term, lambda: self.machine)

    def _take_part(self, peer: str, part: Part, now: float) -> None:
        file = self._fetch.take(peer, part, now)
        if file is None:
            return
        loaded: list[tuple[Header, Machine]] = []

        def run() -> None:
            found = verified(file)
            if found is not None:
                loaded.append(found)

        def finish() -> None:
            if not loaded:
                self._fetch.drop()
                return
            self._install(file, *loaded[0])

        self._compaction.jobs.append(Job(run, finish))

    def _install(self, file: SnapshotFile, head: Header, machine: Machine) -> None:
        """Take a verified snapshot in place of the log. What is newer here already stays."""
        settled = max(self.inside.commit, self.inside.applied)
        unneeded = file.index <= settled or self.journal.term_at(file.index) == file.term
        if unneeded or (head.index, head.term) != (file.index, file.term):
            self._fetch.done()
            return
        known = self.membership.cluster_id
        if known and head.cluster_id != known:
            raise Diverged(f"the leader's snapshot is of cluster {head.cluster_id}, this voter of {known}")
        self._snapshots.adopt(file)
        self._fetch.done()
        self.journal.reset(file.index, file.term)
        self.journal.configurations.restart(of_state(machine.state))
        if head.cluster_id:
            self.membership.learn_cluster_id(head.cluster_id)
        self.inside.commit = file.index
        self.inside.applied = file.index
        self.machine = machine
        self._compaction.rebase(file.index)
        self.window.restart(file.index)
        self.proposals.skipped(file.index)
        self.counters.snapshots_installed += 1
        self.guard.installed(self.inside.leader_id, file.index)

    # Out

    @property
    def leader_id(self) -> str | None:
        """Who leads as far as is known here, and was heard lately enough to believe it."""
        return self.guard.elections.leader_id

    def contact_age_s(self, now: float) -> float:
        """Since the last word of the leader; for the leader, since a quorum last answered."""
        if self.inside.role != LEADER:
            heard = self.guard.elections.heard_at
            return now - heard if heard > 0 else 1e6
        others = self.membership.others
        if not others:
            return 0.0
        answered_at = self.inside.answered_at
        answered = sorted((answered_at.get(peer, 0.0) for peer in others), reverse=True)
        return max(0.0, now - answered[self.membership.quorum - 2])

    @property
    def ready(self) -> bool:
        """Whether an entry of the present term is committed and applied here."""
        return self.leader_id is not None and self.journal.term_at(self.inside.applied) == self.inside.term

    def heard(self, now: float) -> tuple[str, ...]:
        """Voters that answered lately: as the leader knows, elsewhere the ones connected."""
        if self.inside.role != LEADER:
            return tuple(sorted({self.node_id, *self.peers_up}.intersection(self.membership.voters)))
        since = now - self.config.timing.election_min_s
        lately = [peer for peer, at in self.inside.answered_at.items() if at > since]
        return tuple(sorted({self.node_id, *lately}.intersection(self.membership.voters)))

    @property
    def status(self) -> ReplicaStatus:
        """As of the end of the last turn (see `_publish`)."""
        return self._status

    def _publish(self, now: float) -> None:
        """Renew the status when something in it moved; ages and who was heard may be 50 ms old."""
        old, inside = self._status, self.inside
        moved = (old.applied, old.commit, old.term) != (inside.applied, inside.commit, inside.term)
        if moved or old.leader_id != self.leader_id or now - self._published_at >= _PUBLISH_S:
            self._status = self._make_status()
            self._published_at = now

    def _make_status(self) -> ReplicaStatus:
        now = self._clock()
        inside = self.inside
        role = {LEADER: "leader", CANDIDATE: "candidate"}.get(inside.role, "voter")
        if self.halted is not None:
            role = "voter"
        elif self.membership.joining:
            role = "learner"
        return ReplicaStatus(
            node_id=self.node_id,
            cluster_id=self.membership.cluster_id,
            role=role,
            leader_id=self.leader_id if self.halted is None else None,
            term=inside.term,
            commit=inside.commit,
            applied=inside.applied,
            chain=self.machine.chain.hex(),
            ready=self.ready and self.halted is None,
            voters=self.membership.voters,
            voters_heard=self.heard(now),
            contact_age_ms=min(int(self.contact_age_s(now) * 1000), 10**9),
            clock_ms=self.machine.state.now_ms,
            halted=self.halted,
            refused={**self.membership.refused, **self.guard.excluded},
        )

    def close_door(self, sentence: str | None) -> None:
        """Take no more commands (None: take them again) and let another voter lead."""
        opening = self.proposals.closed is None and sentence is not None
        self.proposals.closed = sentence
        if opening and self.inside.role == LEADER and self.membership.others:
            self.hand_over(None, 5.0, lambda leader: None)

    def halt(self, sentence: str) -> None:
        """Answer everyone who waits; nothing works here any longer."""
        self.halted = sentence
        self.proposals.halt(sentence)
        self.reads.halt(sentence)
        self._handover.halt()
        self.changes.halt(sentence)
        self._status = self._make_status()
        self.window.wake()

    def last_batch(self) -> Batch | None:
        """What is left to write at an orderly stop (the commit index, usually)."""
        return self.journal.take()
