"""What must hold in every state of the law, told without its own counters and helpers."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from statemachine import deadlines
from statemachine.indexes import Indexes
from statemachine.ordered import Ordered
from statemachine.rows import (
    JOB_TRANSITIONS,
    LIVE_JOB,
    OPEN_WORK,
    WORK_TRANSITIONS,
    Actual,
    GauntletStatus,
    Job,
    Match,
    ModelStatus,
    Row,
    Work,
    WorkStatus,
)
from statemachine.state import State
from statemachine.values import MatchResult, Tally


def check_step(old: Row | None, new: Row | None) -> None:
    """One written row: only moves that the tables allow, and what is final stays."""
    if isinstance(old, Work) and isinstance(new, Work):
        assert old.status is new.status or (old.status, new.status) in WORK_TRANSITIONS
        assert old.status is not WorkStatus.COMPLETED, "a completed item was written again"
        assert (old.spec, old.seq) == (new.spec, new.seq)
        assert new.grants >= old.grants
    if isinstance(old, Job) and isinstance(new, Job):
        assert old.actual is new.actual or (old.actual, new.actual) in JOB_TRANSITIONS
        assert old.actual in LIVE_JOB, "a job that is over was written again"
        assert (old.fence, old.peer, old.work) == (new.fence, new.peer, new.work)
        if new.actual in LIVE_JOB:
            assert all(new.counts[k] >= v for k, v in old.counts.items()), "progress went backwards"
    if isinstance(old, Match) and isinstance(new, Match):
        assert (old.result, old.config, old.voided) == (new.result, new.config, "")


def check_rows(state: State) -> None:
    """One state: work and jobs tell one story, sums are sums, one champion a config."""
    _check_work_and_jobs(state)
    _check_checkpoints(state)
    _check_sums(state)
    _check_models(state)
    for table in deadlines.TABLES:
        _check_deadlines(state, table)


def _check_checkpoints(state: State) -> None:
    """A checkpoint's file is there for an item that may still need it, and stands among its job's outputs."""
    for row in state.artifacts.values():
        if row.kind == "checkpoint":
            job = state.jobs[row.job]
            assert state.work[job.work].status is not WorkStatus.COMPLETED
            assert row.digest in {output.digest for output in job.outputs}


def _check_work_and_jobs(state: State) -> None:
    live = Counter(job.work for job in state.jobs.values() if job.actual in LIVE_JOB)
    assert all(n == 1 for n in live.values()), "an item has two live jobs"
    fences = [job.fence for job in state.jobs.values()]
    assert len(set(fences)) == len(fences)
    assert max(fences, default=0) <= state.cluster.fence
    for job in state.jobs.values():
        assert job.work in state.work, "a job outlived its item"
        if job.actual in LIVE_JOB:
            assert state.work[job.work].job == job.job
    names: Counter[str] = Counter()
    for key, row in state.work.items():
        assert 0 <= row.attempts <= row.spec.max_attempts
        if row.status in OPEN_WORK and row.spec.unique:
            names[row.spec.unique] += 1
        job = state.jobs.get(row.job)
        if row.status is WorkStatus.PENDING:
            assert row.job == ""
        elif row.status is WorkStatus.CLAIMED:
            assert job is not None
            assert job.actual in (Actual.PENDING, Actual.STARTING)
        elif row.status is WorkStatus.RUNNING:
            assert job is not None
            assert job.actual is Actual.RUNNING
        elif row.status is WorkStatus.COMPLETED:
            assert job is not None
            assert job.actual in (Actual.SUCCEEDED, Actual.STOPPED)
        elif row.status in (WorkStatus.FAILED, WorkStatus.EXPIRED):
            assert key not in live
    assert all(n == 1 for n in names.values()), "two open items hold one unique name"


Sums = dict[tuple[int, int], tuple[int, int, int]]


def _add(sums: Sums, tally: tuple[Tally, ...], flip: bool) -> None:
    for t in tally:
        seats = (t.seats_b, t.seats_a) if flip else (t.seats_a, t.seats_b)
        w, v, d = sums.get(seats, (0, 0, 0))
        won, lost = (t.wins_b, t.wins_a) if flip else (t.wins_a, t.wins_b)
        sums[seats] = (w + won, v + lost, d + t.draws)


def _plain(tally: tuple[Tally, ...]) -> Sums:
    return {(t.seats_a, t.seats_b): (t.wins_a, t.wins_b, t.draws) for t in tally}


def _histogram(results: list[tuple[MatchResult, bool]]) -> list[int]:
    bins: Counter[int] = Counter()
    for result, flip in results:
        top = len(result.histogram) - 1
        for h, n in enumerate(result.histogram):
            bins[top - h if flip else h] += n
    return [bins[h] for h in range(max(bins, default=-1) + 1)]


def _check_sums(state: State) -> None:
    met: dict[tuple[str, str, str], list[tuple[MatchResult, bool]]] = defaultdict(list)
    tested: dict[str, list[tuple[MatchResult, bool]]] = defaultdict(list)
    for match in state.matches.values():
        if match.voided:
            continue
        result = match.result
        a, b = sorted((result.a, result.b))
        met[match.config, a, b].append((result, a != result.a))
        if match.gauntlet:
            spec = state.gauntlets[match.gauntlet].spec
            if spec.opponent in (result.a, result.b):
                tested[match.gauntlet].append((result, result.a == spec.opponent))
    assert {(s.config, s.a, s.b) for s in state.standings.values()} == set(met)
    for key, row in state.standings.items():
        assert key == f"{row.config} {row.a} {row.b}"
        results = met[row.config, row.a, row.b]
        sums: Sums = {}
        for result, flip in results:
            _add(sums, result.tally, flip)
        assert (_plain(row.tally), row.matches) == (sums, len(results))
        assert [*row.histogram, *[0] * 65][:65] == [*_histogram(results), *[0] * 65][:65]
    for name, gauntlet in state.gauntlets.items():
        if gauntlet.status is GauntletStatus.RUNNING:
            sums = {}
            for result, flip in tested[name]:
                _add(sums, result.tally, flip)
            assert _plain(gauntlet.tally) == sums


def _check_models(state: State) -> None:
    champions = Counter(m.config for m in state.models.values() if m.status is ModelStatus.CHAMPION)
    formers = {m.config for m in state.models.values() if m.status is ModelStatus.FORMER}
    assert all(n == 1 for n in champions.values()), "a config has two champions"
    assert formers <= set(champions), "a config lost its champion"


def _check_deadlines(state: State, table: str) -> None:
    queued = state.index.queued[table]
    for key, row in state.tables[table].items():
        effective = deadlines.effective_due(table, row, state.peers, state.timing, state.retention)
        assert not effective or 0 < queued.get(key, 0) <= effective, "a row would get its turn too late"
    heap = set(state.index.deadlines)
    assert all((due, table, key) in heap for key, due in queued.items()), "a row is in no queue"


def plain_indexes(index: Indexes) -> dict[str, Any]:
    """The derived structures as plain data, without the deadlines (heartbeats carry those on).

    What a holder has is counted without an order: whoever reads it sorts.
    """
    plain: dict[str, Any] = {"held": index.held}
    for name, value in vars(index).items():
        if name in ("deadlines", "queued", "keepers", "classes", "held"):
            continue
        if isinstance(value, set):
            plain[name] = sorted(value)
        else:
            plain[name] = {k: list(v) if isinstance(v, Ordered | dict) else v for k, v in value.items()}
    plain["classes"] = {(t, c): (g.counts, list(g.queue), g.live) for t, c, g in index.groups()}
    return plain


def rebuilt(state: State) -> State:
    """A state made of the same rows, settings first."""
    fresh = State()
    fresh.load({name: rows.values() for name, rows in state.tables.items()})
    return fresh


def check_indexes(state: State) -> None:
    """The kept indexes are the ones that the rows alone give, and count what a scan counts."""
    fresh = rebuilt(state)
    assert plain_indexes(state.index) == plain_indexes(fresh.index)
    index = state.index
    assert {s: n for s, n in index.work_by_status.items() if n} == Counter(w.status for w in state.work.values())
    assert {s: n for s, n in index.peers_by_status.items() if n} == Counter(p.status for p in state.peers.values())
    live = [j for j in state.jobs.values() if j.actual in LIVE_JOB]
    assert index.live_by_type() == Counter(j.work_type for j in live)
    assert index.live_total == len(live)
    assert Counter({(t, c): g.live for t, c, g in index.groups()}) == Counter((j.work_type, j.config) for j in live)
    open_work = [w for w in state.work.values() if w.status in OPEN_WORK]
    assert index.readers == Counter(i.digest for w in open_work for i in w.spec.inputs)
    assert index.gauntlet_work == Counter(w.spec.gauntlet for w in open_work if w.spec.gauntlet)
    assert index.tokens == {row.sha256: row for row in state.tokens.values()}
    pending = [w for w in open_work if w.status is WorkStatus.PENDING]
    assert sum(len(group.queue) for _, _, group in index.groups()) == len(pending)
    for work_type, config, group in index.groups():
        assert group.live or any(group.counts.values()), "a class of which nothing is open is kept"
        here = [w for w in pending if (w.spec.work_type, w.spec.config) == (work_type, config)]
        assert [name for _, _, name in group.queue] == [
            w.work for w in sorted(here, key=lambda w: (-w.spec.priority, w.seq))
        ]


def check_image(state: State) -> None:
    """The image has the rows of its tables in their order."""
    for name, rows in state.image.tables.items():
        assert list(rows.items()) == list(state.tables[name].items()), name
