"""Queue population: keep a stock of selfplay for every config, and make the first model of a new one."""

from __future__ import annotations

from ringrift_cluster.controllers.items import item, next_try, seed_of
from statemachine import queries
from statemachine.commands import CancelWork, Command
from statemachine.rows import LIVE_WORK, Work, WorkStatus
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
    if name is None:
        return []
    # The weights of one that was rejected stay rejected, whatever became of the item that made them.
    params = {"seed": seed_of(f"{name}-{len(state.index.models.get(key, ()))}")}
    return [item(name, "initial", key, config.initial, params=params, unique=f"initial/{key}")]


def _selfplay(state: State, key: str, config: GameConfig, champion: str) -> list[Command]:
    selfplay = config.selfplay
    waiting = _waiting(state, key)
    lost = [row.work for row in waiting if _is_lost(state, row, champion)]
    pending = state.index.open_items("selfplay", key, WorkStatus.PENDING) - len(lost)
    # What others have added may wait for ever; what of theirs runs counts.
    stock = len(waiting) - len(lost) + sum(state.index.open_items("selfplay", key, status) for status in LIVE_WORK)
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


def _waiting(state: State, key: str) -> list[Work]:
    """The policy's own items that wait."""
    group = state.index.group("selfplay", key)
    names = (name for _, _, name in group.queue) if group else ()
    return [state.work[name] for name in names if name.startswith(f"selfplay-{key}-")]


def _is_lost(state: State, row: Work, champion: str) -> bool:
    """Whether an item waits with the model of a former champion that nobody can deliver.

    A lost champion is what one rolls back from: its items would be the stock for ever, and no others made.
    """
    return any(i.digest != champion and queries.unserved(state, i.digest) for i in row.spec.inputs)
