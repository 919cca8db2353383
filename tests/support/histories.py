"""A long pseudo-random log of the law, the same one for a seed wherever it is made.

python -m tests.support.histories replay LOG      prints the chain and the digest of the dump
python -m tests.support.histories golden DIR      writes a log and its final digests to DIR
python -m tests.support.histories shapes LEVEL    prints the settings as a release of that feature level knows them
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from statemachine import queries, snapshot
from statemachine import settings as law_settings
from statemachine.commands import (
    AddHolder,
    AddWork,
    CancelWork,
    ClaimWork,
    Command,
    CompleteJob,
    ConcludeGauntlet,
    ConfigureVoters,
    CreateToken,
    DoubtHolder,
    DrainGpu,
    DrainPeer,
    DropHolder,
    FailJob,
    ForgetArtifact,
    LeavePeer,
    Once,
    PauseCluster,
    PlaceWork,
    PromoteModel,
    RaiseFeatureLevel,
    RecordAct,
    RecordHeartbeats,
    RecordMatch,
    RedeemToken,
    RegisterArtifact,
    ReleaseHolder,
    ReleaseJob,
    RemovePeer,
    RenewJobs,
    ReportJob,
    RequestSync,
    RetryWork,
    RevokeToken,
    RollbackModel,
    Signed,
    StartGauntlet,
    StopJob,
    VoidMatch,
    VouchForPeer,
    encode_command,
)
from statemachine.entries import encode_entry
from statemachine.levels import as_of
from statemachine.machine import Machine
from statemachine.state import State
from statemachine.values import Beat, Evidence, Input, JobProgress, Output, Scope, Voter
from tests.support.law import digest_of, node, pairs, participant, setting, template

#: (index, term, entry)
Log = list[tuple[int, int, bytes]]

PEERS = tuple(f"node{n}" for n in range(6))
CONFIGS = ("connect4_2p", "hex8_3p")
MODELS = tuple(f"model{n}" for n in range(24))
SHORT = law_settings.Timing(
    heartbeat_ms=2_000,
    suspect_after_ms=6_000,
    dead_after_ms=20_000,
    lease_ms={"default": 15_000, "training": 25_000},
    start_within_ms=12_000,
    timeout_ms={"default": 30_000},
    backoff_ms=500,
    backoff_cap_ms=4_000,
    grace_ms=4_000,
    failure_half_life_ms=9_000,
)


def history(seed: int, entries: int) -> Log:
    """A log with a few commands an entry: mostly sensible ones, some late, stale or impossible."""
    rng, door = random.Random(seed), random.Random(~seed)
    machine = Machine()
    log: Log = []
    term, elapsed = 1, 0
    for index in range(1, entries + 1):
        if rng.random() < 0.01:
            term, elapsed = term + 1, 0
        elapsed += rng.choice((0, 3, 40, 250, 900, 1_900, 7_000))
        commands = [_opening(), _founding(machine.state, rng)][index > 1] if index < 3 else _next(machine.state, rng)
        if index > 2 and door.random() < 0.1:
            commands = [*commands, *_tokens(machine.state, door), *_gpus(door)]
        entry = encode_entry(term, elapsed, [encode_command(c) for c in commands])
        machine.apply(index, term, entry)
        log.append((index, term, entry))
    return log


def _opening() -> list[Command]:
    retention = law_settings.Retention(work_ms=60_000, dead_peer_ms=40_000, token_ms=20_000)
    return [
        setting("timing", SHORT),
        setting("retention", retention),
        setting(
            "limits",
            law_settings.Limits(events=200, pending_per_class=20, failures_before_hold=15, flaps_before_hold=4),
        ),
        template(),
    ]


def _founding(state: State, rng: random.Random) -> list[Command]:
    joins = [node(name, slots=rng.randint(1, 4), gpus=rng.randint(0, 2)) for name in PEERS]
    voters = tuple(Voter(name, f"{name}:1", log_id=f"log{name}") for name in PEERS)
    replaced = Voter(PEERS[2], f"{PEERS[2]}:2", log_id="another")
    return [*joins, ConfigureVoters(voters[:3]), ConfigureVoters((*voters[:2], replaced), "change1")]


def _next(state: State, rng: random.Random) -> list[Command]:
    makers = rng.choices(tuple(_MAKERS), tuple(_MAKERS.values()), k=rng.randint(0, 5))
    return [command for maker in makers for command in maker(state, rng)]


def _beats(state: State, rng: random.Random) -> Iterator[Command]:
    beats = []
    for name in rng.sample(PEERS, rng.randint(1, len(PEERS))):
        row = state.peers.get(name)
        jobs = state.index.live_jobs_of(name)[:3]
        seen = tuple(JobProgress(j, state.jobs[j].fence, {"games": rng.randint(0, 9)}, {"games": 9}) for j in jobs)
        beats.append(Beat(name, row.incarnation if row else 1, progress=seen))
    yield RecordHeartbeats(tuple(beats))


def _join(state: State, rng: random.Random) -> Iterator[Command]:
    name = rng.choice(PEERS)
    row = state.peers.get(name)
    incarnation = (row.incarnation if row else 0) + rng.randint(0, 1)
    yield node(name, rng.randint(0, 4), rng.randint(0, 2), incarnation, rng.choice(("boot1", "boot1", "boot2")))


def _operate(state: State, rng: random.Random) -> Iterator[Command]:
    name = rng.choice(PEERS)
    row = state.peers.get(name)
    yield rng.choice(
        (
            DrainPeer(name, rng.random() < 0.4, "test", rng.choice((0, 5_000))),
            RemovePeer(name),
            LeavePeer(name, row.incarnation if row else 1),
            VouchForPeer(name, row.incarnation if row else 1, rng.choice(PEERS)),
            PauseCluster(rng.random() < 0.2),
            RaiseFeatureLevel(rng.randint(1, 3)),
            setting("controller/place", law_settings.Controller(enabled=rng.random() < 0.5)),
        )
    )


def _add(state: State, rng: random.Random) -> Iterator[Command]:
    number = rng.randrange(300)
    kind = rng.choice(("selfplay", "selfplay", "training", "evaluation", "initial", "export"))
    champion = state.index.champions.get(CONFIGS[0], "")
    inputs = (Input("model", champion),) if champion and rng.random() < 0.5 else ()
    command = AddWork(
        work=f"item{number}",
        work_type=kind,
        config=rng.choice(CONFIGS),
        priority=rng.choice((10, 50, 50, 90)),
        template=rng.choice(("", "run", "run", "run")),
        params={"seed": str(number), "games_seen": str(rng.randint(0, 99))},
        inputs=inputs,
        depends_on=(f"item{number - 1}",) if rng.random() < 0.05 and number else (),
        max_attempts=rng.randint(1, 3),
        ttl_ms=rng.choice((0, 0, 30_000)),
        unique=rng.choice(("", "", f"{kind}-{number % 3}")),
        gauntlet=rng.choice(list(state.gauntlets) or [""]) if kind == "evaluation" else "",
    )
    if rng.random() < 0.3:
        yield Once(f"request{rng.randrange(40)}", state.now_ms + 8_000, command)
    else:
        yield command


def _bind(state: State, rng: random.Random) -> Iterator[Command]:
    waiting = queries.pending(state, limit=5)
    if rng.random() < 0.3 or not waiting:
        yield ClaimWork(f"claim{rng.randrange(200)}", rng.choice((*PEERS, "worker")), limit=rng.randint(1, 3))
        return
    name = rng.choice(PEERS)
    row = state.peers.get(name)
    yield PlaceWork(rng.choice(waiting).work, name, row.incarnation if row else 1, reason="test")


def _some_job(state: State, rng: random.Random) -> tuple[str, int] | None:
    live = [name for names in state.index.live_jobs.values() for name in names]
    pool = live if live and rng.random() < 0.9 else list(state.jobs)
    if not pool:
        return None
    name = rng.choice(pool)
    return name, state.jobs[name].fence + (rng.random() < 0.03)


def _work_on(state: State, rng: random.Random) -> Iterator[Command]:
    found = _some_job(state, rng)
    if found is None:
        return
    name, fence = found
    row = state.jobs[name]
    done = _result(state, row.work_type, row.config, rng, name, fence)
    yield rng.choice(
        (
            ReportJob(name, fence, "starting"),
            ReportJob(name, fence, "running"),
            ReportJob(name, fence, "running"),
            RenewJobs((JobProgress(name, fence, {"games": rng.randint(0, 9)}),)),
            done,
            done,
            done,
            FailJob(name, fence, rng.choice(("user", "infrastructure", "oom", "stopped", "preempted")), "it broke"),
            ReleaseJob(name, fence, "no room"),
            StopJob(name, fence, "make room"),
            CancelWork(row.work, "not needed"),
        )
    )


def _result(state: State, kind: str, config: str, rng: random.Random, job: str, fence: int) -> CompleteJob:
    tag = f"{config}-{rng.randrange(400)}"
    if kind in ("training", "initial"):
        model = f"{config}-{rng.choice(MODELS)}"
        return CompleteJob(job, fence, outputs=(Output("model.pt", digest_of(model), 9_000, "model"),))
    if kind == "evaluation":
        tests = [g.spec for g in state.gauntlets.values() if g.spec.config == config and g.status == "running"]
        spec = rng.choice(tests) if tests else None
        a, b = (f"{spec.candidate}@policy-only", spec.opponent) if spec else ("heuristic", "random")
        return CompleteJob(job, fence, match=pairs(a, b, rng.randint(0, 9), rng.randint(0, 3), rng.randint(0, 2)))
    games = rng.randint(0, 20)
    shard = Output("games.npz", digest_of(tag), 10 * games, "games", {"games": games})
    return CompleteJob(job, fence, {"games": games, "positions": 30 * games}, {"score": "0.5"}, (shard,))


def _files(state: State, rng: random.Random) -> Iterator[Command]:
    digest = rng.choice(list(state.artifacts) or [digest_of("nothing")])
    name = rng.choice(PEERS)
    yield rng.choice(
        (
            AddHolder(digest, name),
            AddHolder(digest, name),
            DropHolder(digest, name),
            ReleaseHolder(digest, name),
            DoubtHolder(digest, name, rng.choice(PEERS)),
            RequestSync("a test"),
            ForgetArtifact(digest, "old"),
            RegisterArtifact(digest_of(f"set{rng.randrange(9)}"), 5, "dataset", CONFIGS[0], name),
        )
    )


def _judge(state: State, rng: random.Random) -> Iterator[Command]:
    config = rng.choice(CONFIGS)
    champion = state.index.champions.get(config, "")
    candidates = queries.candidates(state, config)
    if candidates and not champion:
        yield PromoteModel(config, candidates[0], "", Evidence("initial"))
    elif candidates:
        number = rng.randrange(12)
        opponent = f"{champion}@policy-only"
        yield StartGauntlet(f"gauntlet{number}", config, candidates[0], opponent, floor_games=10, cap_games=99)
    for name, row in state.gauntlets.items():
        if row.status != "running":
            continue
        games = sum(t.games for t in row.tally)
        evidence = Evidence("gauntlet", name, games, sum(row.histogram), 3_000, -2_900, 2_900)
        if games >= row.spec.floor_games or rng.random() < 0.05:
            verdict = rng.choice(("accepted", "accepted", "rejected", "abandoned"))
            yield ConcludeGauntlet(name, verdict, evidence)
            yield PromoteModel(row.spec.config, row.spec.candidate, champion, evidence)
    formers = [m.digest for m in state.models.values() if m.config == config and m.status == "former"]
    if formers and rng.random() < 0.1:
        yield RollbackModel(config, rng.choice(formers), champion, "worse")


def _matches(state: State, rng: random.Random) -> Iterator[Command]:
    if state.matches and rng.random() < 0.4:
        yield VoidMatch(rng.choice(list(state.matches)), "broken engine")
    else:
        a = rng.choice(("heuristic", participant("connect4_2p-model0")))
        yield RecordMatch(f"match{rng.randrange(60)}", CONFIGS[0], pairs(a, "random", rng.randint(0, 5), 1))


def _again(state: State, rng: random.Random) -> Iterator[Command]:
    ended = [name for name, row in state.work.items() if row.status in ("failed", "cancelled", "expired")]
    yield RetryWork(rng.choice(ended or ["item0"]), "once more")


def _gpus(rng: random.Random) -> Iterator[Command]:
    name = rng.choice(PEERS)
    yield DrainGpu(name, f"gpu{rng.randint(0, 1)}", rng.random() < 0.7, "test", rng.choice((0, 5_000)))
    yield RegisterArtifact(digest_of(f"brought{rng.randint(0, 2)}"), 5, "model", "go9_2p", name)


def _tokens(state: State, rng: random.Random) -> Iterator[Command]:
    number, peer = rng.randrange(12), rng.choice(PEERS)
    scope = rng.choice(tuple(Scope))
    made = CreateToken(
        f"token{number}",
        scope,
        digest_of(f"secret{number}.{rng.randrange(3)}"),
        peer if scope is Scope.NODE else "",
        rng.choice((0, 9_000)),
        rng.choice((0, 2)) if scope is Scope.JOIN else 0,
    )
    yield rng.choice(
        (
            Signed("root", made),
            Signed("root", Once(f"request{rng.randrange(40)}", state.now_ms + 8_000, made)),
            RevokeToken(rng.choice(list(state.tokens) or ["token0"]), "test"),
            RedeemToken(f"token{number}", peer, digest_of(f"{peer}{rng.randrange(2)}")),
            RecordAct("root", "shutdown", peer),
        )
    )


_MAKERS = {
    _beats: 10, _join: 2, _operate: 1, _add: 14, _bind: 16, _work_on: 24, _files: 2, _judge: 3, _matches: 2, _again: 2,
}  # fmt: skip


def digests(machine: Machine) -> dict[str, str | int]:
    """What two replicas that agree have in common, as text."""
    dumped = json.dumps(queries.dump(machine.state), sort_keys=True).encode()
    order = json.dumps({name: list(rows) for name, rows in machine.state.tables.items()}).encode()
    return {
        "index": machine.index,
        "chain": machine.chain.hex(),
        "dump": hashlib.sha256(dumped).hexdigest(),
        "order": hashlib.sha256(order).hexdigest(),
        "internal_errors": machine.internal_errors,
    }


def replay(log: Log, detour_at: int = 0) -> Machine:
    """Apply a log; at one index go on from a snapshot file instead."""
    machine = Machine()
    for index, term, entry in log:
        machine.apply(index, term, entry)
        if index == detour_at:
            frozen = snapshot.freeze(machine)
            file = io.BytesIO()
            snapshot.write(frozen, snapshot.header(frozen, "detour", ()), file)
            file.seek(0)
            machine = snapshot.read(file)[1]
    return machine


def shapes(level: int) -> dict[str, Any]:
    """Each group of settings as a release of a feature level knows it: fields, bounds, words, plain defaults."""
    later = {name for name, came in law_settings.GROUP_LEVELS.items() if came > level}
    return {
        name: _unworded(msgspec.json.schema(as_of(kind, level)))
        for name, kind in law_settings.GROUPS.items()
        if name not in later
    }


def _unworded(schema: Any) -> Any:
    """What a release makes of a value does not depend on the words about it."""
    if isinstance(schema, dict):
        return {name: _unworded(part) for name, part in schema.items() if name not in ("title", "description")}
    return [_unworded(part) for part in schema] if isinstance(schema, list | tuple) else schema


def load(path: Path) -> Log:
    return msgspec.msgpack.decode(path.read_bytes(), type=list[tuple[int, int, bytes]])


def main(arguments: list[str]) -> None:
    verb, where, *more = arguments
    if verb == "replay":
        detour = int(more[0]) if more else 0
        print(json.dumps(digests(replay(load(Path(where)), detour))))
    elif verb == "shapes":
        print(json.dumps(shapes(int(where)), indent=1, sort_keys=True))
    elif verb == "golden":
        folder = Path(where)
        folder.mkdir(parents=True, exist_ok=True)
        log = history(seed=1, entries=400)
        (folder / "log.msgpack").write_bytes(msgspec.msgpack.encode(log))
        (folder / "digests.json").write_text(json.dumps(digests(replay(log)), indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
