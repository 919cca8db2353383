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
from contextlib import suppress
from functools import partial
from typing import TypeVar

from ringrift_cluster.raft.changes import VoterState
from ringrift_cluster.raft.conf import VoterConfig
from ringrift_cluster.raft.configuration import Configuration
from ringrift_cluster.raft.counters import Counters
from ringrift_cluster.raft.node import RaftNode
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
        return await self._ask(partial(self._node.submit, commands, timeout_s))

    async def _ask(self, order: Callable[[Callable[[A | ReplicaError], None]], None]) -> A:
        """Let the consensus thread carry out `order` and wait for what it gives to `done`, its only argument.

        An answer that is a ReplicaError is raised. Raises Halted.
        """
        thread = self._thread
        answer: asyncio.Future[A | ReplicaError] = asyncio.get_running_loop().create_future()
        thread.call(partial(order, partial(thread.answer, answer)))
        found = await answer
        if isinstance(found, ReplicaError):
            # A fresh exception for each caller: one may be shared by many.
            raise type(found)(*found.args)
        return found

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
        loop = asyncio.get_running_loop()
        value: asyncio.Future[T] = loop.create_future()
        running: set[asyncio.Task[T]] = set()

        def ended(task: asyncio.Task[T]) -> None:
            running.discard(task)
            loop.call_soon_threadsafe(_take_over, value, task)

        def reader(done: Callable[[int | ReplicaError], None], found: Machine | ReplicaError) -> None:
            if isinstance(found, ReplicaError):
                done(found)
                return
            # A task keeps the query's own exception apart from the consensus thread's.
            task = asyncio.get_running_loop().create_task(_evaluate(query, found.state))
            running.add(task)
            task.add_done_callback(ended)
            done(self._node.inside.applied)

        reads = self._node.reads
        index: int = await self._ask(lambda done: reads.submit(consistency, at_least, wait_s, partial(reader, done)))
        return Read(await value, index)

    async def wait_for(self, index: int, timeout_s: float) -> int:
        """Wait until `index` is applied or the time is over; returns the applied index. Raises Halted.

        It costs the consensus thread no turn of its own: many wait here for every entry.
        """
        node = self._node
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def look() -> None:
            if node.status.applied >= index or node.halted is not None:
                self._thread.answer(reached, None)

        ticket = node.window.subscribe(look)
        try:
            # Looked at once more: what was applied before we subscribed wakes nobody.
            if node.status.applied < index and node.halted is None:
                async with asyncio.timeout(timeout_s):
                    await reached
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
        timeout_s = 4 * self._thread.config.timing.election_max_s
        found: str | None = await self._ask(partial(self._node.hand_over, target, timeout_s))
        if found is None or (target is not None and found != target):
            leader = found or self.status().leader_id or "nobody"
            raise NoLeader(f"leadership was not taken over by {target or 'another voter'}; {leader} leads")
        return found

    # Who votes

    async def add_voter(self, voter: Voter, *, request: str = "", timeout_s: float = 30.0) -> Configuration:
        """As the leader: let the log of `voter` catch up and make it one; repeating the request is safe.

        Raises ChangeRefused and NoLeader (nothing was changed), OutcomeUnknown, Halted.
        """
        return await self._ask(partial(self._node.add_voter, voter, request, timeout_s))

    async def remove_voter(self, name: str, *, request: str = "") -> Configuration:
        """As the leader: let `name` vote no longer; this one hands over first and raises NoLeader.

        Raises as `add_voter` does.
        """
        status = self.status()
        if status.role == "leader" and name == status.node_id and len(status.voters) > 1:
            heir = await self.transfer_leadership()
            raise NoLeader(f"{name} has handed leadership over to {heir}; ask {heir} to remove it")
        return await self._ask(partial(self._node.remove_voter, name, request))

    async def voter_states(self) -> list[VoterState]:
        """The voters and their progress, as far as it is known here; all of it at the leader. Raises Halted."""
        node = self._node
        return await self._ask(lambda done: done(node.voter_states()))

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
        with suppress(Halted):
            self._thread.call(self._thread.stop)
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
        return await self._ask(partial(self._node.want_snapshot, max_behind))


async def _evaluate(query: Callable[[State], T], state: State) -> T:
    return query(state)


def _take_over(value: asyncio.Future[T], task: asyncio.Task[T]) -> None:
    """What a task of the consensus thread came to, for a future of the loop that this runs on."""
    if value.done():
        return
    failure = task.exception()
    if failure is None:
        value.set_result(task.result())
    else:
        value.set_exception(failure)
