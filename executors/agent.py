"""The agent of one node: makes this machine look like the committed jobs.

    scan -> adopt -> join -> claim -> |  follow   a new index wakes the pass
                                      |  pass     read assignments, plan, perform          (wake or tick)
                                      |  beat     sign of life and progress; leases follow the acknowledged ones
                                      |  upkeep   disk, GPUs, holders, retention

A pass acts only on a view that shows this process's own incarnation, and never on an older index than one
acted on before, also across restarts. Doing nothing is always safe: each attempt has a keeper that ends it
when its lease is over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from msgspec.structs import replace

from executors import host
from executors.admission import Admission
from executors.adoption import adopt
from executors.attempts import Attempt
from executors.bench import Bench
from executors.blobs import Blobs
from executors.drivers.driver import Driver
from executors.drivers.local import Local
from executors.gpus import Gpus, Patient, Scanner
from executors.heartbeat import AgentRefused, Heartbeat
from executors.holdings import Holdings
from executors.ledger import Ledger, LedgerError
from executors.logs import Logs
from executors.options import Options
from executors.outcome import Failure
from executors.pace import Pace
from executors.ports import Clock, Cluster, ClusterError
from executors.reconcile import Action, Kind, Phase, plan
from executors.storage import Storage
from executors.transfers import Transfers, Vault
from executors.upkeep import Upkeep
from executors.views import view_of, wanted
from statemachine.commands import Command, ReleaseJob
from statemachine.queries import Assignment
from statemachine.rows import Desired

log = logging.getLogger(__name__)

#: a pass may take this share of the loop's time: 1 / (1 + REST)
REST = 9
#: shortest pause between two passes: on a busy cluster every entry wakes them
BREATH_S = 0.02


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """What the agent publishes about itself; reading it costs nothing."""

    peer: str
    incarnation: int
    joined: bool
    #: the applied index of the last pass
    index: int
    preparing: int
    running: int
    stopping: int
    #: to start their programs again
    waiting: int
    reporting: int
    started: int
    restarted: int
    completed: int
    failed: int
    #: wall time; 0 before the first one
    last_pass_at_ms: int
    not_ready: str


class Agent:
    """Runs the jobs of one peer. `run` until `stop`; everything belongs to the loop that calls `run`."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        peer: str,
        address: str,
        role: str,
        data_dir: Path,
        clock: Clock | None = None,
        cluster_id: str = "",
        blobs: Blobs | None = None,
        http: httpx.AsyncClient | None = None,
        gpus: Scanner | None = None,
        boot_id: str = "",
        driver: Driver | None = None,
        keeper: str = "",
        vault: Vault | None = None,
        options: Options | None = None,
    ) -> None:
        """`blobs` is shared with whoever serves GET /artifacts/DIGEST; `http` carries the node's credentials.
        Attempts live on this machine unless a `driver` says where else; `keeper` is the peer whose store `blobs` is,
        when that is another. `vault` is an object store that the node has access to.

        Raises LedgerError and OSError.
        """
        self.peer = peer
        self.options = options or Options()
        self.gpus: Scanner = Patient(gpus or Gpus())
        self.logs = Logs(data_dir)
        self._cluster = cluster
        self._clock = clock or host.HostClock()
        self._own_http = http is None
        self._http = http or httpx.AsyncClient(timeout=httpx.Timeout(30.0, connect=5.0))
        blobs = blobs or Blobs(data_dir / "artifacts")
        disk, starts = ThreadPoolExecutor(4, "agent-disk"), ThreadPoolExecutor(2, "agent-starts")
        ledger = Ledger(data_dir / "ledger.sqlite")
        if cluster_id:
            ledger.belong_to(cluster_id)
        (data_dir / "jobs").mkdir(parents=True, exist_ok=True)
        self.bench = Bench(
            cluster=cluster,
            clock=self._clock,
            ledger=ledger,
            blobs=blobs,
            disk=disk,
            starts=starts,
            data_dir=data_dir,
            driver=driver or Local(data_dir, disk, starts, boot_id),
            margin_s=self.options.margin_s,
            max_log_bytes=self.options.max_log_bytes,
            wake=lambda: self._wake.set(),
            transfers=Transfers(
                blobs,
                self._http,
                peer,
                Pace(self.options.transfer_bytes_per_s),
                vault=vault,
                patience=self.options.patience,
            ),
            saved=lambda: self._saved(),
            freed=lambda gpus: self._freed(gpus),
            cpus=host.job_cpus(self.options.reserve_cpus),
        )
        self._lent = self.bench.blobs.pool is None
        if self._lent:
            self.bench.blobs.pool = disk
        self.heartbeat = Heartbeat(self.bench, self.options, peer, address, role, self._renewable)
        self.attempts: dict[tuple[str, int], Attempt] = {}
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._assigned: frozenset[tuple[str, int]] = frozenset()
        self._wake = asyncio.Event()
        self._halt = asyncio.Event()
        self._adopted = asyncio.Event()
        self._ended = asyncio.Event()
        self._started = False
        self._index = ledger.index
        self._last_pass_at_ms = 0
        #: what the machine's provider said of its end; empty while it says nothing
        self.notice = ""
        self._admission = Admission(self.bench, self.options)
        self.upkeep = Upkeep(self.bench, self.gpus, self.options, peer, self._held_gpus)
        self.storage: Storage | Holdings = Storage(self.bench, self.options, peer)
        if keeper:
            self.storage = Holdings(self.bench, peer, keeper)
            self.bench.made = self.storage.made

    # --- the life of the agent --------------------------------------------------------------------

    async def run(self) -> None:
        """Adopt, join, and obey until `stop`. Raises AgentRefused; jobs go on under their keepers then."""
        self._started = True
        try:
            self.heartbeat.facts = await self.bench.on_disk(self.upkeep.first_facts)
            self.heartbeat.incarnation = self.bench.ledger.next_incarnation(self._clock.wall_ms())
            await self._adopt()
            self._adopted.set()
            await _first(self._live(), self._halt.wait())
        finally:
            self._halt.set()
            attempts = list(self._tasks.values())
            for task in attempts:
                task.cancel()
            await asyncio.gather(*attempts, return_exceptions=True)
            await asyncio.to_thread(self._close)
            if self._own_http:
                await self._http.aclose()
            self._ended.set()

    def _close(self) -> None:
        """Let go of threads and files, once what they were doing is done."""
        if self._lent:
            self.bench.blobs.pool = None  # the store may outlive its agent
        self.heartbeat.close()
        self.bench.starts.shutdown()
        self.bench.disk.shutdown()
        self.gpus.close()
        self.bench.ledger.close()

    async def stop(self, *, stop_jobs: bool = False) -> None:
        """Return when the agent has ended. Jobs are left for adoption, or stopped with their grace first."""
        self._admission.leaving = True
        if not self._started:
            self._close()
            return
        if stop_jobs:
            await _first(self._adopted.wait(), self._ended.wait())  # jobs of an earlier process are stopped as well
            self._stop_all("the node is stopping")
            longest = max((a.grace_s for a in self.attempts.values()), default=0.0) + self.options.margin_s + 5.0
            if self._tasks:
                await asyncio.wait(self._tasks.values(), timeout=longest)
        self._halt.set()
        await self._ended.wait()

    def status(self) -> AgentStatus:
        phases = [a.phase for a in self.attempts.values()]
        return AgentStatus(
            peer=self.peer,
            incarnation=self.heartbeat.incarnation,
            joined=self.heartbeat.joined,
            index=self._index,
            preparing=phases.count(Phase.PREPARING),
            running=phases.count(Phase.RUNNING),
            stopping=phases.count(Phase.STOPPING),
            waiting=phases.count(Phase.WAITING),
            reporting=phases.count(Phase.ENDED),
            started=self.bench.started,
            restarted=self.bench.restarted,
            completed=self.bench.completed,
            failed=self.bench.failed,
            last_pass_at_ms=self._last_pass_at_ms,
            not_ready=self.heartbeat.facts.not_ready,
        )

    async def _live(self) -> None:
        await self.heartbeat.join()
        await self._claim()
        self._admission.seen()
        await _first(
            self._follow(),
            self._reconcile(),
            self.heartbeat.run(),
            self._keep_up(),
            self.storage.run(),
            self._heed_notice(),
        )

    async def _claim(self) -> None:
        """Take the machine. Not before the cluster took this process: one that it does not hear takes nothing away."""
        entries = await self.bench.on_disk(self.bench.ledger.entries)
        boot_id = self.bench.boot_id
        held = [Path(e.folder) for e in entries if not e.reported and e.process.boot_id == boot_id]
        await self.bench.driver.claim(self.heartbeat.incarnation, held)

    async def _adopt(self) -> None:
        for attempt in await adopt(self.bench):
            self.attempts[attempt.key] = attempt
            if attempt.phase is not Phase.REPORTED:
                self._conduct(attempt, attempt.conduct())

    # --- the pass ---------------------------------------------------------------------------------

    async def _follow(self) -> None:
        index = 0
        while True:
            try:
                reached = await self._cluster.wait_for(index + 1, self.options.tick_s)
            except ClusterError as error:
                log.info("event=follow_waits error=%s", error)
                await asyncio.sleep(self.options.tick_s)
                continue
            if reached > index:
                index = reached
                self._wake.set()

    async def _reconcile(self) -> None:
        while True:
            began = self._clock.boot_s()
            self._wake.clear()
            await self._pass()
            took = self._clock.boot_s() - began
            self._last_pass_at_ms = self._clock.wall_ms()
            await asyncio.sleep(max(BREATH_S, took * REST))
            try:
                async with asyncio.timeout(self.options.tick_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _pass(self) -> None:
        """Read, plan, perform; one sentence in the log when there was something to do."""
        try:
            view, index = await self._cluster.read(partial(view_of, peer=self.peer))
        except ClusterError as error:
            log.info("event=pass_skipped error=%s", error)
            return
        old = index < self._index
        if old and not self._admission.blind():
            return
        if view.incarnation is None or view.incarnation != self.heartbeat.incarnation:
            if view.incarnation is not None and view.incarnation > self.heartbeat.incarnation:
                raise AgentRefused(
                    f"a newer process of {self.peer} (incarnation {view.incarnation}) has joined; this one must stop"
                )
            return  # our own join is not here yet, or a heartbeat will find out that we were removed
        assigned = {(a.job.job, a.job.fence): a for a in view.assignments}
        if not old:
            self._index = index
            self._admission.seen()
            self.bench.timing = view.timing
            self._assigned = frozenset(assigned)
            self._forget_settled(assigned.keys())
        actions = plan(
            [wanted(a) for a in view.assignments],
            [a.held() for a in self.attempts.values()],
            self._clock.boot_s(),
            self._admission.room(self.heartbeat.facts, self.upkeep.unsettled, view),
        )
        if old:
            # Nothing is begun or ended on such a view; what was granted on it can be handed back at any time.
            actions = [a for a in actions if a.kind is Kind.RELEASE and (a.job, a.fence) not in self.attempts]
        if not actions:
            return
        try:
            self.bench.ledger.acted_on(index)
        except LedgerError as error:
            log.error("event=pass_skipped error=%s", error)  # what runs goes on; nothing new is begun unrecorded
            return
        for action in actions:
            self._perform(action, assigned.get((action.job, action.fence)))
        said = [action for action in actions if action.kind is not Kind.FORGET]
        if said:
            log.info("event=pass index=%d did=%s", index, _sentence(said))

    def _perform(self, action: Action, assignment: Assignment | None) -> None:
        key = (action.job, action.fence)
        attempt = self.attempts.get(key)
        if action.kind is Kind.START and assignment is not None:
            self._admission.started()
            fresh = self.attempts[key] = Attempt(self.bench, assignment)
            self._conduct(fresh, fresh.conduct())
        elif action.kind is Kind.RESTART and attempt is not None:
            self._admission.started()
            attempt.again()
        elif action.kind in (Kind.RELEASE, Kind.GIVE_UP) and attempt is not None:
            attempt.release(action.reason)
        elif action.kind in (Kind.RELEASE, Kind.LOST) and assignment is not None:
            fresh = self.attempts[key] = Attempt(self.bench, assignment)
            command: Command = ReleaseJob(*key, action.reason)
            if action.kind is Kind.LOST:
                error_class = "lost" if assignment.job.desired is Desired.RUN else "stopped"
                command = Failure(error_class, action.reason).command(assignment.job, self._clock.wall_ms())
            self._conduct(fresh, fresh.close(command))
        elif attempt is None:
            return
        elif action.kind is Kind.STOP:
            attempt.stop("asked" if assignment is None or assignment.job.desired is Desired.STOP else "timeout")
        elif action.kind is Kind.KILL and key in self._assigned:
            attempt.kill()
        else:
            attempt.disown()

    def _conduct(self, attempt: Attempt, life: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(life, name=f"attempt {attempt.job.job}")
        self._tasks[attempt.key] = task
        task.add_done_callback(partial(self._conducted, attempt))

    def _conducted(self, attempt: Attempt, task: asyncio.Task[None]) -> None:
        """A fault in one attempt's own life is said aloud, ends that attempt and no other."""
        self._tasks.pop(attempt.key, None)
        self._wake.set()
        if task.cancelled() or task.exception() is None or self._halt.is_set():
            return
        log.error("event=attempt_fault job=%s", attempt.job.job, exc_info=task.exception())
        attempt.kill()
        if not attempt.at_fault:
            attempt.at_fault = True
            fault = Failure("infrastructure", f"the node's agent failed on it: {task.exception()!r}")
            self._conduct(attempt, attempt.close(fault.command(attempt.job, self._clock.wall_ms())))

    def _forget_settled(self, assigned: Collection[tuple[str, int]]) -> None:
        """Drop attempts whose end the committed jobs show."""
        for key, attempt in list(self.attempts.items()):
            if attempt.phase is Phase.REPORTED and key not in assigned and key not in self._tasks:
                del self.attempts[key]
                self.upkeep.suspects.ended(attempt.job.work, attempt.job.gpus, attempt.error_class)
                self.bench.note(self.bench.ledger.forget, key)
                self._freed(attempt.job.gpus)

    def _freed(self, gpus: Collection[str]) -> None:
        """Nothing of ours runs on these any more, but for what shares one."""
        shared = {uuid for other in self.attempts.values() if other.is_alive for uuid in other.job.gpus}
        self.upkeep.ended(set(gpus) - shared)

    def _held_gpus(self) -> frozenset[str]:
        return frozenset(uuid for a in self.attempts.values() for uuid in a.job.gpus)

    def _renewable(self) -> list[Attempt]:
        """Attempts that run and that the last view still gave to us."""
        return [a for k, a in self.attempts.items() if a.is_alive and not a.unwanted and k in self._assigned]

    # --- the end of the machine -------------------------------------------------------------------

    async def _heed_notice(self) -> None:
        """Leave the machine when its provider says so: no new work, jobs stopped with their grace, files sent away.

        What a job has so far goes to the cluster like after any other stop: a part that counts, or a checkpoint.
        """
        notice = self.options.notice
        while notice.watches:
            said = await notice.look()
            if said != self.notice:
                log.warning("event=notice detail=%s", said or "it was withdrawn")
                self.notice = said
                self.heartbeat.tell(replace(self.heartbeat.facts, not_ready=said))
            if said:
                self._stop_all(said)
                self.storage.hurry()
            await asyncio.sleep(self.options.notice_every_s)
        await self._halt.wait()

    def _stop_all(self, reason: str) -> None:
        for attempt in list(self.attempts.values()):
            if attempt.phase in (Phase.PREPARING, Phase.WAITING) and not attempt.release_reason:
                attempt.release(reason)
            elif attempt.phase is Phase.RUNNING:
                attempt.stop("asked")

    def _saved(self) -> None:
        """A checkpoint is a file of the cluster now; on a machine that goes it is wanted elsewhere at once."""
        if self.notice:
            self.storage.hurry()

    # --- upkeep -----------------------------------------------------------------------------------

    async def _keep_up(self) -> None:
        while True:
            await asyncio.sleep(self.options.upkeep_every_s)
            facts = await self.upkeep.facts()
            self.heartbeat.tell(replace(facts, not_ready=self.notice or facts.not_ready or self._admission.blind()))
            held = [(a.job.work, a.folder.path) for a in self.attempts.values()]
            await self.upkeep.tidy(self.logs, held)
            self._wake.set()


async def _first(*steps: Coroutine[Any, Any, object]) -> None:
    """Run loops together until the first ends or fails; raises what it raised. The others are cancelled."""
    tasks = [asyncio.create_task(step) for step in steps]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _sentence(actions: Sequence[Action]) -> str:
    """`start=w1.1,w2.1 stop=w3.1(told to stop)`: what a pass did, shortened when it did much."""
    parts = []
    for kind in Kind:
        some = [a for a in actions if a.kind is kind]
        if some:
            shown = [a.job if kind is Kind.START else f"{a.job}({a.reason})" for a in some[:5]]
            more = f",+{len(some) - 5}" if len(some) > 5 else ""
            parts.append(f"{kind}={','.join(shown)}{more}")
    return " ".join(parts)
