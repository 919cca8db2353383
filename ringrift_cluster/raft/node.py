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
from collections.abc import Callable, Sequence

from ringrift_cluster.raft.changes import Done, VoterChanges, VoterState
from ringrift_cluster.raft.compaction import Compaction, Job
from ringrift_cluster.raft.conf import VoterConfig, sync_obj_conf
from ringrift_cluster.raft.configuration import of_state
from ringrift_cluster.raft.consensus import Consensus
from ringrift_cluster.raft.counters import Counters
from ringrift_cluster.raft.errors import DiskLost, Diverged
from ringrift_cluster.raft.guard import Guard
from ringrift_cluster.raft.handover import Handover
from ringrift_cluster.raft.journal import Batch, Journal, Store
from ringrift_cluster.raft.membership import Membership
from ringrift_cluster.raft.messages import (
    AppendReply,
    FetchPart,
    Forward,
    Forwarded,
    HandOver,
    Hello,
    Message,
    Part,
    Ping,
    TimeoutNow,
    Welcome,
)
from ringrift_cluster.raft.opening import open_machine
from ringrift_cluster.raft.outlook import Outlook
from ringrift_cluster.raft.parts import Parts
from ringrift_cluster.raft.privates import LEADER
from ringrift_cluster.raft.proposals import Outcome, Proposals
from ringrift_cluster.raft.reads import Reads
from ringrift_cluster.raft.roster import Links, Peers, Roster
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
        self._send = links.send
        self._store = store
        self._snapshots = snapshots
        self.journal = Journal(store.load(), birth_id=f"{rng.getrandbits(96):024x}")
        self.machine = open_machine(config.node_id, self.journal, snapshots)
        base = self.machine.index
        first = tuple(Voter(v, config.voters[v], config.urls.get(v, "")) for v in sorted(config.voters))
        self.membership = Membership(
            config.node_id, first, self.journal, f"{rng.getrandbits(128):032x}", of_state(self.machine.state)
        )
        peers = Peers()
        self.guard = Guard(
            self.membership,
            peers,
            self.journal,
            config.timing,
            self.counters,
            self._send,
            lambda: snapshots.latest,
            lambda peer, offer: self._parts.offered(peer, offer),
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
        self.roster = Roster(peers, self.membership, self.inside, self.journal, self.guard, links, clock)
        self.changes = VoterChanges(
            self.membership,
            self.inside,
            self.journal,
            self.guard,
            config.timing,
            self._append_voters,
            self.roster.reconfigure,
        )
        self.roster.attach(self.changes)
        self._inbox: deque[tuple[str, Message | str]] = deque()
        self._batch: Batch | None = None
        self._compaction = Compaction(
            config.limits, self.journal, self.membership, snapshots, self.counters, clock, base
        )
        self._expired_at = 0.0
        self._settled_at = 0.0
        #: the applied index that the window's readers were last told of
        self._told = self.inside.applied
        self.halted: str | None = None
        self._parts = Parts(snapshots, self._compaction, config.limits.part_bytes, self._send, clock, self._install)
        self.outlook = Outlook(
            self.membership, self.inside, self.journal, self.guard, self.roster, config.timing.election_min_s, clock
        )
        self.outlook.renew(self.machine, None)

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
        leader = self.outlook.leader_id
        if leader is not None and leader in self.roster.peers_up:
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
        may_campaign = self.membership.admitted and (not others or bool(self.roster.peers_up))
        self._consensus.tick(election=self.guard.elections.gate(now, may_campaign))
        self._note_role(role)
        if not self.proposals.held:
            self.changes.step(now)
        self.roster.settle()
        applied = self.inside.applied
        self.proposals.passed(applied)
        self._handover.step(now)
        if self.reads.waiting:
            self.reads.answer(self.machine, applied, self.outlook.contact_age_s(now), now)
        if now - self._expired_at >= _EXPIRE_S:
            self._expired_at = now
            self.proposals.expire(now)
        self.proposals.send_answers()
        if not self.membership.cluster_id:
            self.membership.find_cluster_id(self.inside.commit)
        self._compaction.keep(self.machine, now, leading=self.inside.role == LEADER)
        self.outlook.publish(self.machine, now)
        if self._told != applied:
            self._told = applied
            self.window.wake()

    def _note_role(self, before: int) -> None:
        if before == LEADER and self.inside.role != LEADER:
            self.guard.elections.postpone(self._clock())

    def _receive(self, peer: str, message: Message | str, now: float) -> None:
        if message == _UP:
            self.roster.up(peer)
            self.guard.connected(peer)
            return
        if message == _DOWN:
            self.roster.down(peer)
            self.guard.disconnected(peer)
            self.proposals.peer_lost(peer)
            self.roster.reconfigure()
            return
        if peer == self.node_id or peer not in self.roster.peers_up:
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
                self._parts.give(peer, message, lambda: self.machine)
            case Part():
                self._parts.take(peer, message)
            case HandOver():
                self._handover.start(message.target or None, now, 5.0, lambda leader: None)
            case Ping():
                pass
            case TimeoutNow() if not self.roster.may_win:
                self.counters.refusals["cannot_win"] += 1
            case Message():
                self.guard.receive(peer, message)

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

    def _install(self, file: SnapshotFile, head: Header, machine: Machine) -> None:
        """Take a verified snapshot in place of the log. What is newer here already stays."""
        settled = max(self.inside.commit, self.inside.applied)
        unneeded = file.index <= settled or self.journal.term_at(file.index) == file.term
        if unneeded or (head.index, head.term) != (file.index, file.term):
            self._parts.done()
            return
        known = self.membership.cluster_id
        if known and head.cluster_id != known:
            raise Diverged(f"the leader's snapshot is of cluster {head.cluster_id}, this voter of {known}")
        self._snapshots.adopt(file)
        self._parts.done()
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
    def status(self) -> ReplicaStatus:
        """As of the end of the last turn."""
        return self.outlook.status

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
        self.outlook.renew(self.machine, sentence)
        self.window.wake()

    def last_batch(self) -> Batch | None:
        """What is left to write at an orderly stop (the commit index, usually)."""
        return self.journal.take()
