"""The small values that commands and rows share: named bounds for text and numbers, and frozen Structs of them."""

from __future__ import annotations

from enum import StrEnum
from string import ascii_letters, digits
from typing import Annotated

from msgspec import Meta, Struct

#: `$` alone would let a trailing newline through
NAME = r"^[A-Za-z0-9][A-Za-z0-9._:@/+-]*$(?!\n)"
Id = Annotated[str, Meta(min_length=1, max_length=128, pattern=NAME)]
#: an Id that names something which is there already: it needs no form of its own, one that nothing has is refused
Ref = Annotated[str, Meta(min_length=1, max_length=128)]
#: shorter than an Id, because the names of its jobs and matches are made from it; the law looks at its form itself
WorkId = Annotated[str, Meta(min_length=1, max_length=96)]
#: shorter still, because its evaluations are work items that are named after it
GauntletId = Annotated[str, Meta(min_length=1, max_length=80, pattern=NAME)]
#: short enough that names of items and participants can be made from several
Part = Annotated[str, Meta(min_length=1, max_length=32, pattern=NAME)]
#: sha256 of a file's bytes, in lower-case hex
HEX = r"^[0-9a-f]{64}$(?!\n)"
Digest = Annotated[str, Meta(pattern=HEX)]
Text = Annotated[str, Meta(max_length=4096)]
Short = Annotated[str, Meta(max_length=256)]
Natural = Annotated[int, Meta(ge=0, le=2**62)]
#: small enough that the sum of millions of them is still an integer of the wire format
MOST = 2**40
Count = Annotated[int, Meta(ge=0, le=MOST)]
Priority = Annotated[int, Meta(ge=0, le=1000)]
Elo = Annotated[int, Meta(ge=-4_000, le=4_000)]
Counts = Annotated[dict[Short, Count], Meta(max_length=64)]
#: opaque parameters; numbers travel as canonical decimal text
Params = Annotated[dict[Short, Text], Meta(max_length=128)]


#: long enough for `node:` and a node's id
TokenName = Annotated[str, Meta(min_length=1, max_length=140, pattern=NAME)]


_FIRST = frozenset(ascii_letters + digits)
_REST = ascii_letters + digits + "._:@/+-"


def is_name(text: str) -> bool:
    """Whether a text that is not empty has the form of an Id: a quarter of what its pattern takes, for what is hot."""
    return text[0] in _FIRST and not text.strip(_REST)


class Scope(StrEnum):
    """What a token is good for."""

    #: every question
    READ = "read"
    #: and the queue: add, cancel, retry, stop
    SUBMIT = "submit"
    #: every question, and what the agent of one node sends
    NODE = "node"
    #: everything
    ADMIN = "admin"
    #: buying a node token, nothing else
    JOIN = "join"


class Value(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """Base of the small values that commands and rows share."""


class Gpu(Value, frozen=True):
    """One GPU (or MIG instance) as its driver names it."""

    uuid: Id
    name: Short = ""
    memory_bytes: Natural = 0
    #: empty when healthy, else the reason it is not offered
    fault: Short = ""
    #: memory that programs of nobody in this cluster hold, in coarse steps
    foreign_bytes: Natural = 0
    #: the device that a MIG instance is a part of
    part_of: Short = ""
    pci: Short = ""
    power_limit_w: Natural = 0
    #: work and heat in coarse steps, so that they are told seldom
    busy_percent: Natural = 0
    temperature_c: Natural = 0


class GpuDrain(Value, frozen=True):
    """A GPU that gets no new work until a moment of the cluster clock, or (0) until somebody lifts it."""

    gpu: Id
    reason: Short = ""
    until_ms: Natural = 0


class Voter(Value, frozen=True):
    """A member of the voters, where it is reached, and the log it holds (empty until that is known)."""

    node: Id
    #: host:port between voters
    raft: Short
    url: Short = ""
    log_id: Short = ""


class PeerFacts(Value, frozen=True):
    """Coarse facts of a machine, sent at join and when they change."""

    hostname: Short = ""
    platform: Short = ""
    release: Short = ""
    cpu_cores: Natural = 0
    #: how many workload processes the node takes when they need no GPU
    cpu_slots: Natural = 0
    ram_bytes: Natural = 0
    disk_bytes: Natural = 0
    #: free above the node's floor, in coarse steps
    disk_free_bytes: Natural = 0
    gpu_driver: Short = ""
    cuda: Short = ""
    gpus: Annotated[tuple[Gpu, ...], Meta(max_length=64)] = ()
    labels: Annotated[tuple[Short, ...], Meta(max_length=32)] = ()
    #: the newest feature level that its release can apply
    feature_level: Natural = 1
    #: empty when the node takes work, else why it does not (low disk, no shim, ...)
    not_ready: Short = ""
    #: the quota of its store of files; 0 is none
    store_bytes: Natural = 0


class Needs(Value, frozen=True):
    """What one attempt takes from a node while it runs."""

    cpu_slots: Annotated[int, Meta(ge=0, le=1024)] = 1
    gpus: Annotated[int, Meta(ge=0, le=16)] = 0
    vram_bytes: Natural = 0
    ram_bytes: Natural = 0
    disk_bytes: Natural = 0
    labels: Annotated[tuple[Short, ...], Meta(max_length=8)] = ()
    #: one of these peers; empty: any
    peers: Annotated[tuple[Id, ...], Meta(max_length=64)] = ()


class Input(Value, frozen=True):
    """A file the attempt needs before it starts, placed at `inputs/<name>`."""

    name: Id
    digest: Digest


class Output(Value, frozen=True):
    """A file an attempt made: already hashed, and held by the node that reports it."""

    path: Short
    digest: Digest
    size_bytes: Natural
    kind: Id
    counts: Counts = {}


class Tally(Value, frozen=True):
    """Games between two participants with `seats_a` seats for a and `seats_b` for b in each game."""

    seats_a: Annotated[int, Meta(ge=1, le=8)]
    seats_b: Annotated[int, Meta(ge=1, le=8)]
    wins_a: Count
    wins_b: Count
    draws: Count

    @property
    def games(self) -> int:
        return self.wins_a + self.wins_b + self.draws


class MatchResult(Value, frozen=True):
    """What one evaluation measured. `histogram[h]` counts groups in which a took h half points."""

    a: Id
    b: Id
    tally: Annotated[tuple[Tally, ...], Meta(min_length=1, max_length=16)]
    histogram: Annotated[tuple[Count, ...], Meta(max_length=65)] = ()


class Evidence(Value, frozen=True):
    """Why a model was promoted, in the numbers the decision was made from."""

    #: "gauntlet", "initial" or "operator"
    kind: Short
    gauntlet: Annotated[str, Meta(max_length=128)] = ""
    games: Count = 0
    groups: Count = 0
    #: log-likelihood ratio and its bounds in thousandths of a nat
    llr_milli: int = 0
    lower_milli: int = 0
    upper_milli: int = 0
    note: Text = ""


class JobProgress(Value, frozen=True):
    """Cumulative counts of a running job, and what it aims at."""

    job: Ref
    fence: Natural
    counts: Counts = {}
    total: Counts = {}


class Beat(Value, frozen=True):
    """One peer's sign of life. `progress` holds cumulative totals per job, at most every 30 s."""

    peer: Ref
    incarnation: Natural
    facts: PeerFacts | None = None
    progress: Annotated[tuple[JobProgress, ...], Meta(max_length=256)] = ()
