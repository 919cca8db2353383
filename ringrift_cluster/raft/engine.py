"""The voter's replica, for anyone in the process.

    replica = RaftReplica.start(VoterConfig(node_id="a", voters={"a": "127.0.0.1:8771", ...}, data_dir=path))
    placed = await replica.propose([encode_command(command)])
    await replica.stop()

Every coroutine may be awaited on any loop; the work happens on the consensus thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from ringrift_cluster.raft.changes import Done, VoterState
from ringrift_cluster.raft.conf import VoterConfig
from ringrift_cluster.raft.configuration import Configuration
from ringrift_cluster.raft.counters import Counters
from ringrift_cluster.raft.node import RaftNode
from ringrift_cluster.raft.proposals import Outcome
from ringrift_cluster.raft.snapshots import SnapshotFile
from ringrift_cluster.raft.thread import ConsensusThread
from ringrift_cluster.raft.window import Applied, Window
from ringrift_cluster.replica import (
    Busy,
    Consistency,
    Halted,
    NoLeader,
    Proposed,
    Read,
    ReplicaError,
    ReplicaStatus,
)
from statemachine.machine import Machine
from statemachine.state import State
from statemachine.values import Voter

T = TypeVar("T")
A = TypeVar("A")


class RaftReplica:
    """A voter (see `ringrift_cluster.replica.Replica`), with the log feed and snapshots for followers."""

    def __init__(self, thread: ConsensusThread) -> None:
        self._thread = thread
        self._node: RaftNode = thread.node

    @classmethod
    def start(cls, config: VoterConfig, *, on_halt: Callable[[str], None] | None = None) -> RaftReplica:
        """Open the files, listen, and return; blocks for some milliseconds.

        `on_halt` is called on the consensus thread with a sentence if the voter stops by itself.
        Raises PortTaken, DataDirLocked, MembersContradict, JournalDamaged (all RaftError).
        """
        thread = ConsensusThread(config, on_halt)
        threading.Thread(target=thread.run, name=f"raft-{config.node_id}", daemon=True).start()
        thread.started.wait()
        if thread.start_failure is not None:
            raise thread.start_failure
        return cls(thread)

    # The replica protocol

    async def propose(self, commands: Sequence[bytes], *, timeout_s: float = 10.0) -> Proposed:
        """Commit encoded commands together, in order; one result each. Raises ReplicaError."""
        if self._thread.crowded:
            raise Busy("the consensus thread is behind; come back in a moment")
        node = self._node
        answer: _Answer[Outcome] = _Answer(self._thread)
        self._thread.call(lambda: node.submit(commands, timeout_s, answer.put), answer.refuse)
        outcome = await answer.future
        if isinstance(outcome, ReplicaError):
            raise _again(outcome)
        return outcome

    async def read(
        self,
        query: Callable[[State], T],
        *,
        consistency: Consistency = Consistency.LOCAL,
        at_least: int = 0,
        wait_s: float = 0.0,
    ) -> Read[T]:
        """Run a short pure query on the consensus thread. What it raises is raised here.

        Raises Stale, NoLeader, Busy, Halted.
        """
        answer: _Answer[Read[T] | ReplicaError] = _Answer(self._thread)

        def reader(found: Machine | ReplicaError) -> None:
            if isinstance(found, ReplicaError):
                answer.put(found)
                return
            index = self._node.inside.applied
            # A task keeps the query's own exception apart from the consensus thread's.
            task = asyncio.get_running_loop().create_task(_evaluate(query, found.state, index))
            task.add_done_callback(answer.settle)
            running.add(task)
            task.add_done_callback(running.discard)

        running: set[asyncio.Task[Read[T]]] = set()
        reads = self._node.reads
        self._thread.call(lambda: reads.submit(consistency, at_least, wait_s, reader), answer.refuse)
        found = await answer.future
        if isinstance(found, ReplicaError):
            raise _again(found)
        return found

    async def wait_for(self, index: int, timeout_s: float) -> int:
        """Wait until `index` is applied or the time is over; returns the applied index. Raises Halted.

        It costs the consensus thread no turn of its own: many wait here for every entry.
        """
        node, reached = self._node, _Answer[None](self._thread)

        def look() -> None:
            if node.status.applied >= index or node.halted is not None:
                reached.put(None)

        ticket = node.window.subscribe(look)
        try:
            # Looked at once more: what was applied before we subscribed wakes nobody.
            if node.status.applied < index and node.halted is None:
                async with asyncio.timeout(timeout_s):
                    await reached.future
        except TimeoutError:
            pass
        finally:
            node.window.unsubscribe(ticket)
        if node.halted is not None:
            raise Halted(node.halted)
        return node.status.applied

    def status(self) -> ReplicaStatus:
        """As of the last turn; costs nothing."""
        return self._thread.status()

    def live_state(self) -> State:
        """The state itself, for single look-ups by key from any thread."""
        return self._node.machine.state

    async def transfer_leadership(self, target: str | None = None) -> str:
        """Hand leadership to a voter; returns who leads then. Raises NoLeader when none could take it."""
        answer: _Answer[str | ReplicaError | None] = _Answer(self._thread)
        node = self._node
        timeout_s = 4 * self._thread.config.timing.election_max_s
        self._thread.call(lambda: node.hand_over(target, timeout_s, answer.put), answer.refuse)
        found = await answer.future
        if isinstance(found, ReplicaError):
            raise _again(found)
        if found is None or (target is not None and found != target):
            raise NoLeader(f"leadership was not taken over by {target or 'another voter'}; {found or 'nobody'} leads")
        return found

    # Who votes

    async def add_voter(self, voter: Voter, *, request: str = "", timeout_s: float = 30.0) -> Configuration:
        """As the leader: let the log of `voter` catch up and make it one; repeating the request is safe.

        Raises ChangeRefused and NoLeader (nothing was changed), OutcomeUnknown, Halted.
        """
        return await self._changed(lambda node, done: node.add_voter(voter, request, timeout_s, done))

    async def remove_voter(self, name: str, *, request: str = "") -> Configuration:
        """As the leader: let `name` vote no longer; this one hands over first and raises NoLeader.

        Raises as `add_voter` does.
        """
        status = self.status()
        if status.role == "leader" and name == status.node_id and len(status.voters) > 1:
            heir = await self.transfer_leadership()
            raise NoLeader(f"{name} has handed leadership over to {heir}; ask {heir} to remove it")
        return await self._changed(lambda node, done: node.remove_voter(name, request, done))

    async def _changed(self, order: Callable[[RaftNode, Done], None]) -> Configuration:
        answer: _Answer[Configuration | ReplicaError] = _Answer(self._thread)
        node = self._node
        self._thread.call(lambda: order(node, answer.put), answer.refuse)
        found = await answer.future
        if isinstance(found, ReplicaError):
            raise _again(found)
        return found

    async def voter_states(self) -> list[VoterState]:
        """The voters and their progress, as far as it is known here; all of it at the leader. Raises Halted."""
        answer: _Answer[list[VoterState]] = _Answer(self._thread)
        node = self._node
        self._thread.call(lambda: answer.put(node.voter_states()), answer.refuse)
        return await answer.future

    @property
    def log_id(self) -> str:
        """Names this voter's log since its first start."""
        return self._node.membership.log_id

    @property
    def is_voter(self) -> bool:
        """Whether the cluster counts this log; False for one that joins until its addition is committed."""
        return not self._node.membership.joining

    @property
    def removed(self) -> str | None:
        """Why this node votes no longer, once it has learned that."""
        return self._thread.removed

    async def stop(self) -> None:
        """Stop in order: finish the turn, write what is left, close. Leadership is not handed over here."""
        self._thread.call(self._thread.stop, lambda sentence: None)
        await asyncio.to_thread(self._thread.ended.wait)

    def when_halted(self, told: Callable[[str], None]) -> None:
        """Whom to tell, on the consensus thread, when this voter stops by itself; in place of whoever was before."""
        self._thread.when_halted(told)

    # For followers and metrics

    @property
    def counters(self) -> Counters:
        """Live counters; read only."""
        return self._node.counters

    @property
    def window(self) -> Window:
        """The applied entries kept for followers."""
        return self._node.window

    def feed_since(self, index: int, limit: int = 1000) -> list[Applied] | None:
        """Applied entries after `index`, oldest first; None when the window no longer has them. Any thread."""
        return self._node.window.since(index, limit)

    def subscribe(self, wake: Callable[[], None]) -> int:
        """Call `wake` after entries were applied (consensus thread, must not block); returns a ticket."""
        return self._node.window.subscribe(wake)

    def unsubscribe(self, ticket: int) -> None:
        self._node.window.unsubscribe(ticket)

    async def snapshot_file(self, max_behind: int = 5_000) -> SnapshotFile:
        """A complete snapshot at most `max_behind` entries old; one is written when there is none.

        The file stays for at least a minute after it was last asked for. Raises Halted, Stale.
        """
        answer: _Answer[SnapshotFile | ReplicaError] = _Answer(self._thread)
        node = self._node
        self._thread.call(lambda: node.want_snapshot(max_behind, answer.put), answer.refuse)
        found = await answer.future
        if isinstance(found, ReplicaError):
            raise _again(found)
        return found


class _Answer(Generic[A]):
    """A future on the caller's loop, completed from the consensus thread."""

    def __init__(self, thread: ConsensusThread) -> None:
        self._thread = thread
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[A] = self._loop.create_future()

    def put(self, value: A) -> None:
        """On the consensus thread."""
        self._thread.answer(self._loop, lambda: self._complete(value))

    def settle(self, task: asyncio.Task[A]) -> None:
        """On the consensus thread: take over a task's result or exception."""
        failure = task.exception()
        if failure is None:
            self._loop.call_soon_threadsafe(self._complete, task.result())
        else:
            self._loop.call_soon_threadsafe(self._fail, failure)

    def refuse(self, sentence: str) -> None:
        """On the caller's thread: the voter has ended."""
        self._fail(Halted(sentence))

    def _complete(self, value: A) -> None:
        if not self.future.done():
            self.future.set_result(value)

    def _fail(self, failure: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(failure)


async def _evaluate(query: Callable[[State], T], state: State, index: int) -> Read[T]:
    return Read(query(state), index)


def _again(error: ReplicaError) -> ReplicaError:
    """A fresh exception for each caller: one may be shared by many."""
    return type(error)(*error.args)
