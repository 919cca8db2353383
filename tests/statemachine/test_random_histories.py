"""Random histories: whatever is sent in whatever order, the invariants hold and replicas agree.

Each command goes to a cluster and, once a snapshot was taken, to its twin that was restored from it. After each step
the rows are checked (see `invariants`), a refused command must have changed nothing, and the same command at once
again must change nothing either.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from statemachine import queries
from statemachine import settings as law_settings
from statemachine.commands import (
    AddHolder,
    AddWork,
    CancelWork,
    ClaimWork,
    Command,
    CompleteJob,
    ConcludeGauntlet,
    CreateToken,
    DrainGpu,
    DrainPeer,
    DropHolder,
    Effect,
    FailJob,
    ForgetArtifact,
    LeavePeer,
    Once,
    PauseCluster,
    PlaceWork,
    PromoteModel,
    RaiseFeatureLevel,
    RecordHeartbeats,
    RecordMatch,
    RedeemToken,
    RegisterArtifact,
    ReleaseJob,
    RemovePeer,
    RenewJobs,
    ReportJob,
    RestartJob,
    RetryWork,
    RevokeToken,
    RollbackModel,
    SaveCheckpoint,
    StartGauntlet,
    StopJob,
    VoidMatch,
    VouchForPeer,
)
from statemachine.elo import rankings, table_of
from statemachine.errors import Code, Done, Rejected
from statemachine.rows import LIVE_JOB, Job
from statemachine.values import Beat, Evidence, Input, JobProgress, Needs, Output, Scope
from tests.statemachine.invariants import check_indexes, check_rows, check_step
from tests.support.law import Cluster, digest_of, node, pairs, participant, rows_digest, setting, template, trained

PEERS = ("a", "b", "c")
CONFIGS = ("connect4_2p", "hex8_3p")
TYPES = ("selfplay", "training", "evaluation", "initial")
WORKS = tuple(f"w{n}" for n in range(10))
MODELS = tuple(f"m{n}" for n in range(5))
GAUNTLETS = ("g0", "g1", "g2")
ERRORS = ("user", "infrastructure", "oom", "preempted", "stopped", "timeout")
SETTINGS = (
    setting("timing", law_settings.Timing()),
    setting("timing", law_settings.Timing(1_000, 5_000, 9_000, {"default": 8_000}, 6_000, {"default": 4_000}, 1, 9, 1)),
    setting("timing", law_settings.Timing(suspect_after_ms=60_000, start_within_ms=1, failure_half_life_ms=7_000)),
    setting("limits", law_settings.Limits(pending_per_class=3, events=9, requests=2, poisoned_after_peers=2)),
    setting("limits", law_settings.Limits(jobs_per_peer=1, events=40)),
    setting("retention", law_settings.Retention(work_ms=30_000, dead_peer_ms=20_000, token_ms=9_000)),
    setting("retention", law_settings.Retention()),
)

peers = st.sampled_from(PEERS)
configs = st.sampled_from(CONFIGS)
works = st.sampled_from(WORKS)
models = st.sampled_from(MODELS)
small = st.integers(0, 4)
digests = models.map(digest_of)
participants = st.sampled_from([*(participant(m) for m in MODELS), "random", "heuristic"])


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster()
        self.twin: Cluster | None = None
        self.games: dict[str, int] = dict.fromkeys(CONFIGS, 0)
        self.counted: set[int] = set()
        self._watch(self.cluster)

    @initialize()
    def begin(self) -> None:
        """Three nodes, a champion, two candidates, a gauntlet that runs, items in the queue and on the nodes."""
        self.send(template())
        for name in PEERS:
            self.send(node(name, slots=2, gpus=1))
        for model in MODELS[:3]:
            for step in trained(model, CONFIGS[0]):
                self.send(step(self.cluster) if callable(step) else step)
        first, second = (digest_of(m) for m in MODELS[:2])
        self.send(PromoteModel(CONFIGS[0], first, "", Evidence("initial")))
        self.send(StartGauntlet("g0", CONFIGS[0], second, f"{first}@policy-only", floor_games=2, cap_games=9))
        for n, name in enumerate(WORKS[:5]):
            self.send(AddWork(name, TYPES[n % 2], CONFIGS[n % 2], template="run", max_attempts=2))
        self.send(PlaceWork("w0", "a", 1))
        self.send(PlaceWork("w1", "b", 1))
        self.send(ClaimWork("c0", "worker"))

    def _watch(self, cluster: Cluster) -> None:
        txn = cluster.machine._txn
        commit = txn.commit

        def watched() -> None:
            first: dict[tuple[str, str], Any] = {}
            for table, key, old, _ in txn.undo:
                first.setdefault((table.name, key), old)
            for (name, key), old in first.items():
                check_step(old, txn.state.tables[name].get(key))
            commit()

        txn.commit = watched  # type: ignore[method-assign]

    # --- sending ------------------------------------------------------------------------------------

    def send(self, command: Command, again: bool = True) -> None:
        """Commit a command everywhere; refused ones and repeats must change nothing."""
        before = rows_digest(self.cluster.state)
        recalled = isinstance(command, Once) and command.request in self.cluster.state.requests
        self._commit(command)
        result = self.cluster.last
        after = rows_digest(self.cluster.state)
        if isinstance(result, Rejected):
            assert result.code != Code.INTERNAL, result
            assert result.detail
            assert after == before, f"{command} was refused and changed rows"
        elif not recalled:
            self._count(command, result)
        if again:
            self._commit(command)
            assert rows_digest(self.cluster.state) == after, f"{command} changed rows when it was repeated"
            if isinstance(command, Once) and isinstance(result, Done):
                assert self.cluster.last == result

    def _commit(self, *commands: Command) -> None:
        results = self.cluster.apply(*commands)
        if self.twin is not None:
            self.twin.term, self.twin.elapsed_ms = self.cluster.term, self.cluster.elapsed_ms
            assert self.twin.apply(*commands) == results
            assert self.twin.machine.chain == self.cluster.machine.chain, "the twin's chain went another way"

    def _count(self, command: Command, result: Done) -> None:
        inner = command.command if isinstance(command, Once) else command
        if isinstance(inner, CompleteJob) and result.value.get("published") and "repeat" not in result.value:
            work = self.cluster.state.work[inner.job.rpartition(".")[0]]
            assert work.seq not in self.counted, "an item was completed twice"
            self.counted.add(work.seq)
            if work.spec.work_type == "selfplay":
                self.games[work.spec.config] += inner.counts.get("games", 0)

    def _job(self, data: st.DataObject) -> tuple[str, int]:
        """Some job, mostly a live one under its fence, sometimes under another, sometimes one that never was."""
        jobs = self.cluster.state.jobs
        live = sorted(name for name, job in jobs.items() if job.actual in LIVE_JOB)
        pool = live if live and data.draw(st.integers(0, 3)) else sorted(jobs)
        name = data.draw(st.sampled_from(pool or ["w0.1"]))
        row: Job | None = jobs.get(name)
        fence = row.fence if row is not None and data.draw(st.integers(0, 5)) else data.draw(st.integers(0, 30))
        return name, fence

    # --- time ---------------------------------------------------------------------------------------

    @rule(ms=st.sampled_from((1, 700, 2_000, 9_000)), beating=st.sets(peers))
    def time_passes(self, ms: int, beating: set[str]) -> None:
        while ms > 0:
            self.cluster.elapsed_ms += min(ms, 2_000)
            ms -= 2_000
            rows = self.cluster.state.peers
            beats = tuple(Beat(p, rows[p].incarnation) for p in sorted(beating) if p in rows)
            self._commit(RecordHeartbeats(beats))

    @rule(ms=st.sampled_from((50_000, 310_000)))
    def a_long_silence(self, ms: int) -> None:
        for _ in range(ms // 2_000):
            self.cluster.elapsed_ms += 2_000
            self._commit()

    @rule(jump=st.integers(-5_000, 100_000_000))
    def the_leaders_clock_jumps(self, jump: int) -> None:
        self.cluster.elapsed_ms = max(self.cluster.elapsed_ms + jump, 0)
        self._commit()

    @rule()
    def another_leader(self) -> None:
        self.cluster.term += 1
        self.cluster.elapsed_ms = 0
        self._commit()

    @rule()
    def a_deposed_leaders_stamp(self) -> None:
        term, elapsed = self.cluster.term, self.cluster.elapsed_ms
        before = self.cluster.state.cluster
        self.cluster.term, self.cluster.elapsed_ms = term - 1, elapsed + 10_000
        self._commit()
        assert self.cluster.state.cluster == before
        self.cluster.term, self.cluster.elapsed_ms = term, elapsed

    @rule()
    def a_replica_starts_from_a_snapshot(self) -> None:
        self.twin = self.cluster.restored()
        self._watch(self.twin)

    # --- tokens -------------------------------------------------------------------------------------

    @rule(name=small, scope=st.sampled_from(Scope), secret=small, peer=peers, expires=st.sampled_from((0, 3_000)))
    def a_token_is_made(self, name: int, scope: Scope, secret: int, peer: str, expires: int) -> None:
        bound = peer if scope is Scope.NODE else ""
        self.send(CreateToken(f"t{name}", scope, digest_of(f"s{secret}"), bound, expires, int(scope is Scope.JOIN)))

    @rule(name=small)
    def a_token_is_revoked(self, name: int) -> None:
        self.send(RevokeToken(f"t{name}", "leaked"))

    @rule(name=small, peer=st.sampled_from((*PEERS, "d")), secret=st.integers(5, 8))
    def a_node_joins_with_a_token(self, name: int, peer: str, secret: int) -> None:
        self.send(RedeemToken(f"t{name}", peer, digest_of(f"s{secret}")))

    # --- peers --------------------------------------------------------------------------------------

    @rule(peer=peers, newer=st.integers(-1, 2), boot=st.sampled_from(("boot1", "boot2")), slots=st.integers(0, 3))
    def join(self, peer: str, newer: int, boot: str, slots: int) -> None:
        row = self.cluster.state.peers.get(peer)
        incarnation = max((row.incarnation if row else 1) + newer, 0)
        self.send(node(peer, slots=slots, gpus=1, incarnation=incarnation, boot=boot))

    @rule(data=st.data(), peer=peers, games=small)
    def progress(self, data: st.DataObject, peer: str, games: int) -> None:
        job, fence = self._job(data)
        row = self.cluster.state.peers.get(peer)
        seen = JobProgress(job, fence, {"games": games}, {"games": 4})
        self.send(RecordHeartbeats((Beat(peer, row.incarnation if row else 0, progress=(seen,)),)))

    # --- work ---------------------------------------------------------------------------------------

    @rule(
        work=works,
        work_type=st.sampled_from(TYPES),
        config=configs,
        priority=st.sampled_from((10, 50, 90)),
        options=st.sampled_from(
            (
                {},
                {"template": "run"},
                {"unique": "u"},
                {"depends_on": ("w0",)},
                {"ttl_ms": 5_000},
                {"max_attempts": 1},
                {"template": "run", "needs": Needs(gpus=1)},
                {"template": "run", "needs": Needs(gpus=1, vram_bytes=2**33)},
                {"gauntlet": "g0"},
                {"inputs": (Input("model", digest_of("m0")), Input("file", digest_of("f0")))},
                {"params": {"games_seen": "3"}},
            )
        ),
    )
    def add(self, work: str, work_type: str, config: str, priority: int, options: dict[str, Any]) -> None:
        self.send(AddWork(work=work, work_type=work_type, config=config, priority=priority, **options))

    @rule(claim=st.sampled_from(("c0", "c1", "c2", "c3", "c4", "c5")), peer=st.sampled_from((*PEERS, "worker")),
          types=st.sets(st.sampled_from(TYPES)), limit=st.integers(1, 3))  # fmt: skip
    def claim(self, claim: str, peer: str, types: set[str], limit: int) -> None:
        self.send(ClaimWork(claim, peer, tuple(sorted(types)), (), limit))

    @rule(work=works, kind=st.sampled_from(TYPES), config=configs, peer=peers, far=st.integers(0, 4), games=small,
          end=st.sampled_from(("complete", "complete", "fail", "release", "stop", "cancel", "leave")))  # fmt: skip
    def an_attempt(self, work: str, kind: str, config: str, peer: str, far: int, games: int, end: str) -> None:
        """An item goes its ordinary way, up to somewhere."""
        row = self.cluster.state.peers.get(peer)
        self.send(AddWork(work, kind, config, template="run", max_attempts=2))
        if far > 0:
            self.send(PlaceWork(work, peer, row.incarnation if row else 1))
        item = self.cluster.state.work.get(work)
        if item is None or not item.job or far < 2:
            return
        job, fence = item.job, self.cluster.state.jobs[item.job].fence
        if far > 2:
            self.send(ReportJob(job, fence, "running"))
        self.send(
            {
                "complete": self._result(job, fence, games, MODELS[games], participant("m0"), "random", games, 1),
                "fail": FailJob(job, fence, "user", "it broke"),
                "release": ReleaseJob(job, fence, "no room"),
                "stop": FailJob(job, fence, "stopped", "told to"),
                "cancel": CancelWork(work),
                "leave": ReportJob(job, fence, "starting"),
            }[end]
        )

    @rule(data=st.data(), peer=peers, gpus=st.sampled_from(((), ("gpu0",))))
    def place(self, data: st.DataObject, peer: str, gpus: tuple[str, ...]) -> None:
        pending = sorted(name for name, row in self.cluster.state.work.items() if row.status == "pending")
        work = data.draw(st.sampled_from(pending or list(WORKS)))
        row = self.cluster.state.peers.get(peer)
        self.send(PlaceWork(work, peer, row.incarnation if row else 1, gpus))

    @rule(work=works)
    def cancel(self, work: str) -> None:
        self.send(CancelWork(work))

    @rule(work=works)
    def retry(self, work: str) -> None:
        self.send(RetryWork(work))

    # --- jobs ---------------------------------------------------------------------------------------

    @precondition(lambda self: self.cluster.state.jobs)
    @rule(data=st.data(), actual=st.sampled_from(("starting", "running", "running", "lost")))
    def report(self, data: st.DataObject, actual: str) -> None:
        self.send(ReportJob(*self._job(data), actual))

    @precondition(lambda self: self.cluster.state.jobs)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        self.send(RenewJobs((JobProgress(*self._job(data)), JobProgress(*self._job(data)))))

    @precondition(lambda self: self.cluster.state.jobs)
    @rule(data=st.data(), games=small, stopped=st.booleans(), model=models, a=participants, b=participants,
          won=small, lost=small)  # fmt: skip
    def complete(
        self, data: st.DataObject, games: int, stopped: bool, model: str, a: str, b: str, won: int, lost: int
    ) -> None:
        job, fence = self._job(data)
        self.send(replace(self._result(job, fence, games, model, a, b, won, lost), stopped=stopped))

    def _result(self, job: str, fence: int, games: int, model: str, a: str, b: str, won: int, lost: int) -> CompleteJob:
        """A completion with what the job's type should show (zero games and foreign models among them)."""
        row = self.cluster.state.jobs.get(job)
        work_type = row.work_type if row else "selfplay"
        if work_type in ("training", "initial"):
            return CompleteJob(job, fence, outputs=(Output("m.pt", digest_of(model), 10, "model"),))
        if work_type == "evaluation":
            return CompleteJob(job, fence, match=pairs(a, b, won, lost))
        shard = Output("g.npz", digest_of(f"f{games}"), 10, "games", {"games": games})
        return CompleteJob(job, fence, {"games": games}, outputs=(shard,))

    @precondition(lambda self: self.cluster.state.jobs)
    @rule(data=st.data(), error_class=st.sampled_from(ERRORS))
    def fail(self, data: st.DataObject, error_class: str) -> None:
        self.send(FailJob(*self._job(data), error_class, "it broke"))

    @precondition(lambda self: self.cluster.state.jobs)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.send(ReleaseJob(*self._job(data), "no room"))

    @precondition(lambda self: self.cluster.state.jobs)
    @rule(data=st.data(), name=st.sampled_from(("k0", "k1", "f0")))
    def save(self, data: st.DataObject, name: str) -> None:
        self.send(SaveCheckpoint(*self._job(data), digest_of(name), 10))

    @precondition(lambda self: self.cluster.state.jobs)
    @rule(data=st.data(), count=st.integers(1, 3))
    def restart(self, data: st.DataObject, count: int) -> None:
        self.send(RestartJob(*self._job(data), count, "cuda", "CUDA error"))

    @precondition(lambda self: self.cluster.state.jobs)
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        self.send(StopJob(*self._job(data), "make room"))

    # --- files, matches, models ---------------------------------------------------------------------

    @rule(name=st.sampled_from(("f0", "f1", "m0")), peer=peers, verb=st.sampled_from("ahdfm"))
    def file(self, name: str, peer: str, verb: str) -> None:
        digest = digest_of(name)
        self.send(
            {
                "a": RegisterArtifact(digest, 10, "games", CONFIGS[0], peer),
                "m": RegisterArtifact(digest, 10, "model", CONFIGS[1], peer),
                "h": AddHolder(digest, peer),
                "d": DropHolder(digest, peer),
                "f": ForgetArtifact(digest),
            }[verb]
        )

    @rule(match=st.sampled_from(("x0", "x1", "x2")), config=configs, a=participants, b=participants, won=small,
          lost=small)  # fmt: skip
    def record(self, match: str, config: str, a: str, b: str, won: int, lost: int) -> None:
        self.send(RecordMatch(match, config, pairs(a, b, won, lost, 1)))

    @rule(data=st.data())
    def void(self, data: st.DataObject) -> None:
        self.send(VoidMatch(data.draw(st.sampled_from(sorted(self.cluster.state.matches) or ["x0"])), "bad"))

    @rule(gauntlet=st.sampled_from(GAUNTLETS), config=configs, candidate=digests, data=st.data())
    def gauntlet(self, gauntlet: str, config: str, candidate: str, data: st.DataObject) -> None:
        known = sorted(d for d, m in self.cluster.state.models.items() if m.config == config)
        candidate = data.draw(st.sampled_from(known)) if known else candidate
        champion = self.cluster.state.index.champions.get(config)
        opponent = f"{champion}@policy-only" if champion else "random"
        self.send(StartGauntlet(gauntlet, config, candidate, opponent, floor_games=2, cap_games=9))

    @precondition(lambda self: self.cluster.state.gauntlets)
    @rule(data=st.data(), won=small, lost=small)
    def evaluate(self, data: st.DataObject, won: int, lost: int) -> None:
        """An evaluation of a gauntlet from its queueing to its end."""
        name = data.draw(st.sampled_from(sorted(self.cluster.state.gauntlets)))
        spec = self.cluster.state.gauntlets[name].spec
        work = data.draw(works)
        self.send(AddWork(work=work, work_type="evaluation", config=spec.config, gauntlet=name))
        self.send(ClaimWork(f"for-{name}-{self.cluster.index}", "worker", ("evaluation",)))
        row = self.cluster.state.work.get(work)
        job = self.cluster.state.jobs.get(row.job) if row else None
        if job is not None:
            us = f"{spec.candidate}@policy-only"
            self.send(CompleteJob(job.job, job.fence, match=pairs(us, spec.opponent, won, lost)))

    @precondition(lambda self: self.cluster.state.gauntlets)
    @rule(data=st.data(), verdict=st.sampled_from(("accepted", "accepted", "rejected", "abandoned", "passed")))
    def conclude(self, data: st.DataObject, verdict: str) -> None:
        row = self.cluster.state.gauntlets[data.draw(st.sampled_from(sorted(self.cluster.state.gauntlets)))]
        games = sum(t.games for t in row.tally)
        evidence = Evidence("gauntlet", row.spec.gauntlet, games, sum(row.histogram), 3_000, -2_944, 2_944)
        self.send(ConcludeGauntlet(row.spec.gauntlet, verdict, evidence))
        spec = row.spec
        champion = self.cluster.state.index.champions.get(spec.config, "")
        self.send(PromoteModel(spec.config, spec.candidate, champion, evidence))

    @precondition(lambda self: self.cluster.state.models)
    @rule(data=st.data(), config=configs, kind=st.sampled_from(("initial", "operator", "gauntlet")))
    def promote(self, data: st.DataObject, config: str, kind: str) -> None:
        model = data.draw(st.sampled_from(sorted(self.cluster.state.models)))
        config = self.cluster.state.models[model].config if data.draw(st.integers(0, 4)) else config
        champion = self.cluster.state.index.champions.get(config, "")
        note = "because" if data.draw(st.booleans()) else ""
        self.send(PromoteModel(config, model, champion, Evidence(kind, "g0", note=note)))

    @precondition(lambda self: self.cluster.state.index.champions)
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        champions = self.cluster.state.index.champions
        config = data.draw(st.sampled_from(sorted(champions)))
        model = data.draw(st.sampled_from(sorted(self.cluster.state.models)))
        self.send(RollbackModel(config, model, champions[config], "worse"))

    # --- the cluster --------------------------------------------------------------------------------

    @rule(peer=peers, number=st.integers(0, 3), verb=st.sampled_from("dgguurvvpqqfl"))
    def operate(self, peer: str, number: int, verb: str) -> None:
        """What operators do, one thing at a time."""
        self.send(
            {
                "d": DrainPeer(peer, True, "test", 3_000 * (number % 2)),
                "g": DrainGpu(peer, f"gpu{number % 2}", number % 3 > 0, "test", 3_000 * (number % 2)),
                "u": DrainPeer(peer, False),
                "r": RemovePeer(peer),
                "v": VouchForPeer(peer, number, "b"),
                "l": LeavePeer(peer, number),
                "p": PauseCluster(True, "test"),
                "q": PauseCluster(False),
                "f": RaiseFeatureLevel(1 + number),
            }[verb]
        )

    @rule(change=st.sampled_from(SETTINGS), version=st.sampled_from((-1, -1, 0, 1)))
    def change_a_setting(self, change: Any, version: int) -> None:
        self.send(replace(change, expected_version=version), again=version == -1)

    @rule(request=st.sampled_from(("r0", "r1", "r2")), life=st.sampled_from((-1, 5_000)), data=st.data(), work=works)
    def once(self, request: str, life: int, data: st.DataObject, work: str) -> None:
        job, fence = self._job(data)
        commands: tuple[Effect, ...] = (
            CancelWork(work),
            AddWork(work, "selfplay", CONFIGS[0]),
            ClaimWork(f"once-{work}", "worker"),
            CompleteJob(job, fence, {"games": 2}),
        )
        command = data.draw(st.sampled_from(commands))
        remembered = request in self.cluster.state.requests
        self.send(Once(request, max(self.cluster.now_ms + life, 0), command), again=not remembered)

    # --- what always holds --------------------------------------------------------------------------

    @invariant()
    def the_rows_tell_one_story(self) -> None:
        check_rows(self.cluster.state)

    @invariant()
    def the_indexes_are_those_of_the_rows(self) -> None:
        check_indexes(self.cluster.state)

    @invariant()
    def games_are_counted_once(self) -> None:
        totals = self.cluster.state.totals
        assert {c: totals[c].games if c in totals else 0 for c in CONFIGS} == self.games

    @invariant()
    def every_question_has_an_answer(self) -> None:
        state = self.cluster.state
        for work in state.work:
            found = queries.why(state, work)
            assert found is not None
            assert found.sentence
        for peer in state.peers:
            told = queries.assignments(state, peer)
            assert [a.job.job for a in told] == [j for j in state.index.live_jobs_of(peer) if not state.jobs[j].claim]
        waiting = queries.pending(state, limit=len(state.work) + 1)
        assert [w.work for w in waiting] == sorted(
            (w.work for w in waiting), key=lambda name: (-state.work[name].spec.priority, state.work[name].seq)
        )
        view = queries.overview(state)
        assert view.work_by_status["pending"] == len(waiting)
        assert (queries.stalled(state) is None) == (not waiting or bool(view.live_jobs_by_type))
        for config in CONFIGS:
            rows = rankings(table_of(state, config))
            assert sum(r.wins for r in rows) == sum(r.losses for r in rows)

    def teardown(self) -> None:
        """The twin ends in the same rows, and so does a replica that replays the whole log."""
        states = [self.cluster.state]
        if self.twin is not None:
            states.append(self.twin.state)
        replayed = type(self.cluster.machine)()
        for index, term, entry in self.cluster.log:
            replayed.apply(index, term, entry)
        assert replayed.chain == self.cluster.machine.chain
        assert replayed.internal_errors == 0
        assert len({rows_digest(s) for s in (*states, replayed.state)}) == 1


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=40,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)
