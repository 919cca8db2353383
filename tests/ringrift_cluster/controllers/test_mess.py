"""The loop after a mess: nodes die with their files, operators do what operators do, and then it goes on by itself."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from statemachine import queries
from statemachine import settings as st
from statemachine.commands import (
    AddHolder,
    AddWork,
    CancelWork,
    ChangeSetting,
    Command,
    DrainPeer,
    FailJob,
    ForgetArtifact,
    JoinPeer,
    PauseCluster,
    PromoteModel,
    RecordHeartbeats,
    RemovePeer,
    ReportJob,
    RetryWork,
    RollbackModel,
    StartGauntlet,
    StopJob,
    VoidMatch,
)
from statemachine.rows import ModelStatus
from statemachine.values import Beat, Evidence, PeerFacts
from tests.support.fleet import Fleet

NODES = ("node-0", "node-1", "node-2")
#: an operator looks after lost champions so often, in turns of 2 s
ROUND = 50


class Mess:
    """Three nodes, of which one is always left; a file is on the node that made it until it is copied."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.fleet = Fleet(peers=len(NODES), score=lambda work: self.rng.choice((1, 2, 3, 3)))
        self.incarnations = dict.fromkeys(NODES, 1)
        self.alive = set(NODES)
        kept = st.Retention(
            work_ms=200_000, dead_peer_ms=400_000, former_models=self.rng.choice((1, 3)), rejected_models=0
        )
        self.fleet.apply(ChangeSetting("retention", st.encode(kept)))

    def some(self, names: Iterable[str]) -> str:
        return self.rng.choice(sorted(names))

    def turn(self, works: float, copies: float, step_ms: int) -> None:
        """The policies decide; each job ends with probability `works`, each file is copied with `copies`."""
        fleet = self.fleet
        fleet.decide()
        for name in sorted(self.alive):
            for job in [fleet.state.jobs[job] for job in fleet.state.index.live_jobs_of(name)]:
                if self.rng.random() < 0.05:
                    how = self.rng.choice(("user", "infrastructure", "oom"))
                    fleet.apply(ReportJob(job.job, job.fence, "running"), FailJob(job.job, job.fence, how, "it broke"))
                elif self.rng.random() < works:
                    fleet.finish(job)
        for row in list(fleet.state.artifacts.values()):
            if self.alive.intersection(row.holders) and self.rng.random() < copies:
                fleet.apply(AddHolder(row.digest, self.some(self.alive)))
        beats = tuple(Beat(name, self.incarnations[name]) for name in sorted(self.alive))
        fleet.apply(RecordHeartbeats(beats), step_ms=step_ms)

    def befall(self) -> None:
        """Something happens, or nothing."""
        fleet, state, config = self.fleet, self.fleet.state, self.some(self.fleet.state.configs())
        dead = set(NODES) - self.alive
        chance = self.rng.random()
        if chance < 0.03 and len(self.alive) > 1:
            self.alive.discard(self.some(self.alive))
        elif chance < 0.06 and dead:
            self.join(self.some(dead))
        elif chance < 0.08:
            former = [m.digest for m in state.models.values() if (m.config, m.status) == (config, ModelStatus.FORMER)]
            if former:
                champion = queries.champion(state, config)
                fleet.apply(RollbackModel(config, self.some(former), champion, "it loses to random"))
        elif chance < 0.10 and state.matches:
            fleet.apply(VoidMatch(self.some(state.matches), "a broken worker"))
        elif chance < 0.12:
            fleet.apply(PauseCluster(self.rng.random() < 0.5, "to look"))
        elif chance < 0.14:
            self.enable(config, self.rng.random() < 0.5)
        elif chance < 0.16 and state.work:
            fleet.apply(CancelWork(self.some(state.work), "by mistake"))
        elif chance < 0.17:
            fleet.apply(*(RemovePeer(name) for name in sorted(dead)))
        elif chance < 0.32:
            self.operate(config)

    def operate(self, config: str) -> None:
        """An operator does something, sensible or not."""
        state, rng = self.fleet.state, self.rng
        number, champion = state.cluster.seq, queries.champion(state, config)
        models = [digest for _, digest in state.index.models.get(config, ())]
        opponent = rng.choice(("random", "nobody", f"{champion}@policy-only" if champion else "heuristic"))
        by_hand = Evidence("operator", note="wins in the arena")
        acts: list[Command] = [
            DrainPeer(self.some(NODES), rng.random() < 0.4, "new disk", rng.choice((0, 5_000))),
            AddWork(f"mine{number}", "selfplay", config, template="selfplay", depends_on=("never",)),
        ]
        if models:
            candidate = rng.choice(models)
            acts.append(StartGauntlet(f"hand{number}", config, candidate, opponent, floor_games=20, cap_games=100))
            acts.append(PromoteModel(config, candidate, champion, by_hand))
            acts.append(ForgetArtifact(rng.choice(list(state.artifacts))))
        if state.jobs:
            job = state.jobs[self.some(state.jobs)]
            acts += [StopJob(job.job, job.fence, "to look"), RetryWork(job.work)]
        self.fleet.apply(rng.choice(acts))

    def join(self, name: str) -> None:
        number = self.incarnations[name] = self.incarnations[name] + 1
        facts = PeerFacts(cpu_slots=1)
        self.fleet.apply(JoinPeer(name, number, f"boot{number}", "follower", f"http://{name}", facts))
        self.alive.add(name)

    def enable(self, config: str, enabled: bool) -> None:
        known = self.fleet.state.configs()[config]
        self.fleet.apply(ChangeSetting(f"config/{config}", st.encode(replace(known, enabled=enabled))))

    def mend_champions(self) -> None:
        """What an operator does on the alarm: go back to a former champion, or else bring the file."""
        state = self.fleet.state
        for config, lost in list(state.index.champions.items()):
            if not queries.unserved(state, lost):
                continue
            shelf = [state.models[digest] for _, digest in state.index.models[config]]
            former = [m.digest for m in shelf if m.status is ModelStatus.FORMER and m.digest in state.artifacts]
            back = [digest for digest in former if not queries.unserved(state, digest)]
            self.fleet.apply(
                RollbackModel(config, back[-1], lost, "it is lost") if back else AddHolder(lost, self.some(self.alive))
            )

    def progress(self) -> dict[str, tuple[int, int]]:
        return {key: (totals.training_jobs, totals.promotions) for key, totals in self.fleet.state.totals.items()}


@pytest.mark.parametrize("seed", range(24))
def test_the_loop_goes_on_by_itself_after_whatever_befell_it(seed: int) -> None:
    mess = Mess(seed)
    for _ in range(300):
        mess.befall()
        mess.turn(works=0.6, copies=0.05, step_ms=mess.rng.choice((200, 2_000)))
    mess.fleet.apply(PauseCluster(paused=False), *(DrainPeer(name, False) for name in NODES))
    for config in mess.fleet.state.configs():
        mess.enable(config, enabled=True)
    mess.fleet.score = lambda work: 3
    before = dict.fromkeys(mess.fleet.state.configs(), (0, 0)) | mess.progress()
    for number in range(2_000):
        mess.turn(works=1.0, copies=0.3, step_ms=2_000)
        if number % ROUND == 0:
            mess.mend_champions()
        now = mess.progress()
        if now.keys() == before.keys() and all(now[k][0] > before[k][0] and now[k][1] > before[k][1] for k in before):
            break
    stuck = [key for key in before if key not in now or now[key][0] <= before[key][0] or now[key][1] <= before[key][1]]
    assert stuck == [], "each config trains and promotes again"
    assert mess.fleet.machine.internal_errors == 0
    state = mess.fleet.state
    for row in state.standings.values():
        counted = [m for m in state.matches.values() if not m.voided and {m.result.a, m.result.b} == {row.a, row.b}]
        games = sum(t.games for m in counted for t in m.result.tally)
        assert (len(counted), games) == (row.matches, sum(t.games for t in row.tally))
