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
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping

import httpx

from executors.heartbeat import AgentRefused
from executors.ledger import LedgerError
from executors.logs import Logs
from executors.objectstore import Misplaced, checked
from ringrift_cluster import __version__, badge, interpreter
from ringrift_cluster.agreement import Agreement
from ringrift_cluster.api.connections import ConnectionLimits, Connections, with_room_for_files
from ringrift_cluster.api.server import http_server
from ringrift_cluster.api.services import Learner, LoopStatus, OwnChannel, Services
from ringrift_cluster.beside import LogBeside
from ringrift_cluster.controllers.runner import Controllers
from ringrift_cluster.departure import EXIT_SETUP, Departure
from ringrift_cluster.feed.conf import FollowerConfig
from ringrift_cluster.feed.follower import FeedReplica
from ringrift_cluster.feed.router import FeedRouter
from ringrift_cluster.hands import Hands
from ringrift_cluster.heartbeats import HeartbeatCollector
from ringrift_cluster.pulse import Pulse
from ringrift_cluster.raft.engine import RaftReplica
from ringrift_cluster.relay.channel import Channel
from ringrift_cluster.relay.switchboard import Switchboard
from ringrift_cluster.replica import ReplicaError
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
from ringrift_cluster.watch import Watch

log = logging.getLogger("ringrift.node")

#: an agent that leaves its jobs alone is waited for this long
LET_GO_S = 2.0


class SetupError(Exception):
    """Why this node cannot start, in one sentence."""


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
        self.departure = Departure(stop_jobs=config.stop_jobs)
        self.beside = LogBeside(config, log_beside)
        self._listener = listener
        #: a thread hangs on the disk; Python would wait for it for ever
        self._stuck = False
        self._reports: dict[str, TaskReport] = {}

    async def run(self) -> int:
        config = self.config
        for warning in config.warnings:
            log.warning("event=setting_warning detail=%s", warning)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.departure.obey_signal, number)
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
        left = self.departure
        log.info("event=node_left reason=%s exit=%d", left.order.reason or "-", left.exit_code)
        if self._stuck:
            os._exit(left.code_when_stuck)
        return left.exit_code

    async def _join(self, http: httpx.AsyncClient) -> bool:
        """Buy this node's own token where it has a join token and needs one; false when it was told to leave."""
        config = self.config
        if config.join_token is None or config.auth_token is not None or self._badge.joined:
            return True
        voters = {m.id: m.url for m in config.voters}
        given = config.join_token.get_secret_value()
        try:
            own = await badge.join(http, voters, config.node_id, given, config.data_dir, self.departure.begun)
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
            await self.beside.start(self._tls)
        interpreter.leave_alone()
        try:
            yield replica
        finally:
            await replica.stop()
            if self.beside.log is not None and self.departure.next_seat is not Seat.VOTER:
                await self.beside.log.stop()

    def _start_voter(self) -> RaftReplica:
        loop = asyncio.get_running_loop()
        replica = self.beside.take()
        if replica is None:
            replica = RaftReplica.start(voter_config(self.config, self._tls, joins=False))

        def halted(sentence: str) -> None:
            loop.call_soon_threadsafe(self._voter_halted, replica, sentence)

        replica.when_halted(halted)
        voting, named = replica.status().voters, {m.id for m in self.config.voters}
        if voting and set(voting) != named:
            log.warning(
                "event=cluster_list_differs voters=%s flags=%s detail=%s",
                ",".join(voting),
                ",".join(sorted(named)),
                "the log says who votes; --cluster only says where to look for them",
            )
        return replica

    def _voter_halted(self, replica: RaftReplica, sentence: str) -> None:
        """The log stopped by itself: its node goes on as a follower when the cluster removed it, else it ends."""
        if replica.removed is None:
            self.departure.halt(sentence)
        else:
            remember(self.config.data_dir, voter_urls(replica, self.config.voters))
            self.departure.change_seat(Seat.FOLLOWER, sentence)

    async def _learn(self, replica: RaftReplica | FeedReplica) -> Learner:
        """Have a log here that a leader may bring up to date; what names it. Raises ChangeRefused."""
        if isinstance(replica, RaftReplica):
            return Learner(raft_address(self.config), self.config.url, replica.log_id)
        return await self.beside.learn(replica, self._tls, joined=self._badge.joined)

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
        hands = Hands(config, replica, record, http)
        executor, gateway = hands.executor, hands.gateway
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
            blobs=hands.blobs,
            logs=Logs(config.data_dir),
            agent=executor.status,
            gpus=executor.gpus,
            storage=executor.storage,
            restore=executor.restore,
            shutdown=self.departure.begin,
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
            closing=self.departure.begun,
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
        watch = Watch(config, self.departure, self.beside)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(watch.keep(pulse, replica, executor), name="pulse"),
                group.create_task(watch.keep_parent(), name="parent"),
            ]
            if heartbeats is not None:
                tasks.append(group.create_task(self._supervised("heartbeats", heartbeats.run)))
            if controllers is not None:
                tasks.append(group.create_task(controllers.run(), name="controllers"))
            if isinstance(replica, RaftReplica):
                agreement = Agreement(replica, lambda: voter_urls(replica, config.voters), http, self.departure.halt)
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
            order = await self.departure.wait()
            log.info("event=node_leaving reason=%s stop_jobs=%s", order.reason, order.stop_jobs)
            if order.stop_jobs:
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
        if replica.status().role == "leader" and len(replica.status().voters) > 1 and not self.departure.exit_code:
            try:
                async with asyncio.timeout(self.config.stop_grace_s / 2):
                    new = await replica.transfer_leadership()
                log.info("event=leadership_handed_over to=%s", new)
            except (ReplicaError, TimeoutError) as error:
                log.warning("event=leadership_not_handed_over reason=%s", error)
        stop_jobs = self.departure.order.stop_jobs
        try:
            async with asyncio.timeout(None if stop_jobs else LET_GO_S):
                await executor.stop(stop_jobs=stop_jobs)
        except TimeoutError:
            self._stuck = True
            log.error("event=agent_left_behind detail=%s", f"its disk did not answer for {LET_GO_S:g} s")

    async def _obey(self, executor: Executor) -> None:
        """One agent's life; one that fails at work is followed by another that adopts its jobs.

        One that is refused takes its node down, since two nodes of one name must not run; so does the first one
        when it cannot even start.
        """
        try:
            await executor.run()
        except AgentRefused as error:
            executor.dismissed = True
            self.departure.fall("node_refused", str(error), EXIT_SETUP)
        except (LedgerError, OSError) as error:
            if executor.has_joined:
                raise
            executor.dismissed = True
            self.departure.fall(
                "agent_cannot_start", f"the agent in {self.config.data_dir} cannot start: {error}", EXIT_SETUP
            )

    def _complaints(self) -> tuple[str, ...]:
        tls = self._tls.complaint if self._tls is not None else ""
        return (*self.config.complaints, *([tls] if tls else []))

    async def _supervised(self, name: str, run: Callable[[], object]) -> None:
        report = self._reports[name] = TaskReport(name)
        await supervise(report, run, clock=time.monotonic, wall_s=time.time)  # type: ignore[arg-type]

    def _loops(self, controllers: Controllers | None) -> Callable[[], Mapping[str, LoopStatus]]:
        def loops() -> Mapping[str, LoopStatus]:
            reports = {**self._reports, **(controllers.reports if controllers else {})}
            return {
                name: LoopStatus(r.enabled, r.running, r.last_run_s, round(r.success_rate, 1), r.last_error)
                for name, r in reports.items()
            }

        return loops
