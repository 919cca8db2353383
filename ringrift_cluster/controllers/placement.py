"""Placement: bind pending items to peers, best item first, best peer for it.

Order of items: within a class (type and config) by priority and age; between classes by the priority of their heads,
raised by one for every minute of waiting (so no class starves), then the config that has had the smallest share of its
weight, then age. Order of peers: those that did not fail this item, hold its inputs, are the
strongest, have the most room, and failed least. The law checks every placement again when it is committed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from statemachine.commands import Command, PlaceWork
from statemachine.eligibility import free_gpus, item_obstacle, peer_obstacle
from statemachine.rows import Actual, Desired, Job, Peer, PeerStatus, Work
from statemachine.state import State
from statemachine.values import Needs

#: placements in one pass
MAX_PLACEMENTS = 64
#: pending items that a pass looks at, over all classes
MAX_LOOKED = 4_096
#: a minute of waiting is worth one point of priority, up to this
MAX_AGEING = 50

#: Relative selfplay power by GPU name; the first match wins, so longer names come first.
GPU_POWER: tuple[tuple[str, int], ...] = (
    ("GH200", 2000),
    ("H200", 2500),
    ("H100", 2000),
    ("A100", 624),
    ("5090", 419),
    ("L40", 362),
    ("4090", 330),
    ("5080", 300),
    ("A10", 250),
    ("4080", 242),
    ("5070", 200),
    ("4070", 184),
    ("3090", 142),
    ("V100", 125),
    ("4060", 120),
    ("3080", 119),
    ("3070", 81),
    ("3060", 51),
    ("M3", 30),
    ("M2", 25),
    ("M1", 20),
    ("MPS", 15),
)
UNKNOWN_GPU_POWER = 10


def gpu_power(name: str) -> int:
    """Relative power of a GPU by its driver's name for it."""
    upper = name.upper()
    return next((power for part, power in GPU_POWER if part in upper), UNKNOWN_GPU_POWER)


def place(state: State) -> list[Command]:
    """Placements that the rules allow now, counting those made earlier in the same pass.

    Runs on the thread that keeps the consensus, so its work is bounded whatever the queue holds: each class is looked
    at from its head, and needs that no peer can meet are asked about once.
    """
    if state.cluster.paused:
        return []
    peers = [p for p in state.peers.values() if p.status is PeerStatus.ALIVE and not p.draining]
    held = {p.peer: [state.jobs[j] for j in state.index.live_jobs_of(p.peer)] for p in peers}
    live = Counter({(kind, config): group.live for kind, config, group in state.index.groups()})

    def running(work_type: str, config: str) -> int:
        return live[work_type, config]

    unmet: set[Needs] = set()
    budget = iter(range(MAX_LOOKED))
    classes = [_runnable(state, group.queue, running, unmet, budget) for _, _, group in state.index.groups()]
    heads = {n: row for n, rows in enumerate(classes) if (row := next(rows, None)) is not None}
    commands: list[Command] = []
    while heads and len(commands) < MAX_PLACEMENTS:
        n, row = min(heads.items(), key=lambda head: _urgency(state, head[1], live))
        choice = None
        if item_obstacle(row, state.now_ms, state.work.get, running) is None:
            choice = _best_peer(state, row, peers, held)
            if choice is None:
                unmet.add(row.spec.needs)
        if choice is not None:
            commands.append(_bind(row, *choice, held, live))
        follower = next(classes[n], None)
        if follower is None:
            del heads[n]
        else:
            heads[n] = follower
    return commands


def _runnable(
    state: State,
    queue: Iterable[tuple[int, int, str]],
    running: Callable[[str, str], int],
    unmet: set[Needs],
    budget: Iterator[int],
) -> Iterator[Work]:
    """Items of one class that an agent could run, best first; ends with the pass's budget of looks."""
    for place, _ in zip(queue, budget, strict=False):
        row = state.work[place[2]]
        if not row.spec.template or row.spec.needs in unmet:
            continue
        if item_obstacle(row, state.now_ms, state.work.get, running) is None:
            yield row


def _bind(
    row: Work,
    peer: Peer,
    reason: str,
    held: dict[str, list[Job]],
    live: Counter[tuple[str, str]],
) -> PlaceWork:
    gpus = tuple(free_gpus(peer, row.spec.needs, held[peer.peer])[: row.spec.needs.gpus])
    held[peer.peer].append(_stand_in(row, peer.peer, gpus))
    live[row.spec.work_type, row.spec.config] += 1
    return PlaceWork(work=row.work, peer=peer.peer, incarnation=peer.incarnation, gpus=gpus, reason=reason)


def _urgency(state: State, row: Work, live: Counter[tuple[str, str]]) -> tuple[float, float, int]:
    spec = row.spec
    ageing = min((state.now_ms - row.created_at_ms) // 60_000, MAX_AGEING)
    config = state.config(spec.config)
    totals = state.totals.get(spec.config)
    done = totals.selfplay_jobs if totals and spec.work_type == "selfplay" else 0
    share = (done + live[spec.work_type, spec.config]) / max(config.weight if config else 1, 1)
    return -(spec.priority + ageing), share, row.seq


def _best_peer(state: State, row: Work, peers: Iterable[Peer], held: dict[str, list[Job]]) -> tuple[Peer, str] | None:
    inputs = {i.digest for i in row.spec.inputs}
    best: tuple[tuple[object, ...], Peer, str] | None = None
    for peer in peers:
        if peer_obstacle(peer, row.spec.needs, held[peer.peer], state.limits) is not None:
            continue
        failed_here = peer.peer in row.failed_on
        local = sum(1 for d in inputs if d in state.artifacts and peer.peer in state.artifacts[d].holders)
        power = max((gpu_power(g.name) for g in peer.facts.gpus), default=0) if row.spec.needs.gpus else 0
        room = peer.facts.cpu_slots - sum(j.needs.cpu_slots for j in held[peer.peer])
        score = (failed_here, -power, -local, -room, peer.failures, peer.peer)
        if best is None or score < best[0]:
            best = (score, peer, f"power={power} local_inputs={local} room={room} failures={peer.failures}")
    return (best[1], best[2]) if best else None


def _stand_in(row: Work, peer: str, gpus: tuple[str, ...]) -> Job:
    """A job as it will be, so that the rest of the pass counts what it takes."""
    return Job(
        job="",
        work=row.work,
        work_type=row.spec.work_type,
        config=row.spec.config,
        peer=peer,
        incarnation=0,
        fence=0,
        desired=Desired.RUN,
        actual=Actual.PENDING,
        granted_at_ms=0,
        lease_ms=1,
        renewed_at_ms=0,
        needs=row.spec.needs,
        timeout_ms=1,
        gpus=gpus,
    )


__all__ = ["GPU_POWER", "gpu_power", "place"]
