"""Tournaments on hosts without an agent: each pair of participants is ordinary work, pinned to such hosts.

A run is its items and nothing else. They are named after the run id, so asking for the same run again adds nothing, and
what a run has come to is read from them: states and reasons from the items, results from what their attempts counted.
A host that fails one has it tried again on another of the run's hosts.
"""

from __future__ import annotations

from itertools import combinations
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from ringrift_cluster.api.endpoint import Call, Routes
from ringrift_cluster.api.items import Scalar, text
from ringrift_cluster.api.problems import Problem, of_rejection
from ringrift_cluster.api.ssh_results import ItemState, Pair, SshTournament, Standing, items_of, tournament, work_id
from ringrift_cluster.api.views import View, look
from ringrift_cluster.api.writes import propose, sealed
from ringrift_cluster.replica import Consistency
from statemachine.commands import AddWork, CancelWork, Command, Signed
from statemachine.errors import Code, Rejected
from statemachine.rows import LIVE_WORK, OPEN_WORK, SSH
from statemachine.state import State
from statemachine.values import Id, Needs, Part, Priority, Scope, Short

route = Routes("tournaments on hosts", "Tournaments whose games are played on hosts that have only an SSH server.")

WORK_TYPE = "tournament"
#: participants of one run: beyond it their pairs could not be items of one run anyway
MAX_NAMES = 256
RunId = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@+-]*$(?!\n)")]


class SshTournamentRun(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who plays, where, how much. Every further parameter of the template's command goes into `params`."""

    run_id: RunId
    board: Part
    num_players: Annotated[int, Meta(ge=2, le=8)] = 2
    #: as a list, or as a text such as "D1-D6" or "D1,D3,random"
    tiers: str | tuple[Part, ...] = ()
    #: another name for `tiers`
    participants: str | tuple[Part, ...] = ()
    #: names of settings host/NAME; left out: all hosts
    hosts: tuple[Id, ...] = ()
    games_per_matchup: Annotated[int, Meta(ge=1, le=10**6)] = 50
    #: games of one item; 0: all of a pair in one
    games_per_shard: Annotated[int, Meta(ge=0, le=10**6)] = 0
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 1
    think_time_scale: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    max_moves: Annotated[int, Meta(ge=1, le=10**6)] = 10_000
    wilson_confidence: Annotated[float, Meta(gt=0, lt=1)] = 0.95
    nn_model_id: Short = ""
    job_timeout_sec: Annotated[float, Meta(gt=0, le=10**6)] = 21_600.0
    #: tries after the first one
    retries: Annotated[int, Meta(ge=0, le=99)] = 3
    #: how a pair is played on a host
    template: Id = WORK_TYPE
    params: dict[Short, Scalar] = {}
    #: left out: what the template says, or one CPU slot
    needs: Needs | None = None
    priority: Priority = 50
    #: say what would be added, and add nothing
    dry_run: bool = False


class Shard(Struct, frozen=True, omit_defaults=True):
    """One item: some games of one pair."""

    work_id: str
    a: str
    b: str
    games: int
    #: it was there already
    repeat: bool = False


class SshTournamentStarted(Struct, frozen=True):
    run_id: str
    status: str
    hosts: list[str]
    matchups: int
    items: list[Shard]
    index: int


def tiers_of(body: SshTournamentRun) -> list[str]:
    """The participants by name. Raises Problem."""
    if body.tiers and body.participants:
        raise Problem(Code.INVALID, "tiers and participants are two names for one thing; give one of them")
    said = body.tiers or body.participants
    names: list[str] = []
    for name in said.split(",", MAX_NAMES) if isinstance(said, str) else said:
        first, dash, last = name.strip().partition("-")
        number, end = first[1:], last[1:]
        if dash and first[:1] == last[:1] == "D" and number.isdecimal() and end.isdecimal() and len(end) < 4:
            names += [f"D{tier}" for tier in range(int(number), int(end) + 1)]
        else:
            names.append(name.strip())
        if len(names) > MAX_NAMES:
            raise Problem(Code.INVALID, f"a tournament takes at most {MAX_NAMES} participants")
    bad = [name for name in names if not 0 < len(name) <= 32]
    if bad or len(set(names)) < len(names) or len(names) < 2:
        raise Problem(Code.INVALID, f"a tournament takes two or more different participants, not {', '.join(names)!r}")
    return names


def to_commands(body: SshTournamentRun, names: list[str], needs: Needs, at_ms: int, most: int) -> list[AddWork]:
    """The items of a run: the same for the same body. `needs` is what one takes. Raises Problem."""
    each = body.games_per_shard or body.games_per_matchup
    shards = len(names) * (len(names) - 1) // 2 * -(-body.games_per_matchup // each)
    if shards > most:
        raise Problem(Code.INVALID, f"{len(names)} participants make {shards} items, {most} are taken in one run")
    pairs = combinations(names, 2)
    games = [min(each, body.games_per_matchup - played) for played in range(0, body.games_per_matchup, each)]
    labels = needs.labels if SSH in needs.labels else (SSH, *needs.labels)
    common = {
        "run_id": body.run_id,
        "shards": str(shards),
        "board": body.board,
        "players": str(body.num_players),
        "think_time_scale": text(body.think_time_scale),
        "max_moves": str(body.max_moves),
        "wilson_confidence": text(body.wilson_confidence),
        "nn_model_id": body.nn_model_id,
        **{name: text(value) for name, value in body.params.items()},
    }
    made = []
    for number, ((a, b), count) in enumerate((pair, count) for pair in pairs for count in games):
        pair = {"participant_a": a, "participant_b": b, "games": str(count), "seed": str(body.seed + number)}
        made.append(
            AddWork(
                work=work_id(body.run_id, number),
                work_type=WORK_TYPE,
                config=f"{body.board}_{body.num_players}p",
                priority=body.priority,
                template=body.template,
                params=common | pair,
                needs=replace(needs, labels=labels, peers=body.hosts),
                max_attempts=body.retries + 1,
                timeout_ms=round(body.job_timeout_sec * 1000),
                at_ms=at_ms,
            )
        )
    return made


def plan(
    state: State, body: SshTournamentRun, names: list[str], at_ms: int, most: int
) -> tuple[list[str], list[AddWork]]:
    """The hosts of a run and its items, when all is there that it takes. Raises Problem."""
    known = [name for name, setting in state.hosts().items() if setting.enabled]
    missing = [name for name in body.hosts if name not in known]
    if missing or not known:
        if not known:
            raise Problem(Code.NOT_FOUND, "there is no host to play on yet; describe one in a setting host/NAME")
        raise Problem(Code.NOT_FOUND, f"no host is called {', '.join(missing)}; hosts are {', '.join(known)}")
    template = state.template(body.template)
    if template is None:
        raise Problem(Code.NOT_FOUND, f"no setting template/{body.template} exists; add it, or name another template")
    commands = to_commands(body, names, body.needs or template.needs or Needs(), at_ms, most)
    old = state.work.get(commands[0].work)
    if old is not None and replace(old.spec, at_ms=0) != replace(commands[0], at_ms=0):
        raise Problem(Code.CONFLICT, f"the run {body.run_id!r} exists with other content; choose another run_id")
    return list(body.hosts) or known, commands


@route(
    "POST",
    "/ssh_tournament/run",
    "Play a tournament on hosts",
    scope=Scope.SUBMIT,
    example=SshTournamentRun(run_id="tiers-7", board="square8", tiers="D1-D3", games_per_matchup=20),
    answer=SshTournamentStarted(
        "tiers-7", "started", ["cpu-1", "cpu-2"], 3, [Shard("ssh-tournament/tiers-7/0", "D1", "D2", 20)], 1204
    ),
    errors=(Code.NOT_FOUND, Code.CONFLICT, Code.INVALID, Code.LIMIT),
)
async def run(call: Call, body: SshTournamentRun) -> SshTournamentStarted:
    """Every pair of participants plays `games_per_matchup` games, as one item or as several.

    The same run again adds nothing and is answered alike; another one under its id is refused. An item that fails
    is tried again `retries` times, on another host first. `dry_run` shows the items.
    """
    services = call.services
    at_ms, most = services.wall_ms(), services.limits.items
    # Whatever a body may hold is gone through here and not on the thread of consensus, where the plan is made.
    participants = tiers_of(body)
    hosts, commands = await look(call, lambda state: plan(state, body, participants, at_ms, most))
    repeats: list[bool] = [False] * len(commands)
    if not body.dry_run:
        results = await propose(call, [sealed(call, command) for command in commands])
        for result in results:
            if isinstance(result, Rejected):
                raise of_rejection(result)
        repeats = [bool(result.value.get("repeat")) for result in results if not isinstance(result, Rejected)]
    shards = [
        Shard(c.work, c.params["participant_a"], c.params["participant_b"], int(c.params["games"]), repeat)
        for c, repeat in zip(commands, repeats, strict=True)
    ]
    status = "planned" if body.dry_run else "repeated" if all(repeats) else "started"
    pairs = len({(shard.a, shard.b) for shard in shards})
    return SshTournamentStarted(body.run_id, status, hosts, pairs, shards, call.index or 0)


# --- what it has come to ---------------------------------------------------------------------------


class SshTournamentQuery(View, frozen=True, kw_only=True):
    run_id: Annotated[str, Meta(min_length=1, max_length=64, description="The run.")]


@route(
    "GET",
    "/ssh_tournament/status",
    "What a tournament on hosts has come to",
    scope=Scope.READ,
    answer=SshTournament(
        run_id="tiers-7",
        status="running",
        items_done=1,
        items_total=3,
        by_status={"completed": 1, "pending": 1, "running": 1},
        games_done=20,
        games_total=60,
        items=[ItemState("ssh-tournament/tiers-7/0", "D1", "D2", 20, "completed", 1, "cpu-1")],
        pairs=[Pair("D1", "D2", 20, 3, 2, 15)],
        standings=[Standing("D2", 20, 15, 2, 3, 16.0), Standing("D1", 20, 3, 2, 15, 4.0)],
    ),
    errors=(Code.INVALID, Code.NOT_FOUND),
)
async def status(call: Call, query: SshTournamentQuery) -> SshTournament:
    """Computed from the items; each game counts once, however often its item was tried."""
    return await look(call, lambda state: tournament(state, query.run_id), query)


# --- its end ---------------------------------------------------------------------------------------


class SshTournamentCancel(Struct, frozen=True, forbid_unknown_fields=True):
    run_id: RunId
    reason: Short = ""


class SshTournamentCancelled(Struct, frozen=True):
    """`status` is the run's; `cancelled` items were ended by this call, `stopping` of them were on a host."""

    run_id: str
    status: str
    cancelled: int
    stopping: int
    index: int


@route(
    "POST",
    "/ssh_tournament/cancel",
    "End a tournament on hosts",
    scope=Scope.SUBMIT,
    example=SshTournamentCancel("tiers-7", "the wrong model"),
    answer=SshTournamentCancelled("tiers-7", "cancelled", 2, 1, 1204),
    errors=(Code.NOT_FOUND, Code.INVALID),
)
async def cancel(call: Call, body: SshTournamentCancel) -> SshTournamentCancelled:
    """Items that wait are cancelled and what runs is told to stop; games of completed items stay counted.

    Again, or on a run that is over, it changes nothing. With a token each item leaves an event with its name. An item
    that `POST /ssh_tournament/run` adds at the same time may be missed: the status is running then, so cancel again.
    """
    # Another node may have added the run a moment ago.
    rows, _ = await look(call, lambda state: items_of(state, body.run_id), View(consistency=Consistency.LINEARIZABLE))
    ends = [row for row in rows if row.status in OPEN_WORK]
    reason, by = body.reason or f"the tournament {body.run_id} was cancelled", call.caller.name
    commands = [CancelWork(row.work, reason) for row in ends]
    named: list[Command] = [Signed(by, command) for command in commands] if by else [*commands]
    results = await propose(call, [sealed(call, command) for command in named])
    # One that is refused has completed meanwhile, and counts.
    ended = [row for row, result in zip(ends, results, strict=True) if not isinstance(result, Rejected)]
    stopping = sum(row.status in LIVE_WORK for row in ended)
    index = call.index or 0
    now = await look(call, lambda state: tournament(state, body.run_id).status)
    return SshTournamentCancelled(body.run_id, now, len(ended), stopping, index)
