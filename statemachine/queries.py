"""Pure questions to a state: what a node should run, why an item waits, what to show.

Each is short enough to run between two entries on the thread that applies them; the ones for a status page
read counters that are kept in step and never scan a table.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from heapq import merge
from itertools import islice
from typing import Any

import msgspec
from msgspec import Struct, UnsetType

from statemachine import checkpoints, deadlines
from statemachine.eligibility import input_obstacle, item_obstacle, peer_obstacle
from statemachine.rows import (
    LIVE_WORK,
    SSH,
    STORE,
    Artifact,
    Cluster,
    Event,
    Job,
    ModelStatus,
    Peer,
    PeerStatus,
    Totals,
    Work,
    WorkStatus,
)
from statemachine.settings import Template
from statemachine.state import State
from statemachine.values import Needs

THERE = frozenset((PeerStatus.ALIVE, PeerStatus.SUSPECT))


class ResolvedInput(Struct, frozen=True):
    """An input and the live peers that hold it, with the addresses they serve it at."""

    name: str
    digest: str
    size_bytes: int
    holders: tuple[tuple[str, str], ...]
    #: nodes that can get it from an object store, to be asked when no holder delivers it
    gates: tuple[tuple[str, str], ...] = ()


class Assignment(Struct, frozen=True):
    """A live job of a peer, with everything its executor needs to run it."""

    job: Job
    work: Work
    template: Template | None
    inputs: tuple[ResolvedInput, ...]
    lease_end_ms: int
    #: what an earlier attempt of the item has left to go on from
    checkpoint: ResolvedInput | None = None


def assignments(state: State, peer: str) -> list[Assignment]:
    """The live jobs of a peer's agent, oldest grant first, whether they should run or stop."""
    found = []
    for name in state.index.live_jobs_of(peer):
        job = state.jobs[name]
        if job.claim:
            continue
        work = state.work[job.work]
        template = state.template(work.spec.template)
        inputs = tuple(resolve(state, i.name, i.digest) for i in work.spec.inputs)
        saved = checkpoints.latest(state, work)
        kept = resolve(state, saved.path, saved.digest) if saved is not None else None
        found.append(Assignment(job, work, template, inputs, deadlines.lease_end_ms(job, state.peers), kept))
    return found


def resolve(state: State, name: str, digest: str) -> ResolvedInput:
    artifact = state.artifacts.get(digest)
    size = artifact.size_bytes if artifact else 0
    return ResolvedInput(name, digest, size, holders_of(state, artifact), gates_of(state, artifact))


def unserved(state: State, digest: str) -> bool:
    """Whether a file is known and nobody who is there can deliver it."""
    row = state.artifacts.get(digest)
    if row is None:
        return False
    there = any((peer := state.peers.get(h)) is not None and peer.status in THERE for h in row.holders)
    return not there and not gates_of(state, row)


def gates_of(state: State, artifact: Artifact | None) -> tuple[tuple[str, str], ...]:
    """(peer, address) of nodes that get a file from an object store for whoever asks them."""
    if artifact is None:
        return ()
    stores = [h for h in artifact.holders if h.startswith(STORE)]
    return tuple((p.peer, p.address) for store in stores for p in keepers_of(state, store) if p.address)


def keepers_of(state: State, store: str) -> list[Peer]:
    """The nodes that are there and have access to an object store: they carry its name as a label."""
    known = (state.peers[p] for p in sorted(state.index.gates.get(store, ())))
    return [p for p in known if p.status in THERE]


def holders_of(state: State, artifact: Artifact | None) -> tuple[tuple[str, str], ...]:
    """(peer, address) of holders, those alive first, those in doubt last; the dead are left out."""
    if artifact is None:
        return ()
    peers = [state.peers[p] for p in artifact.holders if p in state.peers]
    rank = {PeerStatus.ALIVE: 0, PeerStatus.SUSPECT: 1}
    known = [p for p in peers if p.status in rank and p.address]
    order = sorted(known, key=lambda p: (p.peer in artifact.doubted, rank[p.status], p.peer))
    return tuple((p.peer, p.address) for p in order)


class Reason(Struct, frozen=True):
    """A reason code, how many peers give it, and one of their sentences."""

    code: str
    count: int
    detail: str


class Why(Struct, frozen=True):
    """Why an item is where it is, in a sentence, with what each peer says when it waits."""

    status: str
    sentence: str
    reasons: tuple[Reason, ...] = ()


#: reasons in the sentence
SAID = 3
#: peers that a page asks why an item waits, spread over all of them
ASKED = 256


def why(state: State, work: str) -> Why | None:
    """Explain an item; None when it is not known."""
    row = state.work.get(work)
    if row is None:
        return None
    if row.status is WorkStatus.PENDING:
        return explain(state, row)
    if row.status in LIVE_WORK:
        job = state.jobs[row.job]
        sentence = f"{row.status} as job {job.job} on {job.peer}, which is {job.actual}"
        if job.desired == "stop":
            sentence += f" and has been told to stop: {job.reason}"
        if not isinstance(job.restarts, UnsetType):
            again = job.restarts
            sentence += (
                f"; its program failed there {again.count} times and was started again, the last time"
                f" ({again.error_class}): {again.error}"
            )
        return Why(row.status, sentence)
    return Why(row.status, row.reason or f"{row.status} at {row.finished_at_ms} ms of the cluster clock")


def explain(state: State, row: Work, most: int = 0) -> Why:
    """Why a pending item waits. With `most` so many peers at the most are asked, which bounds the time it takes."""
    cluster = state.cluster
    if cluster.paused:
        text = f"the cluster is paused: {cluster.pause_reason or 'by an operator'}"
        return Why(row.status, text, (Reason("paused", 1, text),))
    obstacle = item_obstacle(row, state.now_ms, state.work.get, state.index.live)
    if obstacle is not None:
        return Why(row.status, obstacle.detail, (Reason(obstacle.code, 1, obstacle.detail),))
    if not row.spec.template:
        text = "it has no template, so it waits for a worker that claims it"
        return Why(row.status, text, (Reason("unclaimed", 1, text),))
    obstacle = input_obstacle(row, partial(unserved, state))
    if obstacle is not None:
        return Why(row.status, obstacle.detail, (Reason(obstacle.code, 1, obstacle.detail),))
    if not state.controller("placement").enabled:
        text = "placement is switched off by the setting controller/placement"
        return Why(row.status, text, (Reason("placement_off", 1, text),))
    needs = state.needs_of(row.spec)
    counts: Counter[str] = Counter()
    example: dict[str, str] = {}
    fits = asked = 0
    for peer in islice(state.peers.values(), 0, None, _stride(len(state.peers), most)):
        asked += 1
        held = [state.jobs[j] for j in state.index.live_jobs_of(peer.peer)]
        found = peer_obstacle(peer, row.spec.work_type, needs, held, state.limits)
        if found is None:
            fits += 1
        else:
            counts[found.code] += 1
            example.setdefault(found.code, found.detail)
    reasons = tuple(Reason(code, n, example[code]) for code, n in counts.most_common())
    some = f" of {asked} that were asked" if asked < len(state.peers) else ""
    if fits:
        return Why(row.status, f"{fits} peers{some} can take it; it is next when its turn comes", reasons)
    if not reasons:
        text = "no peer has joined the cluster"
        return Why(row.status, text, (Reason("no_peers", 1, text),))
    absent = _absent_hosts(state, needs)
    told = "".join(f"; {reason.detail}" for reason in absent)
    # What most peers say is often what can never change; who could take it otherwise comes behind them.
    told += f"; most often ({reasons[0].count}): {reasons[0].detail}"
    told += "".join(f"; ({reason.count}): {reason.detail}" for reason in reasons[1:SAID])
    return Why(row.status, f"no peer{some} can take it now{told}", absent + reasons)


def _absent_hosts(state: State, needs: Needs) -> tuple[Reason, ...]:
    """Hosts without an agent that could take it had their gateway ever reached them; one reason, or none."""
    missed = [
        f"host {name} has never been reached by its gateway {setting.gateway}, whose log says why"
        for name, setting in state.hosts().items()
        if setting.enabled
        and name not in state.peers
        and (name in needs.peers or not needs.peers)
        and {SSH, *setting.labels}.issuperset(needs.labels)
        and (needs.peers or SSH in needs.labels)
    ]
    return (Reason("host_absent", len(missed), missed[0]),) if missed else ()


def _stride(count: int, most: int) -> int:
    """Every how manieth of `count` to take so that `most` are taken; 0 is all."""
    return -(-count // most) if most and count else 1


class Overview(Struct, frozen=True):
    """Counters for a status page; all of them are kept, none is computed by a scan."""

    cluster: Cluster
    peers_total: int
    peers_by_status: dict[str, int]
    work_by_status: dict[str, int]
    work_by_type: dict[str, dict[str, int]]
    live_jobs_by_type: dict[str, int]
    totals: dict[str, Totals]
    champions: dict[str, str]
    artifacts: int
    models: int
    matches: int


def overview(state: State) -> Overview:
    """O(types + configs)."""
    by_type: dict[str, dict[str, int]] = {}
    for work_type, _, group in state.index.groups():
        for status, count in group.counts.items():
            if count:
                counts = by_type.setdefault(work_type, {})
                counts[str(status)] = counts.get(str(status), 0) + count
    return Overview(
        cluster=state.cluster,
        peers_total=len(state.peers),
        peers_by_status={str(k): v for k, v in state.index.peers_by_status.items()},
        work_by_status={str(k): v for k, v in state.index.work_by_status.items()},
        work_by_type=by_type,
        live_jobs_by_type=state.index.live_by_type(),
        totals=dict(state.totals),
        champions=dict(state.index.champions),
        artifacts=len(state.artifacts),
        models=len(state.models),
        matches=len(state.matches),
    )


def pending(state: State, work_type: str = "", limit: int = 100) -> list[Work]:
    """Pending items, best first."""
    queues = [group.queue for kind, _, group in state.index.groups() if work_type in ("", kind)]
    return [state.work[name] for _, _, name in islice(merge(*queues), limit)]


def events_after(state: State, seq: int, limit: int = 1_000) -> list[Event]:
    """Events with a number above `seq`, oldest first."""
    last = state.cluster.event_seq
    first = max(seq + 1, last - len(state.events) + 1)
    found = (state.events.get(str(n)) for n in range(first, min(last, first + limit - 1) + 1))
    return [event for event in found if event is not None]


def window(state: State, config: str, games: int, *, there: bool = False) -> list[Artifact]:
    """The newest selfplay files of a config that together hold at least `games` games, oldest first.

    With `there` only those that somebody who is there can deliver.
    """
    chosen: list[Artifact] = []
    total = 0
    for _, digest in reversed(state.index.artifacts.get(("games", config), ())):
        if there and unserved(state, digest):
            continue
        artifact = state.artifacts[digest]
        chosen.append(artifact)
        total += artifact.counts.get("games", 0)
        if total >= games:
            break
    return chosen[::-1]


def champion(state: State, config: str) -> str:
    """Digest of the config's champion, or an empty text."""
    return state.index.champions.get(config, "")


def candidates(state: State, config: str) -> list[str]:
    """Digests of models that wait for their verdict, oldest first."""
    shelf = state.index.models.get(config)
    found = [digest for _, digest in shelf or ()]
    return [d for d in found if state.models[d].status is ModelStatus.CANDIDATE]


def newest_model(state: State, config: str) -> str:
    """Digest of the model that was trained last of those that can be had, whatever became of it, or an empty text."""
    known = (digest for _, digest in reversed(state.index.models.get(config, ())) if digest in state.artifacts)
    return next((digest for digest in known if not unserved(state, digest)), "")


def stalled(state: State) -> Why | None:
    """When items wait and nothing runs: the best pending item's own explanation, else None."""
    if state.index.live_total or not state.index.work_by_status[WorkStatus.PENDING]:
        return None
    return explain(state, pending(state, limit=1)[0], ASKED)


def dump(state: State, table: str = "") -> dict[str, Any]:
    """Rows as plain data, by table and key. Raises KeyError for a table that does not exist."""
    names = [table] if table else list(state.tables)
    return {name: {key: msgspec.to_builtins(row) for key, row in state.tables[name].items()} for name in names}
