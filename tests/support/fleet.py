"""A whole cluster without processes: the real machine, the real policies, and executors that only pretend."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ringrift_cluster import bootstrap
from ringrift_cluster.controllers.placement import place
from ringrift_cluster.controllers.population import populate
from ringrift_cluster.controllers.promotion import judge, rate
from ringrift_cluster.controllers.retention import forget
from ringrift_cluster.controllers.training import train
from ringrift_cluster.controllers.yielding import make_room
from statemachine.commands import Command, CompleteJob, JoinPeer, RecordHeartbeats, ReportJob, encode_command
from statemachine.entries import encode_entry
from statemachine.errors import Result
from statemachine.machine import Machine
from statemachine.rows import Job
from statemachine.state import State
from statemachine.values import Beat, MatchResult, Output, PeerFacts, Tally
from tests.support.law import digest_of

POLICIES: Sequence[Callable[[State], list[Command]]] = (populate, place, make_room, train, judge, rate, forget)


class Fleet:
    """`peers` nodes of `slots` slots each; `score` says what share a candidate takes from its champion."""

    def __init__(self, *, peers: int = 2, slots: int = 1, score: Callable[[str], int] = lambda work: 3) -> None:
        self.machine = Machine()
        self.elapsed_ms = 0
        self.score = score
        self.refused: list[tuple[Command, Result]] = []
        self.names = [f"node-{n}" for n in range(peers)]
        self.apply_encoded(bootstrap.commands(bootstrap.Profile.DEMO))
        for name in self.names:
            facts = PeerFacts(cpu_slots=slots)
            self.apply(JoinPeer(name, 1, f"boot-{name}", "follower", f"http://{name}", facts))

    @property
    def state(self) -> State:
        return self.machine.state

    def apply_encoded(self, commands: list[bytes], step_ms: int = 100) -> list[Result]:
        self.elapsed_ms += step_ms
        return self.machine.apply(self.machine.index + 1, 1, encode_entry(1, self.elapsed_ms, commands))

    def apply(self, *commands: Command, step_ms: int = 100) -> list[Result]:
        return self.apply_encoded([encode_command(c) for c in commands], step_ms)

    def decide(self) -> int:
        """One look of every policy; returns how many commands they gave."""
        given = 0
        for policy in POLICIES:
            commands = policy(self.state)
            given += len(commands)
            if commands:
                results = self.apply(*commands)
                self.refused += [
                    (c, r) for c, r in zip(commands, results, strict=True) if type(r).__name__ == "Rejected"
                ]
        return given

    def beat(self, step_ms: int = 1_000) -> None:
        self.apply(RecordHeartbeats(tuple(Beat(name, 1) for name in self.names)), step_ms=step_ms)

    def live(self) -> list[Job]:
        return [self.state.jobs[j] for name in self.names for j in self.state.index.live_jobs_of(name)]

    def finish(self, job: Job) -> list[Result]:
        """Start a job and complete it with the result its kind should have."""
        return self.apply(ReportJob(job.job, job.fence, "running"), self.result(job))

    def result(self, job: Job) -> CompleteJob:
        spec = self.state.work[job.work].spec
        done = {
            "initial": self._model,
            "training": self._model,
            "selfplay": self._games,
            "evaluation": self._match,
        }[spec.work_type]
        return done(job)

    def _model(self, job: Job) -> CompleteJob:
        spec = self.state.work[job.work].spec
        # As with the real programs, weights follow from the seed and the inputs.
        made_of = (job.work, spec.params["seed"], *(i.digest for i in spec.inputs))
        output = Output("model.pt", digest_of(" ".join(made_of)), 1_000, "model")
        return CompleteJob(job.job, job.fence, counts={"steps": 10, "samples": 100}, outputs=(output,))

    def _games(self, job: Job) -> CompleteJob:
        games = int(self.state.work[job.work].spec.params["games"])
        counts = {"games": games, "positions": 20 * games}
        output = Output("games.npz", digest_of(job.job), 5_000, "games", counts)
        return CompleteJob(job.job, job.fence, counts=counts, outputs=(output,))

    def _match(self, job: Job) -> CompleteJob:
        spec = self.state.work[job.work].spec
        groups = int(spec.params["groups"])
        players = self.state.configs()[spec.config].players
        size = 2 if players == 2 else 2 * players
        won = min(self.score(job.work) * groups * size // 4, groups * size)
        histogram = [0] * (2 * size + 1)
        half_points = 2 * won
        for group in range(groups):
            share = half_points * (group + 1) // groups - half_points * group // groups
            histogram[share] += 1
        tally = Tally(seats_a=1, seats_b=players - 1, wins_a=won, wins_b=groups * size - won, draws=0)
        match = MatchResult(spec.params["participant_a"], spec.params["participant_b"], (tally,), tuple(histogram))
        return CompleteJob(job.job, job.fence, counts={"games": groups * size, "groups": groups}, match=match)

    def turn(self) -> None:
        """Let the policies decide, then every executor finish what it holds."""
        self.decide()
        for job in self.live():
            if job.actual in ("pending", "starting", "running"):
                self.finish(job)
        self.beat()
