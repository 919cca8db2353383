"""Whether an item may run now, and whether a peer may take it: one set of rules.

The law refuses a placement that breaks them, the placement policy filters by them and `why` prints them,
so the three can never tell different stories. Each rule answers a reason code and a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec import Struct

from statemachine.rows import LIVE_JOB, Job, Peer, PeerStatus, Work, WorkStatus
from statemachine.settings import Limits
from statemachine.values import Needs

#: an item of one of these types runs at most once at a time per config
EXCLUSIVE_TYPES = frozenset({"training", "initial"})


class Obstacle(Struct, frozen=True):
    """A reason code that can be counted, and the sentence for people."""

    code: str
    detail: str


def item_obstacle(
    work: Work, now_ms: int, get_work: Callable[[str], Work | None], live: Callable[[str, str], int]
) -> Obstacle | None:
    """What keeps a pending item from running anywhere. `live` counts the jobs of a type and config."""
    spec = work.spec
    if work.ready_at_ms > now_ms:
        wait = (work.ready_at_ms - now_ms + 999) // 1000
        return Obstacle("backoff", f"it waits {wait} s before its next attempt; the last one said: {work.reason}")
    for name in spec.depends_on:
        other = get_work(name)
        if other is None:
            return Obstacle("dependency_missing", f"it depends on {name!r}, which is not known")
        if other.status is not WorkStatus.COMPLETED:
            return Obstacle("dependency", f"it depends on {name!r}, which is {other.status}")
    if spec.work_type in EXCLUSIVE_TYPES and live(spec.work_type, spec.config):
        return Obstacle("exclusive", f"another {spec.work_type} of {spec.config or 'no config'} runs already")
    return None


def peer_obstacle(peer: Peer, needs: Needs, held: Iterable[Job], limits: Limits) -> Obstacle | None:
    """What keeps a peer from taking something with these needs beside the jobs it holds."""
    facts = peer.facts
    if peer.status is not PeerStatus.ALIVE:
        return Obstacle(f"peer_{peer.status}", f"{peer.peer} is {peer.status}")
    if peer.draining:
        return Obstacle("draining", f"{peer.peer} is being drained: {peer.drain_reason or 'by an operator'}")
    if facts.not_ready:
        return Obstacle("not_ready", f"{peer.peer} takes no work: {facts.not_ready}")
    missing = [label for label in needs.labels if label not in facts.labels]
    if missing:
        return Obstacle("label", f"{peer.peer} has no label {', '.join(missing)}")
    jobs = [job for job in held if job.actual in LIVE_JOB]
    if len(jobs) >= limits.jobs_per_peer:
        return Obstacle("job_cap", f"{peer.peer} runs {len(jobs)} jobs, its cap")
    slots = sum(job.needs.cpu_slots for job in jobs if not job.needs.gpus)
    if not needs.gpus and slots + needs.cpu_slots > facts.cpu_slots:
        return Obstacle("slots", f"{peer.peer} uses {slots} of {facts.cpu_slots} CPU slots")
    ram = sum(job.needs.ram_bytes for job in jobs)
    if needs.ram_bytes and ram + needs.ram_bytes > facts.ram_bytes:
        return Obstacle("ram", f"{peer.peer} has {ram} of {facts.ram_bytes} bytes of RAM reserved")
    if needs.gpus:
        free = free_gpus(peer, needs, jobs)
        if len(free) < needs.gpus:
            return Obstacle("gpu", f"{peer.peer} has {len(free)} free GPUs that fit, {needs.gpus} are needed")
    return None


def free_gpus(peer: Peer, needs: Needs, held: Iterable[Job]) -> list[str]:
    """UUIDs of healthy GPUs with room for `needs.vram_bytes`, most free memory first.

    A job that reserves no VRAM takes its GPU whole; so does one placed beside it.
    """
    used: dict[str, int] = {}
    for job in held:
        for uuid in job.gpus:
            used[uuid] = used.get(uuid, 0) + (job.needs.vram_bytes or 2**62)
    room = [
        (gpu.memory_bytes - used.get(gpu.uuid, 0), gpu.uuid)
        for gpu in peer.facts.gpus
        if not gpu.fault and (needs.vram_bytes or gpu.uuid not in used)
    ]
    fits = [(-free, uuid) for free, uuid in room if free >= needs.vram_bytes and free > 0]
    return [uuid for _, uuid in sorted(fits)]
