"""Gauntlets, promotion and ratings: test each candidate against its champion until the numbers decide.

The test is sequential (SPRT on groups) with a floor and a cap of games. Evaluations that fail are no games, so they can
neither pass nor reject anybody; when too many fail the gauntlet is abandoned, which is no promotion.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from ringrift_cluster.controllers.items import STRANDED, given_up, item, next_try, seed_of, stranded
from statemachine import queries, sprt
from statemachine.commands import CancelWork, Command, ConcludeGauntlet, PromoteModel, StartGauntlet
from statemachine.matches import model_of
from statemachine.rows import Gauntlet, GauntletStatus, Work, WorkStatus
from statemachine.settings import GameConfig
from statemachine.state import State
from statemachine.values import Evidence, Input

#: evaluation items of one gauntlet in the queue or running at a time
IN_FLIGHT = 2
#: evaluation items of one gauntlet that may become dead letters before it is abandoned
MAX_DEAD = 3


def judge(state: State) -> list[Command]:
    """Open gauntlets, feed them with evaluations, conclude them, promote."""
    if state.cluster.paused:
        return []
    running = {g.spec.config: g for g in state.gauntlets.values() if g.status is GauntletStatus.RUNNING}
    commands: list[Command] = []
    for key, config in state.configs().items():
        gauntlet = running.get(key)
        if gauntlet is not None:
            commands += _proceed(state, config, gauntlet)
        elif config.enabled:
            commands += _begin(state, key, config)
        for row in _waiting(state, key):
            test = state.gauntlets.get(row.spec.gauntlet)
            if test is not None and test.status is not GauntletStatus.RUNNING and _is_of(row, test):
                commands.append(CancelWork(work=row.work, reason=f"its test is over: {test.status}"))
    return commands


def _waiting(state: State, key: str) -> Iterator[Work]:
    """Evaluations of a config that wait for their turn."""
    group = state.index.group("evaluation", key)
    return (state.work[name] for _, _, name in group.queue) if group else iter(())


def _is_of(row: Work, test: Gauntlet) -> bool:
    """Whether an evaluation is one that was made here for the test, and not one that somebody added."""
    return row.work.startswith(f"{test.spec.gauntlet}-")


def participant(digest: str, config: GameConfig) -> str:
    """A model as it is rated: its weights and the harness that plays it."""
    return f"{digest}@{config.gate.harness}"


def _begin(state: State, key: str, config: GameConfig) -> list[Command]:
    waiting = queries.candidates(state, key)
    if not waiting:
        return []
    candidate = waiting[0]
    champion = queries.champion(state, key)
    if not champion:
        evidence = Evidence(kind="initial", note="the first model of its config")
        return [PromoteModel(config=key, model=candidate, previous="", evidence=evidence)]
    gate = config.gate
    generation = state.models[candidate].generation
    return [
        StartGauntlet(
            gauntlet=_free_name(state, f"gauntlet-{key}-g{generation}-{candidate[:8]}-{champion[:8]}"),
            config=key,
            candidate=candidate,
            opponent=participant(champion, config),
            elo0=gate.elo0,
            elo1=gate.elo1,
            alpha_milli=gate.alpha_milli,
            beta_milli=gate.beta_milli,
            floor_games=gate.floor_games,
            cap_games=gate.cap_games,
            baseline_games=0,
        )
    ]


def _free_name(state: State, stem: str) -> str:
    """A test that was superseded is begun anew under another name."""
    number = 0
    while f"{stem}-t{number}" in state.gauntlets:
        number += 1
    return f"{stem}-t{number}"


def _proceed(state: State, config: GameConfig, gauntlet: Gauntlet) -> list[Command]:
    spec = gauntlet.spec
    name = spec.gauntlet
    reading = sprt.read(gauntlet, config.players)
    champion = queries.champion(state, spec.config)
    against_champion = spec.opponent == participant(champion, config)
    if model_of(spec.opponent) and not against_champion:
        note = "the champion or its harness changed while the test ran"
        return [ConcludeGauntlet(gauntlet=name, verdict="superseded", evidence=Evidence(kind="gauntlet", note=note))]
    if reading.verdict:
        evidence = reading.evidence(name)
        conclude = ConcludeGauntlet(gauntlet=name, verdict=reading.verdict, evidence=evidence)
        if reading.verdict != GauntletStatus.ACCEPTED or not against_champion:
            return [conclude]
        promote = PromoteModel(config=spec.config, model=spec.candidate, previous=champion, evidence=evidence)
        return [conclude, promote]
    return _evaluate(state, config, gauntlet)


def _evaluate(state: State, config: GameConfig, gauntlet: Gauntlet) -> list[Command]:
    spec = gauntlet.spec
    if given_up(state, spec.candidate):
        note = "nobody can deliver its candidate any more"
        return [
            ConcludeGauntlet(gauntlet=spec.gauntlet, verdict="abandoned", evidence=Evidence(kind="gauntlet", note=note))
        ]
    number = 0
    dead = 0
    while (row := state.work.get(f"{spec.gauntlet}-{number}")) is not None:
        number += 1
        dead += row.status in (WorkStatus.FAILED, WorkStatus.CANCELLED)
    if dead > MAX_DEAD:
        note = f"{dead} of its evaluations failed; look at work {spec.gauntlet}-*"
        return [
            ConcludeGauntlet(gauntlet=spec.gauntlet, verdict="abandoned", evidence=Evidence(kind="gauntlet", note=note))
        ]
    in_flight = state.index.gauntlet_work.get(spec.gauntlet, 0)
    return [
        item(
            f"{spec.gauntlet}-{number + k}",
            "evaluation",
            spec.config,
            config.gate.stage,
            params={
                # A name comes again when the row of its first item is forgotten; the same games must not.
                "seed": seed_of(f"{spec.gauntlet}-{state.cluster.seq + k}"),
                "groups": str(config.gate.groups_per_job),
                "participant_a": participant(spec.candidate, config),
                "participant_b": spec.opponent,
                **({} if model_of(spec.opponent) else {"b": spec.opponent}),
            },
            inputs=_players(spec.candidate, model_of(spec.opponent)),
            gauntlet=spec.gauntlet,
        )
        for k in range(max(IN_FLIGHT - in_flight, 0))
    ]


def _players(a: str, b: str) -> tuple[Input, ...]:
    """The model files of a game; a baseline has none."""
    players = (Input(name="a", digest=a),)
    return (*players, Input(name="b", digest=b)) if b else players


def rate(state: State) -> list[Command]:
    """Let every champion play the baselines until its rating has the games the gate asks for."""
    if state.cluster.paused:
        return []
    commands: list[Command] = []
    for key, config in state.configs().items():
        champion = queries.champion(state, key)
        if not config.enabled or not champion:
            continue
        ours = (row for row in _waiting(state, key) if row.work.startswith(f"rating-{key}-"))
        commands += [CancelWork(work=row.work, reason=STRANDED) for row in ours if stranded(state, row)]
        if given_up(state, champion):
            continue
        us = participant(champion, config)
        for baseline in config.gate.baselines:
            a, b = sorted((us, baseline))
            standing = state.standings.get(f"{key} {a} {b}")
            games = sum(t.games for t in standing.tally) if standing else 0
            name = next_try(state, f"rating-{key}-{champion[:12]}-{baseline}-{games}")
            if games >= config.gate.baseline_games or name is None:
                continue
            group = 2 if config.players == 2 else 2 * config.players
            groups = -(-(config.gate.baseline_games - games) // group)
            # Ratings are for people: they wait their turn among the selfplay, and hold up no verdict.
            stage = replace(config.gate.stage, priority=config.selfplay.stage.priority)
            commands.append(
                item(
                    name,
                    "evaluation",
                    key,
                    stage,
                    params={
                        "groups": str(min(groups, 4 * config.gate.groups_per_job)),
                        "b": baseline,
                        "participant_a": us,
                        "participant_b": baseline,
                    },
                    inputs=_players(champion, ""),
                )
            )
    return commands
