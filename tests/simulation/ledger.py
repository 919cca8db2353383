"""The committed log applied once more, with an eye on what no transition may do, and on who runs what."""

from __future__ import annotations

from typing import Protocol

from statemachine.commands import Command, CompleteJob, Once
from statemachine.entries import decode_entry
from statemachine.errors import Rejected, Result
from statemachine.machine import Machine
from statemachine.rows import LIVE_WORK, WorkStatus
from tests.simulation.world import World


class Running(Protocol):
    """A process that a simulated executor started."""

    node: str
    work: str
    job: str
    fence: int

    def honours(self) -> bool:
        """Whether it runs on a lease that its executor believes in now."""
        ...


class Ledger:
    """Applies each committed entry when the first replica does, and fails the run when a promise breaks."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.machine = Machine()
        #: work item -> job that was counted
        self.completed: dict[str, str] = {}
        #: config -> games of all accepted selfplay reports
        self.games: dict[str, int] = {}
        self.fences: dict[int, str] = {}
        self.started = 0
        self.lost = 0
        self._running: list[Running] = []

    # The log

    def apply(self, index: int, term: int, entry: bytes) -> bytes:
        """Returns the chain after the entry."""
        machine = self.machine
        commands = decode_entry(entry).commands
        results = machine.apply(index, term, entry)
        for command, result in zip(commands, results, strict=True):
            self._take(command, result, index)
        if machine.internal_errors:
            self._world.fail(f"entry {index}: a transition failed unforeseen: {results}")
        if commands:
            self._look(index)
        return machine.chain

    def _take(self, command: Command, result: Result, index: int) -> None:
        inner = command.command if isinstance(command, Once) else command
        if not isinstance(inner, CompleteJob) or isinstance(result, Rejected):
            return
        said = result.value
        if not said.get("published") or said.get("repeat"):
            return
        work = self.machine.state.jobs[inner.job].work
        if work in self.completed:
            self._world.fail(f"entry {index}: {work} was completed by {self.completed[work]} and again by {inner.job}")
        self.completed[work] = inner.job
        row = self.machine.state.work[work]
        if row.spec.work_type == "selfplay":
            self.games[row.spec.config] = self.games.get(row.spec.config, 0) + inner.counts.get("games", 0)

    def _look(self, index: int) -> None:
        """One live job an item, one job a fence, and the table's games are the reports' games."""
        state = self.machine.state
        held: dict[str, str] = {}
        for peer in state.peers:
            for name in state.index.live_jobs_of(peer):
                job = state.jobs[name]
                if self.fences.setdefault(job.fence, name) != name:
                    self._world.fail(f"entry {index}: fence {job.fence} is that of {self.fences[job.fence]} and {name}")
                if held.setdefault(job.work, name) != name:
                    self._world.fail(f"entry {index}: {job.work} has two live jobs, {held[job.work]} and {name}")
                work = state.work[job.work]
                if work.status in LIVE_WORK and work.job != name:
                    self._world.fail(f"entry {index}: {job.work} is under {work.job}, but {name} lives")
        for config, totals in state.totals.items():
            if totals.games != self.games.get(config, 0):
                self._world.fail(
                    f"entry {index}: {config} counts {totals.games} games, its reports {self.games.get(config, 0)}"
                )

    def finish(self) -> str | None:
        """What does not add up at the end, or None."""
        done = {n for n, w in self.machine.state.work.items() if w.status is WorkStatus.COMPLETED}
        if done != self.completed.keys():
            return f"completed in the table but not by a report, or the other way round: {done ^ self.completed.keys()}"
        return None

    # The machines

    def start(self, process: Running) -> None:
        """A process started; no other machine may honour a lease of the same item now."""
        self._running = [r for r in self._running if r.honours()]
        for other in self._running:
            if other.work == process.work and other.job != process.job:
                self._world.fail(
                    f"{process.node} started {process.job} (fence {process.fence}) while {other.node} ran "
                    f"{other.job} (fence {other.fence}) on a lease"
                )
        self.started += 1
        self._running.append(process)
