"""The wire contract of the log: one frozen Struct a command, tagged with an explicit kind.

Kinds are append-only and never change their meaning; a new meaning is a new kind with a number (`work.add.2`).
Fields may be appended with a default until their kind's level is released. After that one more field, also of a value
within, is a new kind in `FEATURE_LEVELS`: a replica of an older release cannot read an entry with a field that it does
not know. Integers and text only: nothing in a command may depend on a machine's floating point, and what needed a clock
or a coin was decided by the proposer.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from statemachine.values import (
    Beat,
    Count,
    Counts,
    Digest,
    Elo,
    Evidence,
    GauntletId,
    Id,
    Input,
    JobProgress,
    MatchResult,
    Natural,
    Needs,
    Output,
    Params,
    PeerFacts,
    Priority,
    Ref,
    Scope,
    Short,
    TokenName,
    Voter,
    WorkId,
)

T = TypeVar("T")

#: One encoded command; larger ones are refused before they reach the log.
MAX_COMMAND_BYTES = 256 * 1024


class Base(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="kind", gc=False):
    """Base of all commands."""


class JoinPeer(Base, frozen=True, tag="peer.join"):
    """Register a node process. A new boot id says that no process of the machine survived."""

    peer: Id
    incarnation: Natural
    boot_id: Short
    role: Short
    address: Short
    facts: PeerFacts
    at_ms: Natural = 0


class RecordHeartbeats(Base, frozen=True, tag="peer.heartbeats"):
    """What one voter heard since its last one. The result lists the peers that were not taken."""

    beats: Annotated[tuple[Beat, ...], Meta(max_length=4096)]


class VouchForPeer(Base, frozen=True, tag="peer.vouch"):
    """Another peer reached the suspect: it is not dead, although its heartbeats do not arrive."""

    peer: Id
    incarnation: Natural
    by: Id


class LeavePeer(Base, frozen=True, tag="peer.leave"):
    """A node says goodbye: it ends and runs nothing any more. What it still holds is lost at once."""

    peer: Id
    incarnation: Natural
    reason: Short = ""


class DrainPeer(Base, frozen=True, tag="peer.drain"):
    """Take a peer out of placement (or back in). With a deadline its jobs are stopped then."""

    peer: Id
    drain: bool
    reason: Short = ""
    deadline_ms: Natural = 0


class DrainGpu(Base, frozen=True, tag="gpu.drain"):
    """Take one GPU of a peer out of placement for a while (0: until it is lifted), or put it back."""

    peer: Id
    gpu: Id
    drain: bool
    reason: Short = ""
    for_ms: Annotated[int, Meta(ge=0, le=10**12)] = 0


class RemovePeer(Base, frozen=True, tag="peer.remove"):
    """Forget a peer that is dead or drained; its live jobs are lost at once."""

    peer: Id
    reason: Short = ""


class AddWork(Base, frozen=True, tag="work.add"):
    """Queue one item under an id its client chose. The same item again is no second item."""

    work: WorkId
    work_type: Ref
    config: Annotated[str, Meta(max_length=64)] = ""
    priority: Priority = 50
    template: Annotated[str, Meta(max_length=64)] = ""
    params: Params = {}
    inputs: Annotated[tuple[Input, ...], Meta(max_length=1024)] = ()
    depends_on: Annotated[tuple[Id, ...], Meta(max_length=64)] = ()
    #: None is what its template says, or one CPU slot
    needs: Needs | None = None
    max_attempts: Annotated[int, Meta(ge=1, le=100)] = 3
    #: how long an attempt may run; 0 is the setting of its type
    timeout_ms: Natural = 0
    #: how long it may wait before it expires; 0 is for ever
    ttl_ms: Natural = 0
    #: at most one unfinished item at a time under this name
    unique: Annotated[str, Meta(max_length=128)] = ""
    gauntlet: Annotated[str, Meta(max_length=128)] = ""
    at_ms: Natural = 0


class ClaimWork(Base, frozen=True, tag="work.claim"):
    """Bind up to `limit` of the best pending items to a worker that runs them itself."""

    claim: Id
    peer: Id
    work_types: Annotated[tuple[Ref, ...], Meta(max_length=32)] = ()
    configs: Annotated[tuple[Ref, ...], Meta(max_length=64)] = ()
    limit: Annotated[int, Meta(ge=1, le=256)] = 1


class PlaceWork(Base, frozen=True, tag="work.place"):
    """Bind one pending item to a peer whose agent will run it."""

    work: Ref
    peer: Ref
    incarnation: Natural
    gpus: Annotated[tuple[Id, ...], Meta(max_length=16)] = ()
    reason: Short = ""


class CancelWork(Base, frozen=True, tag="work.cancel"):
    """End an item. A running attempt is told to stop, and what it still reports is refused."""

    work: Ref
    reason: Short = ""


class RetryWork(Base, frozen=True, tag="work.retry"):
    """Give a failed, cancelled or expired item its attempts back."""

    work: Ref
    reason: Short = ""


class ReportJob(Base, frozen=True, tag="job.report"):
    """The executor's own column: `starting`, then `running` (which burns the attempt)."""

    job: Ref
    fence: Natural
    actual: Short
    at_ms: Natural = 0


class RenewJobs(Base, frozen=True, tag="job.renew"):
    """Extend the leases of a worker that sends no heartbeats. The result lists the fences that are over."""

    jobs: Annotated[tuple[JobProgress, ...], Meta(min_length=1, max_length=256)]


class CompleteJob(Base, frozen=True, tag="job.complete"):
    """The attempt succeeded: its totals, files and match results count, once, together."""

    job: Ref
    fence: Natural
    counts: Counts = {}
    metrics: Params = {}
    outputs: Annotated[tuple[Output, ...], Meta(max_length=1024)] = ()
    match: MatchResult | None = None
    #: the attempt was told to stop and kept a valid part of its work
    stopped: bool = False
    exit_code: int = 0
    at_ms: Natural = 0


class FailJob(Base, frozen=True, tag="job.fail"):
    """The attempt failed. The class decides what comes next; the text is mandatory."""

    job: Ref
    fence: Natural
    #: user, infrastructure, oom, cuda, preempted, timeout, hung, no_output, lost, stopped
    error_class: Id
    error: Annotated[str, Meta(min_length=1, max_length=4096)]
    exit_code: int = 0
    at_ms: Natural = 0


class RestartJob(Base, frozen=True, tag="job.restart"):
    """Its program failed and is started again on its node, under the same fence; no attempt is burnt."""

    job: Ref
    fence: Natural
    #: how many restarts there are with this one; an earlier number is a repeat
    count: Annotated[int, Meta(ge=1, le=1000)]
    #: what it failed of this time
    error_class: Id
    error: Annotated[str, Meta(min_length=1, max_length=1024)]
    at_ms: Natural = 0


class SaveCheckpoint(Base, frozen=True, tag="job.checkpoint"):
    """Register what an unfinished attempt has so far, held by its node; it takes the place of the item's last one."""

    job: Ref
    fence: Natural
    digest: Digest
    size_bytes: Natural


class ReleaseJob(Base, frozen=True, tag="job.release"):
    """The node will not run this attempt; nothing started, so no attempt is burnt."""

    job: Ref
    fence: Natural
    reason: Short


class StopJob(Base, frozen=True, tag="job.stop"):
    """Ask for an attempt to be stopped with its grace; its item returns to the queue."""

    job: Ref
    fence: Natural
    reason: Short
    #: the attempt is held to have failed in this way (hung), so its stop is no stop but a failure
    error_class: Annotated[str, Meta(max_length=32)] = ""


class AddHolder(Base, frozen=True, tag="artifact.hold"):
    """A peer has verified its own copy of a file."""

    digest: Digest
    peer: Id


class DropHolder(Base, frozen=True, tag="artifact.drop"):
    """A peer no longer has a file."""

    digest: Digest
    peer: Id


class ReleaseHolder(Base, frozen=True, tag="artifact.release"):
    """A peer asks to delete its copy. Refused while the others are too few; only then it deletes."""

    digest: Digest
    peer: Id


class DoubtHolder(Base, frozen=True, tag="artifact.doubt"):
    """A peer got other bytes from a holder than the digest promises. The holder reads its copy again."""

    digest: Digest
    holder: Id
    by: Id


class RequestSync(Base, frozen=True, tag="artifact.sync"):
    """Every node looks at once whether it should copy files."""

    reason: Short = ""


class RegisterArtifact(Base, frozen=True, tag="artifact.register"):
    """Make a file known that no job made (an imported model, an uploaded data set)."""

    digest: Digest
    size_bytes: Natural
    artifact_kind: Id
    config: Annotated[str, Meta(max_length=64)]
    peer: Id
    counts: Counts = {}


class ForgetArtifact(Base, frozen=True, tag="artifact.forget"):
    """Drop a file that nothing needs any more; its holders then delete it."""

    digest: Digest
    reason: Short = ""


class RecordMatch(Base, frozen=True, tag="match.record"):
    """Count games between two participants once, by match id."""

    match: Id
    config: Id
    result: MatchResult
    peer: Annotated[str, Meta(max_length=128)] = ""


class VoidMatch(Base, frozen=True, tag="match.void"):
    """Take a match out of the table again, exactly."""

    match: Id
    reason: Short


class StartGauntlet(Base, frozen=True, tag="gauntlet.start"):
    """Open an evaluation of a candidate against the champion, and baselines for its rating."""

    gauntlet: GauntletId
    config: Id
    candidate: Digest
    opponent: Id
    baselines: Annotated[tuple[Id, ...], Meta(max_length=8)] = ()
    #: bounds of the sequential test in Elo, and its error rates in thousandths
    elo0: Elo = 0
    elo1: Elo = 70
    alpha_milli: Annotated[int, Meta(ge=1, le=499)] = 50
    beta_milli: Annotated[int, Meta(ge=1, le=499)] = 50
    floor_games: Annotated[int, Meta(ge=2, le=10**6)] = 100
    cap_games: Annotated[int, Meta(ge=2, le=10**6)] = 1000
    baseline_games: Annotated[int, Meta(ge=0, le=10**6)] = 40


class ConcludeGauntlet(Base, frozen=True, tag="gauntlet.conclude"):
    """Close a gauntlet with its verdict: accepted, rejected, inconclusive or abandoned."""

    gauntlet: Id
    verdict: Short
    evidence: Evidence


class PromoteModel(Base, frozen=True, tag="model.promote"):
    """Make a model the champion of its config, if the champion is still the one it was tested against."""

    config: Id
    model: Digest
    previous: Annotated[str, Meta(max_length=64)]
    evidence: Evidence


class RollbackModel(Base, frozen=True, tag="model.rollback"):
    """Put a former champion back."""

    config: Id
    model: Digest
    previous: Digest
    reason: Short


class ChangeSetting(Base, frozen=True, tag="setting.change"):
    """Set one cluster setting (canonical JSON text), if its version is still the expected one."""

    name: Id
    value: Annotated[str, Meta(max_length=65536)]
    #: -1 means whatever is there
    expected_version: int = -1
    by: Short = ""


class PauseCluster(Base, frozen=True, tag="cluster.pause"):
    """Stop (or resume) placement and controllers; reports and reads go on."""

    paused: bool
    reason: Short = ""


class ConfigureVoters(Base, frozen=True, tag="cluster.voters"):
    """Who votes from this entry on. Consensus alone appends it; the law only keeps it, and never refuses."""

    voters: Annotated[tuple[Voter, ...], Meta(min_length=1, max_length=64)]
    #: the request that asked for the change; empty when consensus filled in what it learned
    request: Short = ""


class RaiseFeatureLevel(Base, frozen=True, tag="cluster.feature"):
    """Let newer commands be proposed. Replicas of an older release turn read-only."""

    level: Annotated[int, Meta(ge=1, le=1000)]


class CreateToken(Base, frozen=True, tag="token.create"):
    """Make a token known by the sha256 of its secret; the secret itself never reaches the log."""

    name: TokenName
    scope: Scope
    #: of the secret's text; it is 256 random bits, so a plain hash gives nothing to guess at
    sha256: Digest
    #: the node that a `node` token speaks for
    peer: Annotated[str, Meta(max_length=128)] = ""
    #: from when the command is applied; 0 is for ever
    expires_in_ms: Natural = 0
    #: how many nodes a `join` token may let in; 0 is any number
    uses: Count = 0


class RevokeToken(Base, frozen=True, tag="token.revoke"):
    """End a token at once."""

    name: TokenName
    reason: Short = ""


class RedeemToken(Base, frozen=True, tag="token.redeem"):
    """Trade a join token for the node token of one peer, in one step."""

    join: TokenName
    peer: Id
    sha256: Digest


class RecordAct(Base, frozen=True, tag="audit.record"):
    """Note an act of an operator that is no command: a shutdown, a transfer of leadership."""

    by: Short
    act: Short
    target: Short = ""


class Once(Base, frozen=True, tag="once"):
    """Run a command at most once: its result is remembered under the request id until the expiry."""

    request: Id
    expires_at_ms: Natural
    command: Effect


class Signed(Base, frozen=True, tag="signed"):
    """Run a command and leave an event that says whose token it came with, in one step."""

    by: Short
    command: Effect | Once


Effect = (
    JoinPeer
    | RecordHeartbeats
    | VouchForPeer
    | LeavePeer
    | DrainPeer
    | DrainGpu
    | RemovePeer
    | AddWork
    | ClaimWork
    | PlaceWork
    | CancelWork
    | RetryWork
    | ReportJob
    | RenewJobs
    | CompleteJob
    | FailJob
    | ReleaseJob
    | SaveCheckpoint
    | RestartJob
    | StopJob
    | AddHolder
    | DropHolder
    | ReleaseHolder
    | DoubtHolder
    | RequestSync
    | RegisterArtifact
    | ForgetArtifact
    | RecordMatch
    | VoidMatch
    | StartGauntlet
    | ConcludeGauntlet
    | PromoteModel
    | RollbackModel
    | ChangeSetting
    | PauseCluster
    | ConfigureVoters
    | RaiseFeatureLevel
    | CreateToken
    | RevokeToken
    | RedeemToken
    | RecordAct
)
Command = Effect | Once | Signed

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)


#: commands that came after level 1, and the feature level that lets them into the log
FEATURE_LEVELS: dict[type[Struct], int] = {}


def effect_of(command: Command) -> Effect:
    """The command itself, in whatever it is wrapped."""
    while isinstance(command, Once | Signed):
        command = command.command
    return command


def level_of(command: Command) -> int:
    """The feature level the cluster must have before this command may be in its log."""
    return FEATURE_LEVELS.get(type(effect_of(command)), 1)


def kind_of(command: Command) -> str:
    """The command's name on the wire."""
    return str(command.__struct_config__.tag)


def encode_command(command: Command) -> bytes:
    """Encode for the log (msgpack, tagged by kind)."""
    return _encoder.encode(command)


def decode_command(data: bytes) -> Command:
    """Decode and validate one command.

    Raises msgspec.ValidationError or msgspec.DecodeError with the field's path.
    """
    return decoded(_decoder, data)


def decoded(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    """What the bytes say; whatever is wrong with them is raised as one of msgspec's errors."""
    try:
        return decoder.decode(data)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"text that is not UTF-8: {error}") from None
    except RecursionError:
        raise msgspec.DecodeError("nested too deeply") from None


def unfit(data: bytes) -> str:
    """Why the log could not take an encoded command; empty when it can."""
    if len(data) > MAX_COMMAND_BYTES:
        return f"it has {len(data)} bytes, the limit is {MAX_COMMAND_BYTES}"
    try:
        decode_command(data)
    except msgspec.MsgspecError as error:
        return str(error)
    return ""
