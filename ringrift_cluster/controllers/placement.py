"""Placement: bind pending items to peers, best item first, best peer for it.

Order of items: within a class (type and config) by priority and age; between classes by the priority of their heads,
raised by one for every minute of waiting (so no class starves; an overdue training goes first), then the config
that has had the smallest share of its weight, then age. Order of peers: those that did not fail
this item and on which not many attempts failed lately, then the strongest, those that hold its inputs, those with the
most room. The law checks every placement again when it is committed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice

from ringrift_cluster.controllers.items import stand_in
from ringrift_cluster.controllers.power import gpu_power, strongest
from ringrift_cluster.controllers.yielding import overdue, waiting
from statemachine import queries, reputation
from statemachine.commands import Command, PlaceWork
from statemachine.eligibility import free_gpus, input_obstacle, item_obstacle, peer_obstacle, takes_whole
from statemachine.rows import Job, Peer, PeerStatus, Work
from statemachine.state import State
from statemachine.values import Needs

#: placements in one pass
MAX_PLACEMENTS = 64
#: pending items that a pass looks at, over all classes; each class has its share, or the first would use up all
MAX_LOOKED = 4_096
#: a minute of waiting is worth one point of priority, up to this
MAX_AGEING = 50
#: more than any priority: selfplay has made room for it
OVERDUE = 10_000


def place(state: State) -> list[Command]:
    """Placements that the rules allow now, counting those made earlier in the same pass.

    Runs on the thread that keeps the consensus, so its work is bounded whatever the queue holds: each class is looked
    at from its head, and needs that no peer can meet are asked about once.
    """
    if state.cluster.paused:
        return []
    peers = [p for p in state.peers.values() if p.status is PeerStatus.ALIVE and not p.draining]
    held = {p.peer: [state.jobs[j] for j in state.index.live_jobs_of(p.peer)] for p in peers}
    # Where selfplay makes room for a training nothing else is placed meanwhile.
    for late, room in waiting(state, peers, held):
        held[room.peer].append(stand_in(state, late, room.peer, room.gpus))
    live = Counter({(kind, config): group.live for kind, config, group in state.index.groups()})

    def running(work_type: str, config: str) -> int:
        return live[work_type, config]

    unserved = cache(partial(queries.unserved, state))
    unmet: set[tuple[bool, Needs]] = set()
    queues = [group.queue for _, _, group in state.index.groups()]
    looks = shares([len(queue) for queue in queues], MAX_LOOKED)
    classes = [
        _runnable(state, islice(queue, most), running, unserved, unmet)
        for queue, most in zip(queues, looks, strict=True)
    ]
    heads = {n: row for n, rows in enumerate(classes) if (row := next(rows, None)) is not None}
    commands: list[Command] = []
    while heads and len(commands) < MAX_PLACEMENTS:
        n, row = min(heads.items(), key=lambda head: _urgency(state, head[1], live))
        choice = None
        if item_obstacle(row, state.now_ms, state.work.get, running) is None:
            choice = _best_peer(state, row, peers, held)
            if choice is None:
                unmet.add(_demand(state, row))
        if choice is not None:
            commands.append(_bind(state, row, choice, held, live))
        follower = next(classes[n], None)
        if follower is None:
            del heads[n]
        else:
            heads[n] = follower
    return commands


def shares(sizes: Sequence[int], budget: int) -> list[int]:
    """How many of each a pass looks at: all of the small ones, and of the large ones equally many.

    One of each at the least, so the sum is the budget at most or the number of sizes.
    """
    given = [0] * len(sizes)
    smallest_first = sorted(range(len(sizes)), key=sizes.__getitem__)
    for done, n in enumerate(smallest_first):
        given[n] = min(sizes[n], max(budget // (len(sizes) - done), 1))
        budget = max(budget - given[n], 0)
    return given


def _runnable(
    state: State,
    queue: Iterable[tuple[int, int, str]],
    running: Callable[[str, str], int],
    unserved: Callable[[str], bool],
    unmet: set[tuple[bool, Needs]],
) -> Iterator[Work]:
    """Items of one class that an agent could run, best first."""
    for _, _, name in queue:
        row = state.work[name]
        if not row.spec.template or _demand(state, row) in unmet:
            continue
        if item_obstacle(row, state.now_ms, state.work.get, running) is None and not input_obstacle(row, unserved):
            yield row


def _demand(state: State, row: Work) -> tuple[bool, Needs]:
    """What an item asks of a peer; items that ask alike find the same peers unfit."""
    needs = state.needs_of(row.spec)
    return takes_whole(row.spec.work_type, needs), needs


def _bind(
    state: State,
    row: Work,
    choice: Choice,
    held: dict[str, list[Job]],
    live: Counter[tuple[str, str]],
) -> PlaceWork:
    peer = choice.peer
    held[peer.peer].append(stand_in(state, row, peer.peer, choice.gpus))
    live[row.spec.work_type, row.spec.config] += 1
    return PlaceWork(
        work=row.work, peer=peer.peer, incarnation=peer.incarnation, gpus=choice.gpus, reason=choice.reason
    )


def _urgency(state: State, row: Work, live: Counter[tuple[str, str]]) -> tuple[float, float, int]:
    spec = row.spec
    ageing = min((state.now_ms - row.created_at_ms) // 60_000, MAX_AGEING)
    config = state.config(spec.config)
    totals = state.totals.get(spec.config)
    done = totals.selfplay_jobs if totals and spec.work_type == "selfplay" else 0
    share = (done + live[spec.work_type, spec.config]) / max(config.weight if config else 1, 1)
    return -(spec.priority + ageing + (OVERDUE if overdue(state, row) else 0)), share, row.seq


@dataclass(frozen=True, slots=True)
class Choice:
    """A peer for an item, the GPUs it would get there, and why."""

    peer: Peer
    gpus: tuple[str, ...]
    reason: str


def _best_peer(state: State, row: Work, peers: Iterable[Peer], held: dict[str, list[Job]]) -> Choice | None:
    inputs = {i.digest for i in row.spec.inputs}
    work_type, needs = row.spec.work_type, state.needs_of(row.spec)
    best: tuple[tuple[object, ...], Choice] | None = None
    for peer in peers:
        jobs = held[peer.peer]
        if peer_obstacle(peer, work_type, needs, jobs, state.limits) is not None:
            continue
        gpus = strongest(peer, free_gpus(peer, work_type, needs, jobs, state.limits), needs.gpus)
        failed_here = peer.peer in row.failed_on
        local = sum(1 for d in inputs if d in state.artifacts and peer.peer in state.artifacts[d].holders)
        power = sum(gpu_power(gpu.name) for gpu in peer.facts.gpus if gpu.uuid in gpus)
        room = peer.facts.cpu_slots - sum(j.needs.cpu_slots for j in jobs)
        failures = reputation.failures(peer, state.now_ms, state.timing)
        # A few failures are bad luck; a peer with more of them has its turn after those with fewer.
        score = (failed_here, failures.bit_length() > 2, -power, -local, -room, failures, peer.peer)
        if best is None or score < best[0]:
            reason = f"power={power} local_inputs={local} room={room} failures={failures}"
            best = (score, Choice(peer, gpus, reason))
    return best[1] if best else None
