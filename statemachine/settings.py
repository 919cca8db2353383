"""Cluster settings: typed values that live in the log and change by a command.

A setting is named by its group, or by group/key. Its value is JSON text in the state; it is decoded
into the Struct below when it is written, so a bad value is refused at the door and changes nothing.

    timing             liveness, leases, retries
    limits             bounds on rows
    retention          how long finished rows stay
    artifacts          how files are spread over the nodes
    config/KEY         one game config: what its selfplay, training and evaluation look like
    template/NAME      how the executor starts a program for a work item
    host/NAME          a machine without an agent, and the node whose agent runs its jobs over SSH
    controller/NAME    whether a controller runs

A field that comes after feature level 1 has a default and says its level (`Since`). What a release refuses in a value
and what its fields are by default never changes: a wider bound or one more word is a new field, too.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct, field

from statemachine.levels import NEWEST, as_of, level_of, seen_at
from statemachine.values import Count, Elo, Id, Natural, Needs, Params, Part, Priority, Short, Text

Span = Annotated[int, Meta(ge=1, le=10**12)]


class Timing(Struct, frozen=True, forbid_unknown_fields=True):
    """Spans in milliseconds of the cluster clock."""

    heartbeat_ms: Span = 15_000
    suspect_after_ms: Span = 45_000
    dead_after_ms: Span = 180_000
    #: lease by work type; `default` for the others
    lease_ms: dict[Short, Span] = field(default_factory=lambda: {"default": 300_000, "training": 900_000})
    #: an attempt that never starts goes back to the queue after this
    start_within_ms: Span = 300_000
    #: how long an attempt may run, by work type
    timeout_ms: dict[Short, Span] = field(
        default_factory=lambda: {
            "default": 5_400_000,
            "training": 14_400_000,
            "selfplay": 7_200_000,
            "evaluation": 3_600_000,
        }
    )
    #: first retry delay; doubles with each attempt up to the cap
    backoff_ms: Span = 10_000
    backoff_cap_ms: Span = 600_000
    #: a retry waits up to this much longer, in per cent, so that what failed together does not come back together
    backoff_jitter_percent: Annotated[int, Meta(ge=0, le=100)] = 0
    #: SIGTERM to SIGKILL
    grace_ms: Span = 60_000
    #: a peer's counts of failures and returns halve in this time
    failure_half_life_ms: Span = 1_800_000
    #: a GPU that its node suspects is drained for this long
    gpu_suspect_ms: Span = 3_600_000
    #: selfplay is stopped for a training that has waited this long for a GPU; 0 is never
    yield_after_ms: Natural = 600_000
    #: no job hangs before it was silent for this long, whatever its kind is used to
    hung_floor_ms: Span = 900_000
    #: items that wait this long while none of their kind runs raise an alarm
    alarm_after_ms: Span = 300_000

    def lease(self, work_type: str) -> int:
        return self.lease_ms.get(work_type) or self.lease_ms.get("default", 300_000)

    def timeout(self, work_type: str) -> int:
        return self.timeout_ms.get(work_type) or self.timeout_ms.get("default", 5_400_000)


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    #: pending items of one (type, config)
    pending_per_class: Span = 1_000
    #: live jobs on one peer, whatever its slots say
    jobs_per_peer: Span = 512
    #: live jobs that share one GPU, whatever its memory says
    jobs_per_gpu: Span = 16
    events: Span = 10_000
    peers: Span = 10_000
    requests: Span = 1_000_000
    tokens: Span = 20_000
    #: a peer on which so many attempts failed lately is held back for a while
    failures_before_hold: Span = 10
    #: a peer that came back from silence so often lately is held back for a while
    flaps_before_hold: Span = 5
    #: an item that failed on this many different peers is a dead letter, whatever attempts are left
    poisoned_after_peers: Span = 3


class Retention(Struct, frozen=True, forbid_unknown_fields=True):
    #: finished work and its jobs; until then repeats of their commands are recognised
    work_ms: Span = 7 * 86_400_000
    dead_peer_ms: Span = 86_400_000
    #: revoked and expired tokens; until then their use is refused with the reason
    token_ms: Span = 7 * 86_400_000
    #: selfplay files kept beyond the training window, in windows
    window_multiple: Annotated[int, Meta(ge=1, le=1000)] = 3
    #: former champions of a config whose files are kept, the latest of them: a rollback goes back to one of these
    former_models: Annotated[int, Meta(ge=1, le=10_000)] = 20
    #: rejected models of a config whose files are kept, the latest of them
    rejected_models: Annotated[int, Meta(ge=0, le=10_000)] = 10


class Artifacts(Struct, frozen=True, forbid_unknown_fields=True):
    """How files are spread over the nodes and kept whole."""

    #: copies on storage nodes, by kind of file; `default` for the others
    copies: dict[Short, Annotated[int, Meta(ge=0, le=16)]] = field(default_factory=lambda: {"default": 1, "model": 2})
    #: nodes with this label are the storage nodes; while no node has it, the voters are
    storage_label: Short = "storage"
    #: files that one node copies or sends between two looks at the rows
    files_per_job: Annotated[int, Meta(ge=1, le=10_000)] = 50
    #: how often a node looks whether it should copy something
    collect_ms: Span = 60_000
    #: how old a node's list of its own directory may be before it is read again
    manifest_age_ms: Span = 300_000
    #: a copy that its target has not fetched in this time is sent to it by a holder
    push_after_ms: Natural = 30_000
    #: whole copies of one file that a holder sends while others hold it too or are about to
    copies_per_holder: Annotated[int, Meta(ge=1, le=10_000)] = 3
    #: files that a holder sends at a time
    uploads_per_holder: Annotated[int, Meta(ge=1, le=10_000)] = 16
    #: every stored file is read and compared with its digest once in this time
    scrub_ms: Span = 7 * 86_400_000
    #: what is in an object store is compared with the rows once in this time
    store_audit_ms: Span = 86_400_000

    def wanted(self, kind: str) -> int:
        """How many storage nodes should hold a file of this kind."""
        found = self.copies.get(kind)
        return self.copies.get("default", 1) if found is None else found


class Stage(Struct, frozen=True, forbid_unknown_fields=True):
    """How the work items of one stage are made."""

    template: Id
    params: Params = {}
    #: None is what the template says, or one CPU slot
    needs: Needs | None = None
    priority: Priority = 50
    max_attempts: Annotated[int, Meta(ge=1, le=100)] = 3
    timeout_ms: Natural = 0


class Selfplay(Struct, frozen=True, forbid_unknown_fields=True):
    stage: Stage
    games_per_job: Annotated[int, Meta(ge=1, le=10**7)] = 50
    #: pending and running items the populator keeps in stock
    stock: Annotated[int, Meta(ge=0, le=1000)] = 2
    #: no more selfplay is queued while this many games wait for a training to use them; 0 is no bound
    ahead_games: Count = 0


class Training(Struct, frozen=True, forbid_unknown_fields=True):
    stage: Stage
    #: new games since the last training before the next one
    games_between: Annotated[int, Meta(ge=1, le=10**9)] = 1_000
    #: the newest games that a training reads
    window_games: Annotated[int, Meta(ge=1, le=10**9)] = 5_000
    #: no training is queued while this many candidates wait for their verdict
    max_candidates: Annotated[int, Meta(ge=1, le=100)] = 1


class Gate(Struct, frozen=True, forbid_unknown_fields=True):
    """The promotion test: SPRT on groups with a floor and a cap of games."""

    stage: Stage
    elo0: Elo = 0
    elo1: Elo = 70
    alpha_milli: Annotated[int, Meta(ge=1, le=499)] = 50
    beta_milli: Annotated[int, Meta(ge=1, le=499)] = 50
    floor_games: Annotated[int, Meta(ge=2, le=10**6)] = 100
    cap_games: Annotated[int, Meta(ge=2, le=10**6)] = 1_000
    #: groups (openings with all seat rotations) in one evaluation item
    groups_per_job: Annotated[int, Meta(ge=1, le=10**5)] = 25
    baselines: tuple[Part, ...] = ("random",)
    baseline_games: Count = 40
    #: how a model is played when it is rated; part of the participant's name
    harness: Part = "policy-only"


class GameConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """One row of the improvement loop: config key, its stages and its weight."""

    initial: Stage
    selfplay: Selfplay
    training: Training
    gate: Gate
    enabled: bool = True
    #: seats; games of a group = 2 for two players, 2n for n > 2
    players: Annotated[int, Meta(ge=2, le=8)] = 2
    weight: Annotated[int, Meta(ge=0, le=1000)] = 10


class OutputRule(Struct, frozen=True, forbid_unknown_fields=True):
    """Files that a program leaves without a word about them, and what to count in them.

    `glob` is below out/; it may begin with `tree/` or `home/` where the template has those.
    """

    glob: Annotated[str, Meta(min_length=1, max_length=256)]
    kind: Id
    #: lines, rows:TABLE (SQLite), npz:ARRAY (its first axis), json:KEY (a number in it), or nothing
    count: Short = ""
    #: what the count is called, such as games; a rule with one must count more than zero
    unit: Short = ""
    #: nothing is missed when no file fits
    optional: bool = False
    #: a program that was stopped before its end may have left a part of it that is worth keeping
    partial: bool = False


class Restart(Struct, frozen=True, forbid_unknown_fields=True):
    """How a program that failed is started again on its node, before its failure is reported and the item moves.

    What would fail again at once, or was ended by others, is never started again: see `executors.restarts`.
    """

    #: starts after the first one, under one job
    attempts: Annotated[int, Meta(ge=0, le=20)] = 2
    #: classes of failures that may be over when it is tried again
    on: Annotated[tuple[Literal["infrastructure", "cuda", "user"], ...], Meta(max_length=3)] = (
        "infrastructure",
        "cuda",
    )
    #: the wait before the first restart; it doubles with each one up to the cap
    delay_ms: Annotated[int, Meta(ge=0, le=600_000)] = 10_000
    cap_ms: Annotated[int, Meta(ge=0, le=600_000)] = 120_000
    #: a wait is up to this much longer, in per cent
    jitter_percent: Annotated[int, Meta(ge=0, le=100)] = 25


ExitMeaning = Literal["verdict", "user", "infrastructure", "oom", "cuda", "preempted", "no_output"]


class Template(Struct, frozen=True, forbid_unknown_fields=True):
    """How a program is started for a work item, and how its end is read when it writes no result.json.

    `{name}` in argv, result and env is a parameter of the item, else the path of an input of that name, else one
    of job, work, config, board, players, fence, seed, gpus, job_dir, out, tree, home, tmp, checkpoint, python.
    `{inputs:PREFIX}` is a file that lists the paths of the inputs whose name starts with PREFIX, one a line.
    """

    argv: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=256)]
    env: Params = {}
    cwd: Text = ""
    #: values for parameters that an item does not name
    defaults: Params = {}
    #: a directory on the node of which each attempt gets a copy of its own, at {tree}
    tree: Text = ""
    #: HOME, TMPDIR and the XDG directories lie inside the attempt's folder
    private: bool = False
    #: kinds of outputs without which exit code 0 is still a failure
    require_outputs: tuple[Short, ...] = ()
    #: counts that must be above zero
    require_counts: tuple[Short, ...] = ()
    outputs: Annotated[tuple[OutputRule, ...], Meta(max_length=32)] = ()
    #: a pattern whose named groups in the newest line that fits are cumulative counts; NAME_total is its aim
    progress: Text = ""
    #: a pattern whose named groups in the last line that fits are counts (whole numbers) and metrics (others)
    summary: Text = ""
    #: a command that prints the result as one JSON object when the program has ended well
    result: Annotated[tuple[Text, ...], Meta(max_length=256)] = ()
    #: what exit codes other than 0 mean; `verdict` is an answer of "no" and not a crash
    exit_codes: Annotated[dict[int, ExitMeaning], Meta(max_length=64)] = {}
    #: a failure whose last lines fit this pattern is the machine's (it was busy), not the item's
    transient: Text = ""
    #: what an item that names no needs takes
    needs: Needs | None = None
    grace_ms: Natural = 0
    nice: Annotated[int, Meta(ge=0, le=19)] = 0
    #: None is no restart on the node: each failure is reported, and the cluster decides
    restart: Restart | None = None


class Host(Struct, frozen=True, forbid_unknown_fields=True):
    """A machine that has only an SSH server. It is a peer of the setting's name; its gateway's agent speaks for it."""

    #: the node that reaches it
    gateway: Id
    address: Annotated[str, Meta(min_length=1, max_length=256)]
    user: Annotated[str, Meta(min_length=1, max_length=64)]
    port: Annotated[int, Meta(ge=1, le=65_535)] = 22
    #: its public key, as in "ssh-ed25519 AAAA..."; empty: the gateway's known-hosts file has it
    host_key: Text = ""
    #: the private key's file on the gateway; empty is the gateway's own setting
    key_file: Short = ""
    #: CPU slots offered; None is one for each core that it has
    slots: Annotated[int, Meta(ge=0, le=1024)] | None = None
    #: beside `ssh`, which every such peer has
    labels: Annotated[tuple[Short, ...], Meta(max_length=31)] = ()
    #: its Python, 3.8 or newer
    python: Annotated[str, Meta(min_length=1, max_length=256)] = "python3"
    #: where jobs and inputs lie on it; a folder of this cluster is made there
    root: Annotated[str, Meta(min_length=1, max_length=256)] = "~/.ringrift"
    #: false: it says goodbye, its jobs are stopped with their grace
    enabled: bool = True


class Controller(Struct, frozen=True, forbid_unknown_fields=True):
    enabled: bool = True


GROUPS: dict[str, type[Struct]] = {
    "timing": Timing,
    "limits": Limits,
    "retention": Retention,
    "artifacts": Artifacts,
    "config": GameConfig,
    "template": Template,
    "host": Host,
    "controller": Controller,
}
#: groups that came after feature level 1, and their level
GROUP_LEVELS: dict[str, int] = {}
#: groups whose settings are named group/key
KEYED = frozenset({"config", "template", "host", "controller"})
MAX_KEY = 32
#: brackets within brackets in a value
MAX_DEPTH = 64
_BRACKETS = re.compile(r"[][{}]")


def decode(name: str, value: str, level: int = NEWEST) -> Struct:
    """Decode one setting's JSON text, of which a release of that feature level knows every word.

    Raises ValueError with a sentence that names the setting: the one that a release of that level has for it.
    """
    group, _, key = name.partition("/")
    groups = [known for known in GROUPS if GROUP_LEVELS.get(known, 1) <= level]
    if group not in groups or (group in KEYED) != bool(key):
        known = ", ".join(f"{g}/NAME" if g in KEYED else g for g in groups)
        raise ValueError(f"no setting is called {name!r}; settings are {known}")
    kind = GROUPS[group]
    if len(key) > MAX_KEY:
        raise ValueError(f"setting {name!r}: {key!r} is longer than {MAX_KEY} characters; items are named after it")
    # How deep a decoder can go depends on the stack it runs on, so the replicas would not all fail alike.
    if depth_of(value) > MAX_DEPTH:
        raise ValueError(f"setting {name}: it is nested more than {MAX_DEPTH} deep")
    try:
        if (older := as_of(kind, level)) is not kind:
            msgspec.json.decode(value, type=older)
        decoded = msgspec.json.decode(value, type=kind)
    except msgspec.MsgspecError as error:
        raise ValueError(f"setting {name}: {error}") from error
    problem = inconsistency(decoded)
    if problem:
        raise ValueError(f"setting {name}: {problem}")
    return decoded


def level_needed(name: str, value: Struct) -> int:
    """The feature level that a cluster must be at before it can be told a setting."""
    return max(GROUP_LEVELS.get(name.partition("/")[0], 1), level_of(value))


def canonical(name: str, value: str, level: int) -> str:
    """The text that the state keeps of a setting: what was given and no more, so that a release with another field
    keeps the same text. Raises ValueError like `decode`."""
    decode(name, value, level)
    return msgspec.json.encode(msgspec.json.decode(value), order="sorted").decode()


def depth_of(text: str) -> int:
    """How deep the brackets of a JSON text nest; those inside of its strings count too."""
    depth = deepest = 0
    for bracket in _BRACKETS.findall(text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def encode(value: Struct) -> str:
    """The JSON text of a setting: all its fields, but those that a release need not know to be told all of it."""
    return whole(seen_at(value, level_of(value)))


def whole(value: Struct) -> str:
    """The JSON text of a setting, every field in it."""
    # Exit codes are keys, and numbers as keys can be sorted only once they are text.
    return msgspec.json.encode(msgspec.to_builtins(value, str_keys=True), order="sorted").decode()


def inconsistency(value: Struct) -> str:
    """What is wrong between the fields of one setting, or an empty text."""
    if isinstance(value, Timing):
        if value.suspect_after_ms < 2 * value.heartbeat_ms:
            return "suspect_after_ms must be at least two heartbeats"
        if value.dead_after_ms <= value.suspect_after_ms:
            return "dead_after_ms must be longer than suspect_after_ms"
        shortest = min(*value.lease_ms.values(), value.lease("default"))
        if shortest < 3 * value.heartbeat_ms:
            return "a lease must be at least three heartbeats"
        if shortest <= value.grace_ms + 5_000:
            return "a lease must be longer than grace_ms and 5 s, or a job could not be stopped in time"
    if isinstance(value, Gate) and value.cap_games < value.floor_games:
        return "cap_games must not be below floor_games"
    if isinstance(value, GameConfig):
        if 0 < value.selfplay.ahead_games < value.training.games_between:
            return "selfplay.ahead_games must not be below training.games_between, or no training would ever begin"
        return inconsistency(value.gate)
    if isinstance(value, Template) and value.restart is not None:
        return inconsistency(value.restart)
    if isinstance(value, Restart):
        if value.cap_ms < value.delay_ms:
            return f"its restart's cap_ms {value.cap_ms} is below its delay_ms {value.delay_ms}; a wait only grows"
        if not value.on:
            return "its restart's on is empty, so nothing would be started again; name a class, or leave restart out"
    return ""
