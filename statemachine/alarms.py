"""What should worry an operator: kinds of work that wait while nothing of them runs, configs that never have their
turn, items that failed for good, champions that are lost, and stages of the loop without a template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from msgspec import Struct

from statemachine import queries
from statemachine.eligibility import item_obstacle
from statemachine.queries import ASKED, Reason, explain
from statemachine.rows import ModelStatus, Work, WorkStatus
from statemachine.state import State

#: kinds that are explained; the others are named
EXPLAINED = 3
#: a config waits for so many times `timing.alarm_after_ms` while others have their turn before that is an alarm
STARVED = 10
#: pending items of a type and config that are looked at for one that could run
LOOKED = 16


class Alarm(Struct, frozen=True):
    """`kind` is `stalled` or `starved` (with the type of work), `dead_letters`, `unserved_champion`, `no_template`."""

    kind: str
    work_type: str
    #: items that wait, or that failed; champions; stages
    count: int
    #: how long the one that has waited longest could have run
    waited_ms: int
    sentence: str
    #: why it does not run, most frequent first
    reasons: tuple[Reason, ...] = ()


def alarms(state: State) -> tuple[Alarm, ...]:
    """O(types and configs), with a bounded number of questions to peers."""
    found = [] if state.cluster.paused else [*_stalled(state), *_starved(state)]
    failed = state.index.work_by_status[WorkStatus.FAILED]
    if failed:
        text = f"{failed} items failed for good; `ringrift-node work list --status failed` says why"
        found.append(Alarm("dead_letters", "", failed, 0, text))
    unserved = [(config, digest) for config, digest in state.index.champions.items() if queries.unserved(state, digest)]
    if unserved:
        found.append(_missed(state, *min(unserved), len(unserved)))
    untold = list(_untold(state))
    if untold:
        config, template = untold[0]
        text = (
            f"{len(untold)} stages of configs have no template, first {config}: no setting template/{template} exists, "
            f"so none of that work is made; add it with `ringrift-node settings set template/{template} VALUE`"
        )
        found.append(Alarm("no_template", "", len(untold), 0, text))
    return tuple(found)


def _untold(state: State) -> Iterator[tuple[str, str]]:
    """(config, template) of stages that the policies could not make items of."""
    for key, config in state.configs().items():
        stages = [config.selfplay.stage, config.training.stage, config.gate.stage]
        if not queries.champion(state, key):
            stages.insert(0, config.initial)
        for stage in stages if config.enabled else ():
            if state.template(stage.template) is None:
                yield key, stage.template


def _missed(state: State, config: str, digest: str, count: int) -> Alarm:
    """Champions whose file nobody can deliver: their selfplay and gauntlets stand still."""
    holders = state.artifacts[digest].holders
    where = f"its holders ({', '.join(holders)}) are not there" if holders else "it has no holder"
    back = _way_back(state, config)
    former = (
        f"go back to the last champion that can be had: ringrift-node models rollback {config} {back} --reason lost"
    )
    text = (
        f"{count} champions are files that no live node can deliver, first {digest[:12]} of {config}: {where}; bring "
        f"one back, or {former if back else 'promote another model: no former champion can be had either'}"
    )
    return Alarm("unserved_champion", "", count, 0, text)


def _way_back(state: State, config: str) -> str:
    """The former champion of a config that was promoted last of those that can be had, or an empty text."""
    rows = [state.models[digest] for _, digest in state.index.models[config]]
    former = [row for row in rows if row.status is ModelStatus.FORMER and row.digest in state.artifacts]
    had = [row for row in former if not queries.unserved(state, row.digest)]
    return max(had, key=lambda row: (row.promoted_at_ms, row.seq)).digest if had else ""


def _stalled(state: State) -> list[Alarm]:
    """Types of which nothing runs although something could have for minutes, the longest wait first."""
    live = state.index.live_by_type()
    counts: Counter[str] = Counter()
    longest: dict[str, Work] = {}
    for work_type, _, group in state.index.groups():
        row = None if live.get(work_type) else _could_run(state, group.queue)
        if row is None:
            continue
        counts[work_type] += group.counts[WorkStatus.PENDING]
        known = longest.setdefault(work_type, row)
        if row.ready_at_ms < known.ready_at_ms:
            longest[work_type] = row
    late = sorted((row for row in longest.values() if _late(state, row)), key=lambda row: (row.ready_at_ms, row.seq))
    return [_told(state, row, counts[row.spec.work_type], explained=n < EXPLAINED) for n, row in enumerate(late)]


def _starved(state: State) -> Iterator[Alarm]:
    """Configs of whose work of a type nothing runs for much longer, while other work of that type does."""
    live = state.index.live_by_type()
    groups = [group for kind, _, group in state.index.groups() if live.get(kind) and not group.live]
    rows = [row for group in groups if (row := _could_run(state, group.queue)) is not None]
    late = [row for row in rows if state.now_ms - row.ready_at_ms >= STARVED * state.timing.alarm_after_ms]
    if late:
        row = min(late, key=lambda row: (row.ready_at_ms, row.seq))
        spec, waited_ms = row.spec, state.now_ms - row.ready_at_ms
        text = (
            f"{len(late)} configs wait with work of which nothing runs while other configs have their turn, first "
            f"{spec.work_type} of {spec.config or 'no config'} for {waited_ms // 60_000} min"
        )
        said = explain(state, row, ASKED)
        sentence = f"{text}; {row.work}: {said.sentence}"
        yield Alarm("starved", spec.work_type, len(late), waited_ms, sentence, said.reasons)


def _could_run(state: State, queue: Iterable[tuple[int, int, str]]) -> Work | None:
    """The best item of a class that waits for no other one; the first one may, for ever, and must not hide the rest."""
    for _, _, name in islice(queue, LOOKED):
        row = state.work[name]
        if item_obstacle(row, state.now_ms, state.work.get, state.index.live) is None:
            return row
    return None


def _late(state: State, row: Work) -> bool:
    return state.now_ms - row.ready_at_ms >= state.timing.alarm_after_ms


def _told(state: State, row: Work, count: int, *, explained: bool) -> Alarm:
    work_type, waited_ms = row.spec.work_type, state.now_ms - row.ready_at_ms
    text = f"{count} {work_type} items wait and none runs, the first for {waited_ms // 60_000} min"
    if not explained:
        return Alarm("stalled", work_type, count, waited_ms, text)
    said = explain(state, row, ASKED)
    return Alarm("stalled", work_type, count, waited_ms, f"{text}; {row.work}: {said.sentence}", said.reasons)
