"""Clients that add work and repeat what they could not learn the outcome of, under the same request id."""

from __future__ import annotations

from collections.abc import Callable

from ringrift_cluster.raft.node import RaftNode
from ringrift_cluster.raft.proposals import Outcome
from ringrift_cluster.replica import Consistency, OutcomeUnknown, Proposed, ReplicaError
from statemachine.commands import AddWork, Once, encode_command
from statemachine.errors import Done
from statemachine.machine import Machine
from tests.simulation.checks import Checks
from tests.simulation.voter import Voter
from tests.simulation.world import Broken, World

FAR_MS = 10**12
PATIENCE_S = 2.0


class Client:
    """One request at a time, at a voter chosen anew for each attempt.

    Every attempt names another work item, so a request that took effect twice leaves two rows. Now and then the
    network doubles a request: the same id goes to another voter as well, or once more seconds later.
    """

    def __init__(self, number: int, world: World, voters: list[Voter], checks: Checks) -> None:
        self._number = number
        self._world = world
        self._voters = voters
        self._checks = checks
        self._requests = 0
        self.stopped = False
        self.idle = True

    def start(self) -> None:
        self._world.after(self._world.between(0.0, 0.1), self._next)

    def _next(self) -> None:
        if self.stopped:
            self.idle = True
            return
        self.idle = False
        self._requests += 1
        if self._world.chance(0.15):
            self._read()
        else:
            self._attempt(f"r{self._number}.{self._requests}", 1)

    def _later(self) -> None:
        self._world.after(self._world.between(0.001, 0.2), self._next)

    def _voter(self) -> Voter | None:
        alive = [v for v in self._voters if v.alive]
        return self._world.rng.choice(alive) if alive else None

    def _command(self, request: str, attempt: str) -> bytes:
        # No executor can run it, so its row stays; every tenth expires at once.
        item = AddWork(
            work=f"{request}:{attempt}",
            work_type=f"kind{self._requests % 40}",
            params={"n": "x" * 40},
            ttl_ms=int(self._requests % 10 == 0),
        )
        return encode_command(Once(request=request, expires_at_ms=FAR_MS, command=item))

    def _attempt(self, request: str, attempt: int) -> None:
        command = self._command(request, str(attempt))
        if self._world.chance(0.1):
            # Both copies are under way at once.
            self._double(request, f"{attempt}-double")

        def done(outcome: Outcome | None) -> None:
            if isinstance(outcome, Proposed):
                if not isinstance(outcome.results[0], Done):
                    raise Broken(f"request {request} was refused: {outcome.results[0]}")
                self._checks.acknowledged[request] = outcome.index
                if self._world.chance(0.05):
                    self._world.after(self._world.between(0.0, 4.0), lambda: self._double(request, "late"))
                self._later()
                return
            if outcome is None or isinstance(outcome, OutcomeUnknown):
                self._checks.unknown += 1
            else:
                self._checks.refused.append(f"{request}:{attempt}")
            self._world.after(self._world.between(0.01, 0.2), lambda: self._attempt(request, attempt + 1))

        self._ask(lambda node, answer: node.submit([command], PATIENCE_S, answer), done)

    def _double(self, request: str, attempt: str) -> None:
        command = self._command(request, attempt)

        def done(outcome: Outcome | None) -> None:
            if isinstance(outcome, Proposed) and not isinstance(outcome.results[0], Done):
                raise Broken(f"the double of request {request} was refused: {outcome.results[0]}")

        self._ask(lambda node, answer: node.submit([command], PATIENCE_S, answer), done)

    def _ask(
        self,
        ask: Callable[[RaftNode, Callable[[Outcome], None]], None],
        done: Callable[[Outcome | None], None],
    ) -> None:
        """Ask some voter; `done` gets its answer, or None when it died with it."""
        voter = self._voter()
        if voter is None:
            self._world.after(0.1, lambda: self._ask(ask, done))
            return
        life = voter.life
        asked_at = self._world.now
        answered = False

        def answer(outcome: Outcome) -> None:
            nonlocal answered
            if answered:
                raise Broken(f"{voter.name} answered twice: {outcome}")
            answered = True
            done(outcome)

        def lost() -> None:
            nonlocal answered
            if answered:
                return
            if voter.life != life:
                answered = True
                done(None)
                return
            if not voter.paused and self._world.now - max(asked_at, voter.resumed_at) > 3 * PATIENCE_S:
                raise Broken(f"{voter.name} never answered a request of {asked_at:.1f}")
            self._world.after(0.5, lost)

        voter.call(lambda node: ask(node, answer))
        self._world.after(0.5, lost)

    def _read(self) -> None:
        voter = self._voter()
        if voter is None:
            self._later()
            return
        before = self._checks.acknowledged_to
        life = voter.life
        answered = False

        def reader(found: Machine | ReplicaError) -> None:
            nonlocal answered
            answered = True
            if isinstance(found, Machine):
                self._checks.reads += 1
                if found.index < before:
                    raise Broken(f"a linearizable read at {voter.name} saw {found.index}, {before} was acknowledged")
            self._later()

        def lost() -> None:
            nonlocal answered
            if not answered and voter.life != life:
                answered = True
                self._later()
            elif not answered:
                self._world.after(0.5, lost)

        voter.call(lambda node: node.reads.submit(Consistency.LINEARIZABLE, 0, 1.0, reader))
        self._world.after(0.5, lost)
