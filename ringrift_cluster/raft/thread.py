"""The consensus thread: one asyncio loop that drives a `RaftNode`, and a helper that writes snapshots.

A turn is: take over the calls of other threads, gather, wait for the disk, settle, answer. Turns run when
something arrived and every 20 ms. The thread itself waits for the disk: nothing that could be read meanwhile
counts before the wait is over, and handing the wait to another thread costs more than short ones take.
"""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

from ringrift_cluster.raft.compaction import Job
from ringrift_cluster.raft.conf import VoterConfig
from ringrift_cluster.raft.datadir import DataDir
from ringrift_cluster.raft.errors import RaftError, Removed
from ringrift_cluster.raft.handshake import Security
from ringrift_cluster.raft.messages import Hello, Message, Raft, Welcome
from ringrift_cluster.raft.node import RaftNode
from ringrift_cluster.raft.snapshots import SnapshotDir
from ringrift_cluster.raft.store import SqliteStore
from ringrift_cluster.raft.transport import Transport
from ringrift_cluster.replica import Halted, ReplicaStatus
from statemachine.errors import Halt

log = logging.getLogger(__name__)

TICK_S = 0.02
DISK_CHECK_S = 1.0
#: calls of other threads that may wait to be taken over
MAX_CALLS = 20_000

Call = Callable[[], object]
#: a future of a caller's loop, and what it is completed with
Answer = tuple[asyncio.Future[Any], object]


class ConsensusThread:
    """Owns a voter from opening its files to closing them. `run` is the thread's body."""

    def __init__(self, config: VoterConfig, on_halt: Callable[[str], None] | None = None) -> None:
        self.config = config
        self._on_halt = on_halt
        #: the sentence when the cluster decided that this node does not vote
        self.removed: str | None = None
        self._calls: deque[Call] = deque()
        self._lock = threading.Lock()
        self._woken = False
        self._ended = False
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        #: set once the voter serves or could not be started
        self.started = threading.Event()
        self.ended = threading.Event()
        self.start_failure: BaseException | None = None
        self._answers: defaultdict[asyncio.AbstractEventLoop, list[Answer]] = defaultdict(list)
        self._durable_waiters: list[asyncio.Future[None]] = []

    # From any thread

    def call(self, call: Call) -> None:
        """Run `call` in the next turn. Raises Halted when there is none."""
        with self._lock:
            if not self._ended:
                self._calls.append(call)
                if self._woken:
                    return
                self._woken = True
                loop = self._loop
                if loop is not None:
                    loop.call_soon_threadsafe(self._wake.set)
                return
        raise Halted(self.node.halted or "this voter has stopped")

    @property
    def crowded(self) -> bool:
        """Whether so many calls wait that another should be refused at the door."""
        return len(self._calls) >= MAX_CALLS

    def status(self) -> ReplicaStatus:
        return self.node.outlook.aged()

    def run(self) -> None:
        """The thread's body."""
        asyncio.run(self._main())

    def when_halted(self, told: Callable[[str], None]) -> None:
        """Tell somebody else; at once when it is too late to wait for it."""
        with self._lock:
            self._on_halt = told
            ended = self._ended
        if ended and self.node.halted:
            told(self.node.halted)

    # On the consensus thread

    def answer(self, future: asyncio.Future[Any], value: object) -> None:
        """Complete a future of a caller's loop at the end of this turn."""
        self._answers[future.get_loop()].append((future, value))

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        opening = asyncio.ensure_future(self._open())
        await asyncio.wait({opening})
        failure = opening.exception()
        if failure is not None:
            self.start_failure = failure
            self.ended.set()
            self.started.set()
            return
        self.started.set()
        turns = asyncio.ensure_future(self._turns())
        await asyncio.wait({turns})
        failure = turns.exception()
        if failure is not None:
            self._halt(failure)
        try:
            await self._close(orderly=failure is None)
        finally:
            # Whatever else goes wrong on the way out: whoever waits for the end, or must end the process, hears of it.
            self.ended.set()
            if failure is not None and self._on_halt is not None:
                self._on_halt(self.node.halted or "")

    async def _open(self) -> None:
        config = self.config
        data_dir = DataDir(config.data_dir)
        with ExitStack() as opened:
            self._lock_file = opened.enter_context(data_dir.lock())
            self._store = SqliteStore(data_dir.journal)
            opened.callback(self._store.close)
            links = _Links()
            snapshots = SnapshotDir(data_dir.snapshots)
            self.node = RaftNode(config, self._store, snapshots, links, clock=time.monotonic, rng=random.Random())
            self._transport = Transport(
                config.node_id,
                config.bind or config.voters[config.node_id],
                Security(config.secret, config.server_tls, config.client_tls, config.clear_too),
                config.limits.outbound_bytes,
                self.node.counters,
                self,
                config.elsewhere,
            )
            links.transport = self._transport
            self.node.begin()
            await self._transport.start()
            self._transport.reach(self.node.roster.addresses)
            opened.pop_all()
        self._work = ThreadPoolExecutor(1, thread_name_prefix="raft-work")
        log.info(
            "event=voter_open voter=%s entries=%d applied=%d term=%d",
            config.node_id,
            len(self.node.journal),
            self.node.inside.applied,
            self.node.inside.term,
        )

    async def _turns(self) -> None:
        loop = asyncio.get_running_loop()
        self._tick_due_at = loop.time()
        self._fsync_s = self.node.counters.fsync_s
        self._tick()
        disk_checked_at = 0.0
        while not self._stopping:
            await self._wake.wait()
            self._wake.clear()
            self._turn()
            while self.node.dirty or self.node.behind:
                # Sockets are read between the turns of a voter that catches up.
                await asyncio.sleep(0)
                self._turn()
            if self._transport.failure is not None:
                raise self._transport.failure
            job = self.node.take_job()
            if job is not None:
                self._start_job(job)
            if loop.time() - disk_checked_at > DISK_CHECK_S:
                disk_checked_at = loop.time()
                self._check_disk()

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        counters = self.node.counters
        late = loop.time() - self._tick_due_at - (counters.fsync_s - self._fsync_s)
        counters.stall_max_s = max(counters.stall_max_s, late)
        self._fsync_s = counters.fsync_s
        self._wake.set()
        self._tick_due_at = loop.time() + TICK_S
        self._tick_handle = loop.call_at(self._tick_due_at, self._tick)

    def _turn(self) -> None:
        node = self.node
        counters = node.counters
        before = node.status
        started, waited_s = time.perf_counter(), counters.fsync_s
        # Cleared before the queue is emptied: a call that comes in between wakes us again.
        self._woken = False
        for _ in range(len(self._calls)):
            self._calls.popleft()()
        waiters, self._durable_waiters = self._durable_waiters, []
        writes = node.dirty
        settled = node.gather()
        self._flush()
        if writes or node.batch_waiting:
            node.sync()
            node.settle()
        elif not settled:
            node.settle()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._flush()
        counters.turns += 1
        busy_s = time.perf_counter() - started - (counters.fsync_s - waited_s)
        counters.turn_max_s = max(counters.turn_max_s, busy_s)
        self._note(before, node.status)

    def _flush(self) -> None:
        if not self._answers:
            return
        answers, self._answers = self._answers, defaultdict(list)
        for loop, given in answers.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(complete, given)

    def _note(self, before: ReplicaStatus, after: ReplicaStatus) -> None:
        if (before.role, before.leader_id, before.ready) != (after.role, after.leader_id, after.ready):
            log.info(
                "event=role voter=%s role=%s leader=%s term=%d commit=%d ready=%s",
                after.node_id,
                after.role,
                after.leader_id or "-",
                after.term,
                after.commit,
                str(after.ready).lower(),
            )

    def _start_job(self, job: Job) -> None:
        task = asyncio.get_running_loop().run_in_executor(self._work, job.run)

        def done(ran: asyncio.Future[None]) -> None:
            if ran.cancelled():
                return
            failure = ran.exception()
            if failure is not None:
                self._transport.failure = self._transport.failure or failure
            else:
                self._calls.append(job.finish)
            self._wake.set()

        task.add_done_callback(done)

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self.config.data_dir).free
        floor = self.config.limits.disk_floor_bytes
        sentence = None
        if free < floor:
            sentence = (
                f"{self.config.node_id} has {free >> 20} MiB free in {self.config.data_dir}, below the floor "
                f"of {floor >> 20} MiB; free space there"
            )
        self.node.close_door(sentence)

    def _halt(self, failure: BaseException) -> None:
        sentence = str(failure) or type(failure).__name__
        if isinstance(failure, Removed):
            self.removed = sentence
            log.warning("event=voter_removed voter=%s sentence=%s", self.config.node_id, sentence)
            self.node.halt(sentence)
            return
        log.critical(
            "event=voter_halted voter=%s error=%s sentence=%s",
            self.config.node_id,
            type(failure).__name__,
            sentence,
            exc_info=None if isinstance(failure, RaftError | Halt) else failure,
        )
        self.node.halt(sentence)

    async def _close(self, *, orderly: bool) -> None:
        self._tick_handle.cancel()
        with self._lock:
            self._ended = True
        if orderly:
            self.node.halt("this voter was stopped")
        while self._calls:
            self._at_last(self._calls.popleft())
        self._flush()
        await self._transport.stop()
        self._work.shutdown(cancel_futures=True)
        batch = self.node.last_batch() if orderly else None
        if batch is not None:
            self._at_last(partial(self._store.write, batch))
        self._store.close()
        self._lock_file.close()

    def _at_last(self, call: Call) -> None:
        """What is left to do on the way out. A disk that fails now changes nothing that anybody was told."""
        try:
            call()
        except RaftError as error:
            log.error("event=voter_closed_badly voter=%s error=%s", self.config.node_id, error)

    def stop(self) -> None:
        """End after this turn. Only as a `call`."""
        self._stopping = True
        self._wake.set()

    # What the transport asks (see transport.Home)

    def hello(self, nonce: bytes) -> Hello:
        return self.node.hello(nonce)

    def judge(self, hello: Hello) -> Welcome:
        return self.node.judge(hello)

    def welcomed(self, hello: Hello, answer: Welcome) -> None:
        self.node.welcomed(hello, answer)

    async def durable(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._durable_waiters.append(waiter)
        self._wake.set()
        await waiter

    def connected(self, peer: str) -> None:
        self.node.connected(peer)
        self._wake.set()

    def disconnected(self, peer: str) -> None:
        self.node.disconnected(peer)
        self._wake.set()

    def deliver(self, peer: str, message: Raft) -> None:
        self.node.deliver(peer, message)
        self._wake.set()


class _Links:
    """The node is made before its transport; nothing is sent before both exist."""

    transport: Transport | None = None

    def send(self, peer: str, message: Message) -> None:
        if self.transport is not None:
            self.transport.send(peer, message)

    def reach(self, addresses: Mapping[str, str]) -> None:
        if self.transport is not None:
            self.transport.reach(addresses)


def complete(answers: Iterable[Answer]) -> None:
    """On the loop of the futures: whoever no longer waits gets nothing."""
    for future, value in answers:
        if not future.done():
            future.set_result(value)
