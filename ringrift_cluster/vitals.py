"""The executor inside its node, and the numbers a node shows of itself."""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Callable, Mapping

from executors.agent import Agent
from executors.heartbeat import AgentRefused
from executors.ledger import LedgerError
from executors.storage import Storage, StorageStatus
from executors.telemetry import Telemetry
from ringrift_cluster.api.services import AgentStatus
from ringrift_cluster.controllers.runner import Controllers
from ringrift_cluster.feed.follower import FeedReplica
from ringrift_cluster.raft.engine import RaftReplica
from ringrift_cluster.replica import Replica

log = logging.getLogger("ringrift.executor")

#: how often a node that does not know its cluster looks again
LOOK_S = 0.05


class Executor:
    """The agent, hired once the node knows which cluster it is in: indexes of another cluster mean nothing here."""

    def __init__(self, replica: Replica, hire: Callable[[str], Agent]) -> None:
        self._replica = replica
        self._hire = hire
        self.dismissed = False
        #: the cluster that the first agent was hired for
        self.cluster_id = ""
        #: an agent has been at work; what fails from now on may pass
        self.has_joined = False
        self.agent: Agent | None = None

    async def run(self) -> None:
        """One agent's life, until `stop`; run again, a new one adopts its jobs.

        Raises AgentRefused, LedgerError, OSError and whatever the agent failed with.
        """
        while not self.dismissed:
            self.cluster_id = self.cluster_id or self._replica.status().cluster_id
            if self.cluster_id:
                await self._employ(self._hire(self.cluster_id))
                return
            await asyncio.sleep(LOOK_S)

    async def _employ(self, agent: Agent) -> None:
        self.agent = agent
        try:
            await agent.run()
        finally:
            self.has_joined = self.has_joined or agent.status().joined
            self.agent = None

    async def stop(self, *, stop_jobs: bool) -> None:
        """Return when no agent works any more. Raises nothing of its own: what could not be stopped is logged."""
        self.dismissed = True
        if self.agent is not None:
            await self.agent.stop(stop_jobs=stop_jobs)
        elif stop_jobs:
            await self._stop_leftovers()

    async def _stop_leftovers(self) -> None:
        """Stop the jobs of an earlier process; the ledger knows them, whatever the cluster is."""
        try:
            agent = self._hire(self.cluster_id)
            life = asyncio.create_task(self._employ(agent), name="agent of leftovers")
            await asyncio.sleep(0)  # the task has begun: stopping an agent that has not only closes its files
            await agent.stop(stop_jobs=True)
            await life
        except (AgentRefused, LedgerError, OSError) as error:
            log.error('event=jobs_not_stopped detail=%s next="start the node again to stop them"', error)

    def gpus(self) -> tuple[Telemetry, ...]:
        """This machine's GPUs in full, as of the agent's last look."""
        return self.agent.upkeep.telemetry if self.agent is not None else ()

    def storage(self) -> StorageStatus | None:
        """What the agent does about this node's files."""
        storage = self._storage()
        return storage.status() if storage is not None else None

    def restore(self, digest: str) -> bool:
        """Begin to get a file from the object store; false when this node has none."""
        storage = self._storage()
        return storage is not None and storage.restore(digest)

    def _storage(self) -> Storage | None:
        """Of the node's own agent: its store is its own."""
        found = self.agent.storage if self.agent is not None else None
        return found if isinstance(found, Storage) else None

    def status(self) -> AgentStatus:
        if self.agent is None:
            reason = "its agent is being started again" if self.cluster_id else "the node does not know its cluster yet"
            return AgentStatus(healthy=False, not_ready=reason)
        now = self.agent.status()
        return AgentStatus(
            healthy=now.joined,
            jobs_active=now.preparing + now.running + now.stopping + now.waiting,
            last_pass_at_ms=now.last_pass_at_ms,
            acted_index=now.index,
            not_ready=now.not_ready,
        )


def counters(
    replica: RaftReplica | FeedReplica, executor: Executor, controllers: Controllers | None, stall_max_s: float
) -> Mapping[str, float]:
    """Numbers for /metrics beside those of the state; names end in _total when they only grow."""
    own = executor.agent.status() if executor.agent else None
    usage = resource.getrusage(resource.RUSAGE_SELF)
    numbers: dict[str, float] = {
        "agent_started_total": own.started if own else 0,
        "agent_restarted_total": own.restarted if own else 0,
        "agent_waiting_for_restart": own.waiting if own else 0,
        "agent_completed_total": own.completed if own else 0,
        "agent_failed_total": own.failed if own else 0,
        "http_loop_stall_max_seconds": stall_max_s,
        "process_cpu_seconds_total": usage.ru_utime + usage.ru_stime,
    }
    files = executor.storage() or StorageStatus()
    numbers |= {
        "files_stored": files.files,
        "files_stored_bytes": files.used_bytes,
        "files_quota_bytes": files.quota_bytes,
        "files_waiting": files.waiting,
        "files_fetched_total": files.fetched_files,
        "files_fetched_bytes_total": files.fetched_bytes,
        "files_evicted_total": files.evicted,
        "files_quarantined_total": files.quarantined,
    }
    if controllers is not None:
        numbers["controller_commands_total"] = controllers.commands
        numbers["controller_refusals_total"] = sum(controllers.refusals.values())
    if isinstance(replica, RaftReplica):
        seen = replica.counters
        numbers |= {
            "raft_frames_in_total": seen.frames_in,
            "raft_frames_out_total": seen.frames_out,
            "raft_bytes_in_total": seen.bytes_in,
            "raft_bytes_out_total": seen.bytes_out,
            "raft_refusals_total": sum(seen.refusals.values()),
            "raft_fsyncs_total": seen.fsyncs,
            "raft_fsync_seconds_total": seen.fsync_s,
            "raft_fsync_max_seconds": seen.fsync_max_s,
            "raft_entries_applied_total": seen.entries_applied,
            "raft_commands_applied_total": seen.commands_applied,
            "raft_elections_total": seen.elections,
            "raft_snapshots_written_total": seen.snapshots_written,
            "raft_snapshots_installed_total": seen.snapshots_installed,
            "raft_turn_max_seconds": seen.turn_max_s,
            "raft_stall_max_seconds": seen.stall_max_s,
        }
    else:
        numbers["feed_snapshots_taken_total"] = replica.snapshots_taken
    return numbers
