"""The composition root: one node, from its settings to its last breath.

    voter                                   follower
    RaftReplica (own thread)                FeedReplica
    HeartbeatCollector                      heartbeats to a voter
    Controllers (act while it leads)        -
    Agent, HTTP face, feed for followers    Agent, HTTP face, feed for followers

Start: data directory, HTTP port, replica, then everything that uses it. Stop: streams end, leadership is handed
over, the agent leaves its jobs for adoption (or stops them), HTTP closes, the replica last.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace

import httpx

from executors import host
from executors.agent import Agent
from executors.blobs import Blobs
from executors.gateway import Gateway
from executors.heartbeat import AgentRefused
from executors.ledger import LedgerError
from executors.logs import Logs
from executors.notice import Notice
from executors.objectstore import Misplaced, ObjectStore, checked
from executors.options import Options
from ringrift_cluster import __version__, badge, interpreter
from ringrift_cluster.agreement import Agreement
from ringrift_cluster.api.connections import ConnectionLimits, Connections, with_room_for_files
from ringrift_cluster.api.server import http_server
from ringrift_cluster.api.services import Learner, LoopStatus, OwnChannel, Services, ShutdownOrder
from ringrift_cluster.controllers.runner import Controllers
from ringrift_cluster.feed.conf import FollowerConfig
from ringrift_cluster.feed.follower import FeedReplica
from ringrift_cluster.feed.router import FeedRouter
from ringrift_cluster.heartbeats import HeartbeatCollector
from ringrift_cluster.members import is_loopback
from ringrift_cluster.port import ReplicaPort
from ringrift_cluster.pulse import PULSE_S, Pulse
from ringrift_cluster.raft.engine import RaftReplica
from ringrift_cluster.raft.errors import RaftError
from ringrift_cluster.relay.channel import Channel
from ringrift_cluster.relay.switchboard import Switchboard
from ringrift_cluster.replica import ChangeRefused, ReplicaError
from ringrift_cluster.seat import (
    Seat,
    known_voters,
    raft_address,
    remember,
    voter_config,
    voter_urls,
    whom_to_follow,
)
from ringrift_cluster.settings import NodeConfig
from ringrift_cluster.supervise import TaskReport, supervise
from ringrift_cluster.tls import Tls, TlsError
from ringrift_cluster.vitals import Executor, counters
from statemachine.machine import SUPPORTED_FEATURE_LEVEL

log = logging.getLogger("ringrift.node")

EXIT_SETUP = 2
#: the replica stopped by itself (damaged file, divergence, full disk): restarting alone does not mend it
EXIT_HALTED = 70
#: start it again: its voters are of another cluster now, or it could not begin anew since its disk hung
EXIT_AGAIN = 75
#: a follower that the cluster counts as a voter, with a log that it has not, ends after this long
MISSED_S = 10.0
#: a voter with so many cores keeps one of them for itself
SPARE_CORES = 4
#: an agent that leaves its jobs alone is waited for this long
LET_GO_S = 2.0


class SetupError(Exception):
    """Why this node cannot start, in one sentence."""


def _reserved(said: int | None, votes: bool) -> int:
    """Cores kept free of jobs: as its operator says, else one for the log of a voter with some to spare."""
    return said if said is not None else int(votes and host.usable_cores() >= SPARE_CORES)


def _shown(channel: Channel | None) -> OwnChannel:
    if channel is None:
        return OwnChannel()
    return OwnChannel(
        channel.voter, round(channel.open_for_s, 1), channel.answering, channel.opened, channel.last_error
    )


def _tls(config: NodeConfig) -> Tls | None:
    """The node's TLS; its certificate must be its own. Raises SetupError."""
    if config.tls is None:
        return None
    try:
        found = Tls(config.tls)
    except TlsError as error:
        raise SetupError(str(error)) from error
    said = found.facts
    if said is not None and (said.node_id != config.node_id or said.voter < config.is_voter):
        whose = f"{'voter' if said.voter else 'node'} {said.node_id}" if said.node_id else "no node"
        own = f"{'voter' if config.is_voter else 'node'} {config.node_id}"
        raise SetupError(f"the certificate {config.tls.cert} is of {whose}, and this is {own}; give it one of its own")
    return found


class Node:
    """One composition of a node, for one seat; it runs once."""

    def __init__(
        self, config: NodeConfig, listener: socket.socket, seat: Seat, log_beside: RaftReplica | None = None
    ) -> None:
        """`log_beside` is the running log of a learner that has become a voter."""
        self.config = config
        self.seat = seat
        #: a log that joins, beside a follower; or the one that a voter takes over
        self.log_beside = log_beside
        #: what the node is composed for next, once this composition has ended
        self.next_seat: Seat | None = None
        self._learning = asyncio.Lock()
        self._counted = 0
        self._listener = listener
        self._leaving = asyncio.Event()
        self._order = ShutdownOrder(reason="", stop_jobs=config.stop_jobs)
        self._exit = 0
        self._signalled = False
        #: a thread hangs on the disk; Python would wait for it for ever
        self._stuck = False
        self._reports: dict[str, TaskReport] = {}

    async def run(self) -> int:
        config = self.config
        for warning in config.warnings:
            log.warning('event=setting_warning detail="%s"', warning)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._obey_signal, number)
        token = config.auth_token.get_secret_value() if config.auth_token else None
        limits = httpx.Limits(max_connections=256, max_keepalive_connections=64)
        timeout = httpx.Timeout(30.0, connect=3.0)
        try:
            kept = None if token else badge.stored(config.data_dir)
        except (OSError, UnicodeDecodeError) as error:
            raise SetupError(f"this node's own token cannot be read: {error}") from error
        try:
            if config.object_store is not None:
                checked(config.object_store)
        except Misplaced as error:
            raise SetupError(str(error)) from error
        self._tls = _tls(config)
        if self._tls is not None and self._tls.http_server is not None:
            loop.add_signal_handler(signal.SIGHUP, self._tls.refresh)
        verify = self._tls.http_client if self._tls is not None else True
        voters = [*known_voters(config).values(), *(m.url for m in config.voters)]
        self._badge = badge.Badge(config.node_id, token, kept, voters, sealed=config.sealed)
        async with httpx.AsyncClient(timeout=timeout, auth=self._badge, limits=limits, verify=verify) as http:
            if await self._join(http):
                async with self._replica(http) as replica:
                    await self._live(replica, http, token)
        log.info("event=node_left reason=%s exit=%d", self._order.reason or "-", self._exit)
        if self._stuck:
            os._exit(self.code_when_stuck)
        return self._exit

    async def _join(self, http: httpx.AsyncClient) -> bool:
        """Buy this node's own token where it has a join token and needs one; false when it was told to leave."""
        config = self.config
        if config.join_token is None or config.auth_token is not None or self._badge.joined:
            return True
        voters = {m.id: m.url for m in config.voters}
        given = config.join_token.get_secret_value()
        try:
            own = await badge.join(http, voters, config.node_id, given, config.data_dir, self._leaving.is_set)
        except (badge.JoinRefused, OSError) as error:
            raise SetupError(str(error)) from error
        if own is not None:
            self._badge.take(own)
        return own is not None

    @contextlib.asynccontextmanager
    async def _replica(self, http: httpx.AsyncClient) -> AsyncIterator[RaftReplica | FeedReplica]:
        replica: RaftReplica | FeedReplica
        if self.seat is Seat.VOTER:
            replica = self._start_voter()
        else:
            replica = await self._start_follower(http)
        if self.seat is Seat.LEARNER:
            self.log_beside = await self._start_learner()
        interpreter.leave_alone()
        try:
            yield replica
        finally:
            await replica.stop()
            if self.log_beside is not None and self.next_seat is not Seat.VOTER:
                await self.log_beside.stop()

    def _start_voter(self) -> RaftReplica:
        loop = asyncio.get_running_loop()
        replica, self.log_beside = self.log_beside, None
        if replica is None:
            replica = RaftReplica.start(voter_config(self.config, self._tls, joins=False))

        def halted(sentence: str) -> None:
            loop.call_soon_threadsafe(self._voter_halted, replica, sentence)

        replica.when_halted(halted)
        voting, named = replica.status().voters, {m.id for m in self.config.voters}
        if voting and set(voting) != named:
            log.warning(
                "event=cluster_list_differs voters=%s flags=%s detail=%r",
                ",".join(voting),
                ",".join(sorted(named)),
                "the log says who votes; --cluster only says where to look for them",
            )
        return replica

    def _voter_halted(self, replica: RaftReplica, sentence: str) -> None:
        """The log stopped by itself: its node goes on as a follower when the cluster removed it, else it ends."""
        if replica.removed is None:
            self._halted(sentence)
        else:
            remember(self.config.data_dir, voter_urls(replica, self.config.voters))
            self._change_seat(Seat.FOLLOWER, sentence)

    def _change_seat(self, seat: Seat, reason: str) -> None:
        if not self._leaving.is_set():
            self.next_seat = seat
            self._leave(ShutdownOrder(reason, stop_jobs=False))

    @property
    def reason(self) -> str:
        """Why it leaves."""
        return self._order.reason

    @property
    def restarts(self) -> bool:
        """Whether its process is to begin anew."""
        return self._order.restart and not self._exit and not self._signalled

    @property
    def code_when_stuck(self) -> int:
        """The exit code of a process that cannot go on by itself, in its next seat or anew.

        That is left to whoever looks after it, who takes code 0 for a wish to be gone.
        """
        return self._exit or (EXIT_AGAIN if self.restarts or self.next_seat is not None else 0)

    async def _learn(self, replica: RaftReplica | FeedReplica) -> Learner:
        """Have a log here that a leader may bring up to date; what names it. Raises ChangeRefused."""
        config = self.config
        if isinstance(replica, RaftReplica):
            return Learner(raft_address(config), config.url, replica.log_id)
        now = replica.status()
        if not now.ready:
            raise ChangeRefused(
                f"{config.node_id} has not caught up on the feed (it is at entry {now.applied} of {now.commit})"
            )
        if self._badge.joined:
            raise ChangeRefused(
                f"{config.node_id} came with a join token, which makes no voters; start it with --auth-token-file"
            )
        said = self._tls.facts if self._tls is not None else None
        if self._tls is not None and (said is None or not said.voter):
            raise ChangeRefused(
                f"the certificate of {config.node_id} is not a voter's; give it one "
                f"(`ringrift-node certs issue {config.node_id} --voter`)"
            )
        if self._tls is None and config.cluster_secret is None and not is_loopback(config.bind):
            raise ChangeRefused(
                f"{config.node_id} has no cluster secret to know the voters by; start it with --cluster-secret-file"
            )
        async with self._learning:
            if self.log_beside is None:
                self.log_beside = await self._start_learner()
        return Learner(raft_address(config), config.url, self.log_beside.log_id)

    async def _start_learner(self) -> RaftReplica:
        """Raises ChangeRefused."""
        try:
            return await asyncio.to_thread(RaftReplica.start, voter_config(self.config, self._tls, joins=True))
        except RaftError as error:
            raise ChangeRefused(f"{self.config.node_id} cannot begin a log: {error}") from error

    async def _start_follower(self, http: httpx.AsyncClient) -> FeedReplica:
        config = self.config
        return await FeedReplica.start(
            FollowerConfig(
                node_id=config.node_id,
                voters=whom_to_follow(config),
                data_dir=config.data_dir,
                fresh_s=config.fresh_within_s,
                snapshot_every_entries=config.snapshot_every_entries,
            ),
            http,
        )

    async def _live(self, replica: RaftReplica | FeedReplica, http: httpx.AsyncClient, token: str | None) -> None:
        """Everything that uses the replica, until the order to leave."""
        config = self.config
        heartbeats = HeartbeatCollector(replica) if isinstance(replica, RaftReplica) else None
        record = heartbeats.record if heartbeats else replica.record  # type: ignore[union-attr]
        blobs = Blobs(config.data_dir / "artifacts", quota_bytes=config.store_bytes)
        bucket = config.object_store

        options = Options(
            cpu_slots=config.cpu_slots,
            max_processes=config.max_processes,
            starts_per_s=config.starts_per_s,
            reserve_cpus=_reserved(config.reserve_cpus, isinstance(replica, RaftReplica)),
            notice=Notice(config.notice_file, config.notice_command, config.notice_url),
            notice_every_s=config.notice_every_s,
            disk_floor=host.DiskFloor(config.disk_floor_percent, int(config.disk_floor_gib * host.GIB)),
            labels=config.labels,
            transfer_bytes_per_s=config.transfer_bytes_per_s,
            release=__version__,
            feature_level=SUPPORTED_FEATURE_LEVEL,
            progress_every_s=config.progress_every_s,
        )

        def hired(cluster_id: str) -> Agent:
            return Agent(
                ReplicaPort(replica, record),
                peer=config.node_id,
                address=config.url,
                role="voter" if isinstance(replica, RaftReplica) else "follower",
                data_dir=config.data_dir,
                cluster_id=cluster_id,
                blobs=blobs,
                http=http,
                vault=ObjectStore(bucket, cluster_id) if bucket is not None else None,
                options=replace(options, labels=(*options.labels, bucket.name)) if bucket is not None else options,
            )

        executor = Executor(replica, hired)
        gateway = Gateway(
            ReplicaPort(replica, record),
            node=config.node_id,
            address=config.url,
            data_dir=config.data_dir,
            blobs=blobs,
            http=http,
            options=options,
            keys=config.ssh,
            cluster_id=lambda: executor.cluster_id,
        )
        controllers = Controllers(replica, http=http) if isinstance(replica, RaftReplica) else None
        feed = FeedRouter(replica)
        board = Switchboard(lambda: uuid.uuid4().hex) if isinstance(replica, RaftReplica) else None
        channel: Channel | None = None
        pulse = Pulse(replica)
        tls_numbers = self._tls.numbers if self._tls is not None else dict[str, float]
        connections = Connections(with_room_for_files(ConnectionLimits()))
        services = Services(
            replica=replica,
            heartbeats=heartbeats or replica,  # type: ignore[arg-type]
            blobs=blobs,
            logs=Logs(config.data_dir),
            agent=executor.status,
            gpus=executor.gpus,
            storage=executor.storage,
            restore=executor.restore,
            shutdown=self._leave,
            learn=lambda: self._learn(replica),
            voters={m.id: m.url for m in config.voters},
            http=http,
            feed=feed,
            switchboard=board,
            channel=None if board is not None else lambda: _shown(channel),
            trials=config.data_dir / "trials",
            pulse=pulse.ages,
            loops=self._loops(controllers),
            counters=lambda: {
                **counters(replica, executor, controllers, pulse.stall_max_s),
                **connections.numbers(),
                **(board.numbers() if board is not None else {}),
                **(channel.numbers() if channel is not None else {}),
                "feed_streams": feed.streams,
                **tls_numbers(),
                **gateway.numbers(),
            },
            closing=self._leaving.is_set,
            token=token,
            guarded=self._badge.joined,
            exposure=config.exposure,
            complaints=self._complaints,
            version=__version__,
        )
        services.gate.pace.bytes_per_s = config.transfer_bytes_per_s
        tls = self._tls.http_server if self._tls is not None else None
        server = http_server(services, connections, tls, clear_too=config.tls_transition)
        if board is None and services.face is not None:
            channel = Channel(replica, lambda: voter_urls(replica, config.voters), http, services.face)
        log.info(
            "event=node_started role=%s url=%s data_dir=%s voters=%s pid=%d",
            self.seat,
            config.url,
            config.data_dir,
            ",".join(m.id for m in config.voters),
            os.getpid(),
        )
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._keep_watch(pulse, replica, executor), name="pulse"),
                group.create_task(self._watch_parent(), name="parent"),
            ]
            if heartbeats is not None:
                tasks.append(group.create_task(self._supervised("heartbeats", heartbeats.run)))
            if controllers is not None:
                tasks.append(group.create_task(controllers.run(), name="controllers"))
            if isinstance(replica, RaftReplica):
                agreement = Agreement(replica, lambda: voter_urls(replica, config.voters), http, self._halted)
                tasks.append(group.create_task(self._supervised("agreement", agreement.run)))
            if self._tls is not None:
                tasks.append(group.create_task(self._supervised("tls", self._tls.watch)))
            if token is not None or self._badge.joined:
                tasks.append(group.create_task(self._supervised("badge", lambda: self._badge.keep(replica))))
            if channel is not None:
                tasks.append(group.create_task(self._supervised("channel", channel.run)))
            serving = group.create_task(server.serve(sockets=[self._listener]), name="http")
            tasks.append(group.create_task(self._supervised("agent", lambda: self._obey(executor)), name="agent"))
            tasks.append(group.create_task(self._supervised("hosts", gateway.run), name="hosts"))
            await self._leaving.wait()
            log.info("event=node_leaving reason=%s stop_jobs=%s", self._order.reason, self._order.stop_jobs)
            if self._order.stop_jobs:
                await gateway.stop()
            await self._depart(replica, executor)
            if channel is not None:
                await channel.settle()
            if board is not None:
                board.close()
            for task in tasks:
                task.cancel()
            server.should_exit = True
            feed.close()
            await serving

    async def _depart(self, replica: RaftReplica | FeedReplica, executor: Executor) -> None:
        """Hand leadership over, then let the agent go. Each has its time; leaving never hangs."""
        if replica.status().role == "leader" and len(replica.status().voters) > 1 and not self._exit:
            try:
                async with asyncio.timeout(self.config.stop_grace_s / 2):
                    new = await replica.transfer_leadership()
                log.info("event=leadership_handed_over to=%s", new)
            except (ReplicaError, TimeoutError) as error:
                log.warning('event=leadership_not_handed_over reason="%s"', str(error) or type(error).__name__)
        stop_jobs = self._order.stop_jobs
        try:
            async with asyncio.timeout(None if stop_jobs else LET_GO_S):
                await executor.stop(stop_jobs=stop_jobs)
        except TimeoutError:
            self._stuck = True
            log.error('event=agent_left_behind detail="its disk did not answer for %g s"', LET_GO_S)

    async def _obey(self, executor: Executor) -> None:
        """One agent's life; one that fails at work is followed by another that adopts its jobs.

        One that is refused takes its node down, since two nodes of one name must not run; so does the first one
        when it cannot even start.
        """
        try:
            await executor.run()
        except AgentRefused as error:
            executor.dismissed = True
            self._fall("node_refused", str(error), EXIT_SETUP)
        except (LedgerError, OSError) as error:
            if executor.has_joined:
                raise
            executor.dismissed = True
            self._fall("agent_cannot_start", f"the agent in {self.config.data_dir} cannot start: {error}", EXIT_SETUP)

    def _obey_signal(self, number: int) -> None:
        """The first one is an orderly leave; a second one does not wait for it. Jobs stay under their keepers."""
        if self._signalled:
            log.error("event=node_cut_short signal=%d", number)
            os._exit(128 + number)
        self._signalled = True
        self.next_seat = None
        self._leave(ShutdownOrder(signal.Signals(number).name, self.config.stop_jobs))

    def _leave(self, order: ShutdownOrder) -> None:
        if not self._leaving.is_set():
            self._order = order
            self._leaving.set()

    def _halted(self, sentence: str) -> None:
        self._fall("replica_halted", sentence, EXIT_HALTED)

    def _fall(self, event: str, sentence: str, code: int) -> None:
        """Leave because of a fault, with a sentence for whoever looks."""
        log.critical('event=%s detail="%s"', event, sentence)
        sys.stderr.write(f"ringrift-node: {sentence}\n")
        self._exit = self._exit or code
        self._leave(ShutdownOrder(event, stop_jobs=False))

    def _complaints(self) -> tuple[str, ...]:
        tls = self._tls.complaint if self._tls is not None else ""
        return (*self.config.complaints, *([tls] if tls else []))

    async def _supervised(self, name: str, run: Callable[[], object]) -> None:
        report = self._reports[name] = TaskReport(name)
        await supervise(report, run, clock=time.monotonic, wall_s=time.time)  # type: ignore[arg-type]

    def _look_after(self, replica: RaftReplica | FeedReplica, executor: Executor) -> None:
        """A follower that halted, or that follows another cluster than its agent works for, ends its node."""
        now, hired_for = replica.status(), executor.cluster_id
        if self._leaving.is_set() or isinstance(replica, RaftReplica):
            return  # a voter calls when it halts, and never changes its cluster
        if now.halted:
            self._halted(now.halted)
        elif self.log_beside is not None and self.log_beside.is_voter:
            self._change_seat(Seat.VOTER, f"{self.config.node_id} is a voter now")
        elif self._is_counted_without_a_log(replica):
            self._halted(
                f"{self.config.node_id} is a voter of the cluster by a log that is not here: restore its data "
                f"directory, or run `ringrift-node voters remove {self.config.node_id}`, start it again and run "
                f"`ringrift-node voters add {self.config.node_id}`"
            )
        elif hired_for and now.cluster_id not in ("", hired_for):
            self._fall(
                "cluster_changed",
                f"the voters are of cluster {now.cluster_id} now, the jobs here are of {hired_for}; "
                "start the node again if that is meant",
                EXIT_AGAIN,
            )

    def _is_counted_without_a_log(self, replica: FeedReplica) -> bool:
        """Whether the voters wait for a log of this node that it has lost. Its state may be from before a removal,
        so it must say so for a while."""
        state = replica.live_state()
        own = None
        if state is not None and replica.status().ready:
            own = next((v for v in state.voters.voters if v.node == self.config.node_id), None)
        beside = self.log_beside.log_id if self.log_beside is not None else ""
        self._counted = self._counted + 1 if own is not None and own.log_id != beside else 0
        return self._counted * PULSE_S >= MISSED_S

    async def _keep_watch(self, pulse: Pulse, replica: RaftReplica | FeedReplica, executor: Executor) -> None:
        while True:
            await pulse.beat()
            self._look_after(replica, executor)

    async def _watch_parent(self) -> None:
        # The parent's pid is told to us: one that died while we were still importing would not be noticed.
        while parent := self.config.exit_with_parent:
            if os.getppid() != parent:
                self._leave(ShutdownOrder("parent_gone", stop_jobs=True))
                return
            await asyncio.sleep(PULSE_S)

    def _loops(self, controllers: Controllers | None) -> Callable[[], Mapping[str, LoopStatus]]:
        def loops() -> Mapping[str, LoopStatus]:
            reports = {**self._reports, **(controllers.reports if controllers else {})}
            return {
                name: LoopStatus(r.enabled, r.running, r.last_run_s, round(r.success_rate, 1), r.last_error)
                for name, r in reports.items()
            }

        return loops
