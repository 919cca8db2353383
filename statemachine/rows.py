"""The schema of the replicated state: one frozen row type a table.

    table       key                row         written by
    cluster     "cluster"          Cluster     every entry (clock), operators
    peers       peer id            Peer        joins, heartbeats, the clock
    work        work id            Work        clients, policies, the law
    jobs        work id . number   Job         desired: law and policies; actual: the executor with the fence
    artifacts   sha256             Artifact    completed jobs, holders
    models      sha256             Model       completed training, promotions
    matches     match id           Match       completed evaluations, operators
    standings   config a b         Standing    sums over matches that are not void
    gauntlets   gauntlet id        Gauntlet    gauntlet policy, completed evaluations
    totals      config             Totals      completed jobs
    paces       type config        Pace        completed jobs
    settings    name               Setting     operators
    requests    request id         Request     commands that ran under a request id
    events      sequence number    Event       everything above
    tokens      token name         Token       operators, joining nodes, the clock
    voters      "voters"           Voters      consensus, with the entry that changes who votes

Rows hold text, integers and tuples only, are never changed in place, and contain no reference cycle
(hence `gc=False`). Times are milliseconds of the replicated cluster clock unless the name says wall.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from operator import attrgetter
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from statemachine.commands import AddWork, StartGauntlet
from statemachine.values import Evidence, GpuDrain, MatchResult, Needs, Output, PeerFacts, Scope, Tally, Voter


class Word(StrEnum):
    """A closed set of words; it hashes like its text, which the standard one does in Python, ten times slower."""

    __hash__ = str.__hash__


#: the role of a peer that is a host without an agent
SSH = "ssh"


class PeerStatus(Word):
    #: heard within the suspect time
    ALIVE = "alive"
    #: silent for the suspect time: gets no new work, keeps what it runs
    SUSPECT = "suspect"
    #: silent for the dead time: its jobs are lost as their leases lapse
    DEAD = "dead"


class WorkStatus(Word):
    #: in the queue, perhaps not ready yet (backoff, dependencies)
    PENDING = "pending"
    #: bound to a job that has not started
    CLAIMED = "claimed"
    #: its job runs
    RUNNING = "running"
    #: its job's result was counted; final
    COMPLETED = "completed"
    #: out of attempts, or failed in a way that no retry mends: the dead letters
    FAILED = "failed"
    #: ended by a person or a policy
    CANCELLED = "cancelled"
    #: waited longer than its time to live
    EXPIRED = "expired"


class Actual(Word):
    """What an attempt is really doing: the executor's column."""

    #: granted; the executor has not acted on it
    PENDING = "pending"
    #: inputs are being fetched, the process is being made
    STARTING = "starting"
    #: the process runs
    RUNNING = "running"
    #: exit 0 with a valid result
    SUCCEEDED = "succeeded"
    #: anything else the executor saw end
    FAILED = "failed"
    #: told to stop and stopped, or handed back before it started
    STOPPED = "stopped"
    #: its lease lapsed, or its machine rebooted: written by the law alone
    LOST = "lost"


class Desired(Word):
    RUN = "run"
    STOP = "stop"


WORK_TRANSITIONS: frozenset[tuple[WorkStatus, WorkStatus]] = frozenset(
    {
        (WorkStatus.PENDING, WorkStatus.CLAIMED),
        (WorkStatus.PENDING, WorkStatus.CANCELLED),
        (WorkStatus.PENDING, WorkStatus.EXPIRED),
        (WorkStatus.CLAIMED, WorkStatus.RUNNING),
        (WorkStatus.CLAIMED, WorkStatus.COMPLETED),
        (WorkStatus.CLAIMED, WorkStatus.PENDING),
        (WorkStatus.CLAIMED, WorkStatus.FAILED),
        (WorkStatus.CLAIMED, WorkStatus.CANCELLED),
        (WorkStatus.RUNNING, WorkStatus.COMPLETED),
        (WorkStatus.RUNNING, WorkStatus.PENDING),
        (WorkStatus.RUNNING, WorkStatus.FAILED),
        (WorkStatus.RUNNING, WorkStatus.CANCELLED),
        (WorkStatus.FAILED, WorkStatus.PENDING),
        (WorkStatus.CANCELLED, WorkStatus.PENDING),
        (WorkStatus.EXPIRED, WorkStatus.PENDING),
    }
)

JOB_TRANSITIONS: frozenset[tuple[Actual, Actual]] = frozenset(
    {
        (Actual.PENDING, Actual.STARTING),
        (Actual.PENDING, Actual.RUNNING),
        (Actual.PENDING, Actual.SUCCEEDED),
        (Actual.PENDING, Actual.FAILED),
        (Actual.PENDING, Actual.STOPPED),
        (Actual.PENDING, Actual.LOST),
        (Actual.STARTING, Actual.RUNNING),
        (Actual.STARTING, Actual.SUCCEEDED),
        (Actual.STARTING, Actual.FAILED),
        (Actual.STARTING, Actual.STOPPED),
        (Actual.STARTING, Actual.LOST),
        (Actual.RUNNING, Actual.SUCCEEDED),
        (Actual.RUNNING, Actual.FAILED),
        (Actual.RUNNING, Actual.STOPPED),
        (Actual.RUNNING, Actual.LOST),
    }
)

LIVE_JOB = frozenset({Actual.PENDING, Actual.STARTING, Actual.RUNNING})
LIVE_WORK = frozenset({WorkStatus.CLAIMED, WorkStatus.RUNNING})
OPEN_WORK = LIVE_WORK | {WorkStatus.PENDING}


class Cluster(Struct, frozen=True, gc=False):
    """Clock, counters and switches of the whole cluster."""

    clock_ms: int = 0
    clock_term: int = 0
    clock_elapsed_ms: int = 0
    feature_level: int = 1
    #: the last fence granted
    fence: int = 0
    #: the last sequence number given to a row: the order in which rows came to be
    seq: int = 0
    #: the last event's number
    event_seq: int = 0
    paused: bool = False
    pause_reason: str = ""
    #: how often operators asked all nodes to look for files to copy
    syncs: int = 0


class Peer(Struct, frozen=True, gc=False):
    peer: str
    incarnation: int
    boot_id: str
    role: str
    address: str
    facts: PeerFacts
    status: PeerStatus
    joined_at_ms: int
    heard_at_ms: int
    #: the last sign of life that another peer saw for it; it keeps a suspect from death, no lease
    vouched_at_ms: int = 0
    draining: bool = False
    drain_reason: str = ""
    drain_deadline_ms: int = 0
    #: attempts that ended badly here, and when the count was last halved
    failures: int = 0
    failures_at_ms: int = 0
    wall_joined_at_ms: int = 0
    gpu_drains: tuple[GpuDrain, ...] = ()
    #: times it came back from silence, fading like failures, and when it last did
    flaps: int = 0
    flaps_at_ms: int = 0
    #: it gets no new work before this, and why
    held_until_ms: int = 0
    held_reason: str = ""
    #: why it said goodbye; empty while it is expected
    left: str = ""


class Work(Struct, frozen=True, gc=False):
    """A work item: what was asked for (`spec`) and where it stands."""

    spec: AddWork
    status: WorkStatus
    seq: int
    created_at_ms: int
    ready_at_ms: int
    expires_at_ms: int = 0
    #: attempts that really started
    attempts: int = 0
    #: bindings to a node, started or not; numbers the jobs
    grants: int = 0
    #: bindings when an operator's retry gave it a new start
    grants_before: int = 0
    #: the live job, or the one that completed it
    job: str = ""
    finished_at_ms: int = 0
    #: the sentence of the last thing that went wrong, or why it ended
    reason: str = ""
    error_class: str = ""
    #: peers whose attempts failed, in order
    failed_on: tuple[str, ...] = ()
    counts: dict[str, int] = {}
    metrics: dict[str, str] = {}

    @property
    def work(self) -> str:
        return self.spec.work


class Restarts(Struct, frozen=True, gc=False):
    """How often a job's program was started again on its node, and of what it failed the last time."""

    count: int
    at_ms: int
    error_class: str
    error: str


class Job(Struct, frozen=True, gc=False):
    """One attempt on one node under a fence."""

    job: str
    work: str
    work_type: str
    config: str
    peer: str
    incarnation: int
    fence: int
    desired: Desired
    actual: Actual
    granted_at_ms: int
    lease_ms: int
    #: renewed by the peer's heartbeats (an agent's job) or by its own renewals (a claimed one)
    renewed_at_ms: int
    needs: Needs
    timeout_ms: int
    claim: str = ""
    gpus: tuple[str, ...] = ()
    started_at_ms: int = 0
    finished_at_ms: int = 0
    reason: str = ""
    counts: dict[str, int] = {}
    total: dict[str, int] = {}
    progress_at_ms: int = 0
    #: the longest time between two changes of its counts
    silence_ms: int = 0
    metrics: dict[str, str] = {}
    outputs: tuple[Output, ...] = ()
    exit_code: int = 0
    error_class: str = ""
    error: str = ""
    #: the placement's own words
    placed: str = ""
    #: it is told to stop because it failed: the class of that failure
    stop_class: str = ""
    #: not there, not even written, while there was none: most jobs have none
    restarts: Restarts | UnsetType = UNSET

    @property
    def times_restarted(self) -> int:
        return 0 if isinstance(self.restarts, UnsetType) else self.restarts.count


#: a holder whose name begins so is an object store: its files are got by the nodes that carry its name as a label
STORE = "store:"


class Artifact(Struct, frozen=True, gc=False):
    digest: str
    size_bytes: int
    kind: str
    config: str
    seq: int
    created_at_ms: int
    counts: dict[str, int] = {}
    holders: tuple[str, ...] = ()
    job: str = ""
    fence: int = 0
    name: str = ""
    #: digest of the model that made it (games), or that it was trained from (models)
    parent: str = ""
    #: holders that sent somebody other bytes; until they have read their copy again it does not count
    doubted: tuple[str, ...] = ()


class ModelStatus(Word):
    #: trained, not judged yet
    CANDIDATE = "candidate"
    #: plays the selfplay games of its config
    CHAMPION = "champion"
    #: was champion
    FORMER = "former"
    #: lost its gauntlet, or nothing could be decided within the cap
    REJECTED = "rejected"


class Model(Struct, frozen=True, gc=False):
    digest: str
    config: str
    generation: int
    status: ModelStatus
    seq: int
    created_at_ms: int
    parent: str = ""
    work: str = ""
    promoted_at_ms: int = 0
    evidence: Evidence | None = None
    #: selfplay games counted for the config when the model was made
    games_seen: int = 0


class Match(Struct, frozen=True, gc=False):
    match: str
    config: str
    result: MatchResult
    at_ms: int
    peer: str = ""
    #: the gauntlet that counted it, if one did
    gauntlet: str = ""
    voided: str = ""


class Standing(Struct, frozen=True, gc=False):
    """The sum of all matches of two participants (a < b) in a config."""

    config: str
    a: str
    b: str
    tally: tuple[Tally, ...] = ()
    histogram: tuple[int, ...] = ()
    matches: int = 0


class GauntletStatus(Word):
    RUNNING = "running"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    INCONCLUSIVE = "inconclusive"
    #: its evaluations failed
    ABANDONED = "abandoned"
    #: the champion changed under it; the candidate is tested anew
    SUPERSEDED = "superseded"


class Gauntlet(Struct, frozen=True, gc=False):
    spec: StartGauntlet
    status: GauntletStatus
    seq: int
    started_at_ms: int
    #: candidate against the opponent, from the candidate's side
    tally: tuple[Tally, ...] = ()
    histogram: tuple[int, ...] = ()
    #: games against each baseline
    baseline_games: dict[str, int] = {}
    finished_at_ms: int = 0
    evidence: Evidence | None = None


class Totals(Struct, frozen=True, gc=False):
    """What one config has made so far: folds over completed jobs, so each counts once."""

    config: str
    games: int = 0
    positions: int = 0
    selfplay_jobs: int = 0
    training_jobs: int = 0
    evaluation_games: int = 0
    generations: int = 0
    promotions: int = 0
    #: games counted when the last training was completed
    games_at_training: int = 0


class Pace(Struct, frozen=True, gc=False):
    """The longest silences of the last jobs of one kind that succeeded, oldest first."""

    work_type: str
    config: str
    silences_ms: tuple[int, ...] = ()


class Setting(Struct, frozen=True, gc=False):
    name: str
    value: str
    version: int
    by: str
    at_ms: int


class Request(Struct, frozen=True, gc=False):
    request: str
    expires_at_ms: int
    #: the encoded Result
    result: bytes
    #: the command that ran
    kind: str


class Event(Struct, frozen=True, gc=False):
    """What happened, in the past tense: `kind` is a name, `key` the id of the thing."""

    seq: int
    index: int
    at_ms: int
    kind: str
    key: str
    detail: dict[str, str] = {}


class Token(Struct, frozen=True, gc=False):
    """Who may do what. The secret is in nobody's log; `sha256` is all that is known of it."""

    name: str
    scope: Scope
    sha256: str
    created_at_ms: int
    expires_at_ms: int = 0
    #: the node that a `node` token speaks for
    peer: str = ""
    #: the join token it was bought with
    bought_with: str = ""
    #: nodes that a `join` token may let in (0: any number), and has let in
    uses: int = 0
    used: int = 0
    #: why it is over; empty while it is good
    ended: str = ""
    ended_at_ms: int = 0


class Voters(Struct, frozen=True, gc=False):
    """Who votes, as of the entry at `index`; `request` asked for that change."""

    index: int
    request: str
    voters: tuple[Voter, ...]


Row = (
    Cluster
    | Peer
    | Work
    | Job
    | Artifact
    | Model
    | Match
    | Standing
    | Gauntlet
    | Totals
    | Pace
    | Setting
    | Request
    | Event
    | Token
    | Voters
)

CLUSTER_KEY = "cluster"
VOTERS_KEY = "voters"


def standing_key(row: Standing) -> str:
    return f"{row.config} {row.a} {row.b}"


#: Table name to row type, in the order of the snapshot's sections. Append only.
TABLES: dict[str, type[Struct]] = {
    "cluster": Cluster,
    "peers": Peer,
    "work": Work,
    "jobs": Job,
    "artifacts": Artifact,
    "models": Model,
    "matches": Match,
    "standings": Standing,
    "gauntlets": Gauntlet,
    "totals": Totals,
    "settings": Setting,
    "requests": Request,
    "events": Event,
    "tokens": Token,
    "voters": Voters,
    "paces": Pace,
}

#: Table name to what a row of it is found under: a row knows its key, so nothing keeps or writes it twice.
KEYS: dict[str, Callable[[Any], str]] = {
    "cluster": lambda row: CLUSTER_KEY,
    "peers": attrgetter("peer"),
    "work": attrgetter("spec.work"),
    "jobs": attrgetter("job"),
    "artifacts": attrgetter("digest"),
    "models": attrgetter("digest"),
    "matches": attrgetter("match"),
    "standings": standing_key,
    "gauntlets": attrgetter("spec.gauntlet"),
    "totals": attrgetter("config"),
    "settings": attrgetter("name"),
    "requests": attrgetter("request"),
    "events": lambda row: str(row.seq),
    "tokens": attrgetter("name"),
    "voters": lambda row: VOTERS_KEY,
    "paces": lambda row: f"{row.work_type} {row.config}",
}
