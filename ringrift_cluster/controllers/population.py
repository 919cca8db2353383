"""Queue population: keep a stock of selfplay for every config, and make the first model of a new one."""

from __future__ import annotations

from ringrift_cluster.controllers.items import item, next_try
from statemachine import queries
from statemachine.commands import CancelWork, Command
from statemachine.rows import OPEN_WORK, Work, WorkStatus
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
        elif not queries.candidates(state, key):
            commands += _initial(state, key, config)
    return commands


def _initial(state: State, key: str, config: GameConfig) -> list[Command]:
    name = next_try(state, f"initial-{key}")
    return [item(name, "initial", key, config.initial, unique=f"initial/{key}")] if name else []


def _selfplay(state: State, key: str, config: GameConfig, champion: str) -> list[Command]:
    selfplay = config.selfplay
    lost = _lost(state, key, champion)
    stock = sum(state.index.open_items("selfplay", key, status) for status in OPEN_WORK) - len(lost)
    pending = state.index.open_items("selfplay", key, WorkStatus.PENDING) - len(lost)
    missing = selfplay.stock - stock
    if selfplay.ahead_games:
        totals = state.totals.get(key)
        unused = totals.games - totals.games_at_training if totals else 0
        if not queries.window(state, key, 1, there=True):
            # No training can use games that are all lost, and it would never be their turn.
            unused = 0
        room = selfplay.ahead_games - unused - stock * selfplay.games_per_job
        missing = min(missing, -(-room // selfplay.games_per_job))
    missing = min(missing, state.limits.pending_per_class - pending)
    reason = f"nobody can deliver its model, and {champion[:12]} is the champion now"
    cancelled: list[Command] = [CancelWork(work=name, reason=reason) for name in lost]
    return cancelled + [
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


def _lost(state: State, key: str, champion: str) -> list[str]:
    """The policy's own items that wait with the model of a former champion which nobody can deliver.

    A lost champion is what one rolls back from: its items would be the stock for ever, and no others made.
    """
    group = state.index.group("selfplay", key)
    rows = [state.work[name] for _, _, name in group.queue if name.startswith(f"selfplay-{key}-")] if group else []

    def lost(row: Work) -> bool:
        return any(i.digest != champion and queries.unserved(state, i.digest) for i in row.spec.inputs)

    return [row.work for row in rows if lost(row)]
