"""A cluster made of the law alone: commands go through their wire form into one Machine under a virtual clock.

    cluster = given(node("a"), item("w1"), bound("w1", "a"))
    cluster.when(CancelWork("w1"))
    assert cluster.then_done() == "cancelled"

`given` insists that its commands take effect. `when` remembers the results, `then_*` look at the last one.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from statemachine import settings as st
from statemachine import snapshot
from statemachine.commands import (
    AddWork,
    ChangeSetting,
    ClaimWork,
    Command,
    CompleteJob,
    FailJob,
    JoinPeer,
    PlaceWork,
    RecordHeartbeats,
    ReportJob,
    encode_command,
)
from statemachine.entries import encode_entry
from statemachine.errors import Code, Done, Rejected, Result
from statemachine.machine import Machine
from statemachine.rows import Job
from statemachine.state import State
from statemachine.values import Beat as Heartbeat
from statemachine.values import Gpu, MatchResult, Output, PeerFacts, Tally

CONFIG = "square8_2p"
TEMPLATE = "run"

_encode = msgspec.msgpack.Encoder(order="deterministic").encode

#: a step of `given` or `when`: a command, or something that makes one from the state it finds
Step = Command | Callable[["Cluster"], Command]


def rows_digest(state: State) -> str:
    """One digest over every row of every table, in the order of their keys."""
    digest = hashlib.blake2b(digest_size=16)
    for name, rows in state.tables.items():
        digest.update(_encode((name, sorted(rows.items()))))
    return digest.hexdigest()


class Cluster:
    """A Machine with a log, a leader that stamps it, and the last results."""

    def __init__(self, clock_ms: int = 1_000) -> None:
        self.machine = Machine()
        self.term = 1
        self.elapsed_ms = 0
        self.index = 0
        #: every applied entry as (index, term, bytes)
        self.log: list[tuple[int, int, bytes]] = []
        self.results: list[Result] = []
        self.apply()
        self.after(clock_ms)

    @property
    def state(self) -> State:
        return self.machine.state

    @property
    def now_ms(self) -> int:
        return self.state.now_ms

    @property
    def last(self) -> Result:
        return self.results[-1]

    def apply(self, *commands: Command) -> list[Result]:
        """Commit one entry with these commands."""
        self.index += 1
        entry = encode_entry(self.term, self.elapsed_ms, [encode_command(c) for c in commands])
        self.log.append((self.index, self.term, entry))
        self.results = self.machine.apply(self.index, self.term, entry)
        return self.results

    def when(self, *steps: Step) -> Cluster:
        """Apply the steps one entry each; the last result is kept for `then_*`."""
        for step in steps:
            if isinstance(step, AddWork) and step.template == TEMPLATE and self.state.template(TEMPLATE) is None:
                self.apply(template())
            self.apply(step(self) if callable(step) else step)
        return self

    def do(self, *steps: Step) -> Any:
        """Apply steps that must take effect; answers the last one's value."""
        value = None
        for step in steps:
            self.when(step)
            assert isinstance(self.last, Done), f"{step} was refused: {self.last}"
            value = self.last.value
        return value

    def then_done(self) -> Any:
        assert isinstance(self.last, Done), f"expected it to take effect, but {self.last}"
        return self.last.value

    def refuses(self, step: Step, code: Code, *words: str) -> str:
        """Apply a step that must be refused with this code, change no row, and name the things in its sentence."""
        before = rows_digest(self.state)
        self.when(step)
        assert isinstance(self.last, Rejected), f"expected {code}, but it took effect: {self.last}"
        assert self.last.code == code, self.last
        assert rows_digest(self.state) == before, f"{step} was refused and still changed rows"
        for word in words:
            assert word in self.last.detail, f"{word!r} is missing in: {self.last.detail}"
        return self.last.detail

    def after(self, ms: int, beating: Iterable[str] = ()) -> Cluster:
        """Let cluster time pass in steps of at most 2 s; the peers named in `beating` are heard at each."""
        alive = tuple(beating)
        while ms > 0:
            step = min(ms, 2_000)
            ms -= step
            self.elapsed_ms += step
            self.apply(*([beat(*alive)(self)] if alive else []))
        return self

    def new_leader(self) -> Cluster:
        """Another term begins, with a clock of its own that starts at nought."""
        self.term += 1
        self.elapsed_ms = 0
        self.apply()
        return self

    def job(self, work: str) -> Job:
        """The live (or completing) job of an item."""
        return self.state.jobs[self.state.work[work].job]

    def status(self, work: str) -> str:
        return str(self.state.work[work].status)

    def events(self, kind: str = "") -> list[str]:
        """Keys of the events of a kind, or all kinds, oldest first."""
        rows = self.state.events.values()
        return [e.key for e in rows if e.kind == kind] if kind else [e.kind for e in rows]

    def restored(self) -> Cluster:
        """The same cluster after a detour through a snapshot file."""
        frozen = snapshot.freeze(self.machine)
        file = io.BytesIO()
        snapshot.write(frozen, snapshot.header(frozen, "test", ("a",)), file)
        file.seek(0)
        twin = object.__new__(Cluster)
        twin.machine = snapshot.read(file)[1]
        twin.term, twin.elapsed_ms, twin.index = self.term, self.elapsed_ms, self.index
        twin.log, twin.results = [], []
        return twin


def given(*steps: Step) -> Cluster:
    """A cluster in which these steps have taken effect."""
    cluster = Cluster()
    cluster.do(*steps)
    return cluster


# --- builders -------------------------------------------------------------------------------------


def digest_of(name: str) -> str:
    """A sha256 to call a file by."""
    return hashlib.sha256(name.encode()).hexdigest()


def facts(slots: int = 4, gpus: int = 0, **more: Any) -> PeerFacts:
    cards = tuple(Gpu(uuid=f"gpu{n}", name="L4", memory_bytes=24 * 2**30) for n in range(gpus))
    return PeerFacts(cpu_cores=slots, cpu_slots=slots, ram_bytes=64 * 2**30, gpus=cards, **more)


def node(
    name: str,
    slots: int = 4,
    gpus: int = 0,
    incarnation: int = 1,
    boot: str = "boot1",
    address: str = "",
    **more: Any,
) -> JoinPeer:
    """A node process joins."""
    return JoinPeer(
        peer=name,
        incarnation=incarnation,
        boot_id=boot,
        role="follower",
        address=address or f"http://{name}:8770",
        facts=facts(slots, gpus, **more),
    )


def beat(*names: str) -> Callable[[Cluster], Command]:
    """Heartbeats of the peers' present incarnations."""

    def build(cluster: Cluster) -> Command:
        peers = cluster.state.peers
        return RecordHeartbeats(tuple(Heartbeat(n, peers[n].incarnation) for n in names if n in peers))

    return build


def setting(name: str, value: msgspec.Struct, version: int = -1) -> ChangeSetting:
    return ChangeSetting(name=name, value=st.encode(value), expected_version=version, by="tester")


def template(name: str = TEMPLATE, **more: Any) -> ChangeSetting:
    return setting(f"template/{name}", st.Template(argv=("true",), **more))


def game_config(key: str = CONFIG) -> ChangeSetting:
    stage = st.Stage(template=TEMPLATE)
    return setting(
        f"config/{key}",
        st.GameConfig(initial=stage, selfplay=st.Selfplay(stage), training=st.Training(stage), gate=st.Gate(stage)),
    )


def item(work: str, work_type: str = "selfplay", config: str = CONFIG, **more: Any) -> AddWork:
    return AddWork(work=work, work_type=work_type, config=config, **{"template": TEMPLATE, **more})


def claimable(work: str, work_type: str = "selfplay", config: str = CONFIG, **more: Any) -> AddWork:
    """An item without a template, for workers that claim."""
    return AddWork(work=work, work_type=work_type, config=config, **more)


def bound(work: str, peer: str, gpus: tuple[str, ...] = ()) -> Callable[[Cluster], Command]:
    """The leader places the item on the peer's present incarnation."""

    def build(cluster: Cluster) -> Command:
        row = cluster.state.peers.get(peer)
        return PlaceWork(work=work, peer=peer, incarnation=row.incarnation if row else 1, gpus=gpus)

    return build


def claimed(claim: str, peer: str = "worker", limit: int = 1, **more: Any) -> ClaimWork:
    return ClaimWork(claim=claim, peer=peer, limit=limit, **more)


def started(work: str) -> Callable[[Cluster], Command]:
    """The executor reports that the item's process runs."""
    return lambda cluster: ReportJob(cluster.job(work).job, cluster.job(work).fence, "running")


def completed(work: str, games: int = 10, **more: Any) -> Callable[[Cluster], Command]:
    """The executor reports a success with some games (unless `counts` says otherwise)."""

    def build(cluster: Cluster) -> Command:
        job = cluster.job(work)
        told = {"counts": {"games": games, "positions": 10 * games}, **more}
        return CompleteJob(job=job.job, fence=job.fence, **told)

    return build


def failed(work: str, error_class: str = "user", error: str = "it broke") -> Callable[[Cluster], Command]:
    return lambda cluster: FailJob(cluster.job(work).job, cluster.job(work).fence, error_class, error)


def model_file(name: str) -> Output:
    return Output(path=f"{name}.pt", digest=digest_of(name), size_bytes=1_000, kind="model")


def games_file(name: str, games: int) -> Output:
    return Output(path=f"{name}.npz", digest=digest_of(name), size_bytes=500, kind="games", counts={"games": games})


def pairs(a: str, b: str, wins: int = 0, losses: int = 0, draws: int = 0) -> MatchResult:
    """Games of two players in pairs: each result of a pair twice, so the histogram has three of its five bins."""
    tally = Tally(seats_a=1, seats_b=1, wins_a=2 * wins, wins_b=2 * losses, draws=2 * draws)
    return MatchResult(a=a, b=b, tally=(tally,), histogram=(losses, 0, draws, 0, wins))


def trained(name: str, config: str = CONFIG, work_type: str = "training") -> tuple[Step, ...]:
    """Steps after which the model `name` is a candidate of its config."""
    work = f"train-{name}"
    return (
        item(work, work_type, config),
        claimed(f"claim-{work}", "trainer", work_types=(work_type,), configs=(config,)),
        completed(work, counts={}, outputs=(model_file(name),)),
    )


def participant(name: str) -> str:
    return f"{digest_of(name)}@policy-only"
