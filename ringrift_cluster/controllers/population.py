"""Queue population: keep a stock of selfplay for every config, and make the first model of a new one."""

from __future__ import annotations

from ringrift_cluster.controllers.items import item, next_try
from statemachine import queries
from statemachine.commands import Command
from statemachine.rows import OPEN_WORK, WorkStatus
from statemachine.settings import GameConfig
from statemachine.state import State
from statemachine.values import Input


def populate(state: State) -> list[Command]:
    """Add what is missing from each config's stock, never more than its class may hold."""
    if state.cluster.paused:
        return []
    commands: list[Command] = []
    for key, config in state.configs().items():
        if not config.enabled:
            continue
        champion = queries.champion(state, key)
        if champion:
            commands += _selfplay(state, key, config, champion)
        elif not queries.newest_model(state, key):
            commands += _initial(state, key, config)
    return commands


def _initial(state: State, key: str, config: GameConfig) -> list[Command]:
    name = next_try(state, f"initial-{key}")
    return [item(name, "initial", key, config.initial, unique=f"initial/{key}")] if name else []


def _selfplay(state: State, key: str, config: GameConfig, champion: str) -> list[Command]:
    selfplay = config.selfplay
    stock = sum(state.index.open_items("selfplay", key, status) for status in OPEN_WORK)
    pending = state.index.open_items("selfplay", key, WorkStatus.PENDING)
    missing = selfplay.stock - stock
    if selfplay.ahead_games:
        totals = state.totals.get(key)
        unused = totals.games - totals.games_at_training if totals else 0
        room = selfplay.ahead_games - unused - stock * selfplay.games_per_job
        missing = min(missing, -(-room // selfplay.games_per_job))
    missing = min(missing, state.limits.pending_per_class - pending)
    return [
        item(
            # The sequence number grows with every item, so a name is never used twice.
            f"selfplay-{key}-{state.cluster.seq + k + 1}",
            "selfplay",
            key,
            selfplay.stage,
            params={"games": str(selfplay.games_per_job)},
            inputs=(Input(name="model", digest=champion),),
        )
        for k in range(max(missing, 0))
    ]
