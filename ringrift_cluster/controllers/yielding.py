"""Yielding: selfplay is stopped with its grace for a training that has waited too long. What it made so far is kept.

Which jobs make room follows from the state alone, and those that are stopping already come first: every look, and
placement (which keeps the room free meanwhile), finds the same ones again until the training has its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from ringrift_cluster.controllers.items import stand_in
from ringrift_cluster.controllers.power import gpu_power
from statemachine import queries
from statemachine.commands import Command, StopJob
from statemachine.eligibility import WHOLE_GPU_TYPES, free_gpus, input_obstacle, item_obstacle, peer_obstacle
from statemachine.rows import Desired, Job, Peer, PeerStatus, Work
from statemachine.state import State
from statemachine.values import Needs

#: pending trainings of a config that are looked at for one that lacks nothing but room
LOOKED = 16
#: work that may be stopped for a training
YIELDING = "selfplay"


@dataclass(frozen=True, slots=True)
class Room:
    """Where a training could run once these jobs have ended."""

    peer: str
    gpus: tuple[str, ...]
    jobs: tuple[Job, ...]


def make_room(state: State) -> list[Command]:
    """Stop selfplay for each overdue training that no peer can take."""
    if state.cluster.paused:
        return []
    peers = [p for p in state.peers.values() if p.status is PeerStatus.ALIVE and not p.draining]
    held = {p.peer: [state.jobs[j] for j in state.index.live_jobs_of(p.peer)] for p in peers}
    return [
        StopJob(job=job.job, fence=job.fence, reason=f"it makes room for {row.work}, which has waited too long"[:256])
        for row, room in waiting(state, peers, held)
        for job in room.jobs
        if job.desired is Desired.RUN
    ]


def overdue(state: State, row: Work) -> bool:
    """Whether an item is a training that has waited longer than `timing.yield_after_ms` (0: none ever is)."""
    span = state.timing.yield_after_ms
    since = max(row.created_at_ms, row.ready_at_ms)
    return bool(span) and row.spec.work_type in WHOLE_GPU_TYPES and state.now_ms - since >= span


def _could_run(state: State, row: Work) -> bool:
    """Whether an item is overdue and lacks nothing but room."""
    if not row.spec.template or not overdue(state, row):
        return False
    if item_obstacle(row, state.now_ms, state.work.get, state.index.live) is not None:
        return False
    return input_obstacle(row, partial(queries.unserved, state)) is None


def waiting(state: State, peers: Sequence[Peer], held: Mapping[str, Sequence[Job]]) -> list[tuple[Work, Room]]:
    """The first overdue training of each config that no peer can take, with the room to make; none gets another's."""
    found: list[tuple[Work, Room]] = []
    jobs = {peer: list(rows) for peer, rows in held.items()}
    for work_type, _, group in state.index.groups():
        if work_type not in WHOLE_GPU_TYPES:
            continue
        # The first one may wait for something else, for ever, and must not hide the rest.
        rows = (state.work[name] for _, _, name in islice(group.queue, LOOKED))
        row = next((row for row in rows if _could_run(state, row)), None)
        if row is None:
            continue
        needs = state.needs_of(row.spec)
        if any(peer_obstacle(p, work_type, needs, jobs[p.peer], state.limits) is None for p in peers):
            continue
        room = _best_room(state, row, needs, peers, jobs)
        if room is not None:
            found.append((row, room))
            gone = {job.job for job in room.jobs}
            left = [job for job in jobs[room.peer] if job.job not in gone]
            jobs[room.peer] = [*left, stand_in(state, row, room.peer, room.gpus)]
    return found


def _best_room(
    state: State, row: Work, needs: Needs, peers: Sequence[Peer], held: Mapping[str, Sequence[Job]]
) -> Room | None:
    best: tuple[tuple[object, ...], Room] | None = None
    for peer in peers:
        room = _room(state, row.spec.work_type, needs, peer, held[peer.peer])
        if room is None:
            continue
        stops = sum(job.desired is Desired.RUN for job in room.jobs)
        power = sum(gpu_power(gpu.name) for gpu in peer.facts.gpus if gpu.uuid in room.gpus)
        score = (peer.peer in row.failed_on, stops, -power, peer.peer)
        if best is None or score < best[0]:
            best = (score, room)
    return best[1] if best else None


def _room(state: State, work_type: str, needs: Needs, peer: Peer, held: Sequence[Job]) -> Room | None:
    """The fewest jobs of a peer that have to end for it to take something with these needs; None: it never could."""
    limits = state.limits
    yields = [job for job in held if job.work_type == YIELDING and not job.claim]
    stays = [job for job in held if job not in yields]
    if peer_obstacle(peer, work_type, needs, stays, limits) is not None:
        return None
    power = {gpu.uuid: gpu_power(gpu.name) for gpu in peer.facts.gpus}

    def cost(uuid: str) -> tuple[int, int, str]:
        on_it = [job for job in yields if uuid in job.gpus]
        return sum(job.desired is Desired.RUN for job in on_it), -power[uuid], uuid

    free = free_gpus(peer, work_type, needs, stays, limits) if needs.gpus else []
    gpus = tuple(sorted(free, key=cost)[: needs.gpus])
    stop = [job for job in yields if set(gpus) & set(job.gpus)]
    # Where slots or RAM are short as well: those that stop anyway, then those that began last and lose least.
    rest = sorted((job for job in yields if job not in stop), key=lambda job: (job.desired is Desired.RUN, -job.fence))
    while peer_obstacle(peer, work_type, needs, [job for job in held if job not in stop], limits) is not None:
        stop.append(rest.pop(0))
    return Room(peer.peer, gpus, tuple(stop))
