"""Training readiness: when enough new games are counted, train on the window from the newest model."""

from __future__ import annotations

from ringrift_cluster.controllers.items import item, next_try
from statemachine import queries
from statemachine.commands import Command
from statemachine.state import State
from statemachine.values import Input

#: an item holds at most 1,024 inputs; the newest files are the ones that count
MAX_FILES = 1_000


def train(state: State) -> list[Command]:
    """One training a config at a time, only while its candidates are not waiting for a verdict."""
    if state.cluster.paused:
        return []
    commands: list[Command] = []
    for key, config in state.configs().items():
        totals = state.totals.get(key)
        unique = f"training/{key}"
        if not config.enabled or totals is None or unique in state.index.unique:
            continue
        rules = config.training
        if totals.games - totals.games_at_training < rules.games_between:
            continue
        if len(queries.candidates(state, key)) >= rules.max_candidates:
            continue
        # Continued from the newest model whatever its verdict was: a rejected candidate has learnt too.
        newest = queries.newest_model(state, key)
        # What no live peer holds cannot be read: training goes on with the rest instead of waiting for ever.
        window = queries.window(state, key, rules.window_games)
        files = [a for a in window if queries.holders_of(state, a)][-MAX_FILES:]
        name = next_try(state, f"training-{key}-g{totals.generations + 1}")
        if not files or name is None:
            continue
        inputs = tuple(Input(name=f"games-{n:04d}.npz", digest=a.digest) for n, a in enumerate(files))
        if newest and queries.holders_of(state, state.artifacts.get(newest)):
            inputs = (*inputs, Input(name="init", digest=newest))
        commands.append(
            item(
                name,
                "training",
                key,
                rules.stage,
                params={"games_seen": str(totals.games)},
                inputs=inputs,
                unique=unique,
            )
        )
    return commands
