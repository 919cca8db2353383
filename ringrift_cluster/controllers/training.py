"""Training readiness: when enough new games are counted, train on the window from the newest model."""

from __future__ import annotations

from ringrift_cluster.controllers.items import STRANDED, item, next_try, stranded
from statemachine import queries
from statemachine.commands import CancelWork, Command
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
        if not config.enabled or totals is None:
            continue
        waiting = state.work.get(state.index.unique.get(unique, ""))
        if waiting is not None:
            if waiting.work.startswith(f"training-{key}-") and stranded(state, waiting):
                commands.append(CancelWork(work=waiting.work, reason=STRANDED))
            continue
        rules = config.training
        if totals.games - totals.games_at_training < rules.games_between:
            continue
        if len(queries.candidates(state, key)) >= rules.max_candidates:
            continue
        # What nobody can deliver cannot be read: training goes on with the rest instead of waiting for ever.
        files = queries.window(state, key, rules.window_games, there=True)[-MAX_FILES:]
        # Continued from the newest model whatever its verdict was: a rejected candidate has learnt too.
        newest = queries.newest_model(state, key)
        # While there are models and none can be had, nothing is begun from nought.
        begins = bool(newest) or key not in state.index.models
        name = next_try(state, f"training-{key}-g{totals.generations + 1}")
        if not files or not begins or name is None:
            continue
        inputs = tuple(Input(name=f"games-{n:04d}.npz", digest=a.digest) for n, a in enumerate(files))
        if newest:
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
