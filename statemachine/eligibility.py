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
#: a job of one of these types shares its GPUs with nobody, whatever VRAM it reserves
WHOLE_GPU_TYPES = frozenset({"training"})


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


def input_obstacle(work: Work, unserved: Callable[[str], bool]) -> Obstacle | None:
    """What keeps an agent from starting an item that could run. `unserved` says of a digest that the file is known
    and no node that is there can deliver it. The law lets it pass: a worker that claims may have files of its own."""
    for needed in work.spec.inputs:
        if unserved(needed.digest):
            text = f"its input {needed.name!r} is the file {needed.digest[:12]}, which no live node holds"
            return Obstacle("input_unserved", f"{text}; bring a holder back, or cancel the item")
    return None


def peer_obstacle(peer: Peer, work_type: str, needs: Needs, held: Iterable[Job], limits: Limits) -> Obstacle | None:
    """What keeps a peer from taking something of this type and needs beside the jobs it holds."""
    facts = peer.facts
    if peer.left:
        return Obstacle("peer_left", f"{peer.peer} has left: {peer.left}")
    if peer.status is not PeerStatus.ALIVE:
        return Obstacle(f"peer_{peer.status}", f"{peer.peer} is {peer.status}")
    if peer.draining:
        return Obstacle("draining", f"{peer.peer} is being drained: {peer.drain_reason or 'by an operator'}")
    if peer.held_until_ms:
        return Obstacle("held", f"{peer.peer} is held back for a while: {peer.held_reason}")
    if facts.not_ready:
        return Obstacle("not_ready", f"{peer.peer} takes no work: {facts.not_ready}")
    if needs.peers and peer.peer not in needs.peers:
        return Obstacle("not_chosen", f"{peer.peer} is none of the nodes it may run on: {', '.join(needs.peers)}")
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
    disk = sum(job.needs.disk_bytes for job in jobs)
    if needs.disk_bytes and disk + needs.disk_bytes > facts.disk_free_bytes:
        return Obstacle("disk", f"{peer.peer} has {disk} of {facts.disk_free_bytes} free bytes of disk reserved")
    if needs.gpus:
        free = free_gpus(peer, work_type, needs, jobs, limits)
        if len(free) < needs.gpus:
            text = f"{peer.peer} has {len(free)} free GPUs that fit, {needs.gpus} are needed"
            return Obstacle("gpu", text + _out_of_service(peer))
    return None


def stands_where(needs: Needs, worker: str, peer: Peer | None) -> bool:
    """Whether a worker that claims is on a node the item may run on: one it names, with the labels it asks for.

    `peer` is the node of the worker's name, None when there is none. What else an item takes is the worker's to judge.
    """
    if needs.peers and worker not in needs.peers:
        return False
    return not needs.labels or (peer is not None and set(needs.labels).issubset(peer.facts.labels))


def takes_whole(work_type: str, needs: Needs) -> bool:
    """Whether a job shares its GPUs with nobody: a training always, another when it reserves no VRAM."""
    return work_type in WHOLE_GPU_TYPES or not needs.vram_bytes


def free_gpus(peer: Peer, work_type: str, needs: Needs, held: Iterable[Job], limits: Limits) -> list[str]:
    """UUIDs of GPUs in service with room for a job of this type and needs, most free memory first.

    What strangers hold is not free, and a GPU where strangers hold memory is nobody's whole GPU.
    """
    reserved: dict[str, int] = {}
    sharers: dict[str, int] = {}
    for job in held:
        taken = 2**62 if takes_whole(job.work_type, job.needs) else job.needs.vram_bytes
        for uuid in job.gpus:
            reserved[uuid] = reserved.get(uuid, 0) + taken
            sharers[uuid] = sharers.get(uuid, 0) + 1
    drained = {drain.gpu for drain in peer.gpu_drains}
    whole = takes_whole(work_type, needs)
    fits = []
    for gpu in peer.facts.gpus:
        shared = sharers.get(gpu.uuid, 0)
        if gpu.fault or gpu.uuid in drained or shared >= limits.jobs_per_gpu:
            continue
        free = gpu.memory_bytes - gpu.foreign_bytes - reserved.get(gpu.uuid, 0)
        if free <= 0 or free < needs.vram_bytes or (whole and (shared or gpu.foreign_bytes)):
            continue
        fits.append((-free, gpu.uuid))
    return [uuid for _, uuid in sorted(fits)]


def _out_of_service(peer: Peer) -> str:
    """What is said of its GPUs that are not offered; empty when all are."""
    out = {drain.gpu: f"drained: {drain.reason or 'by an operator'}" for drain in peer.gpu_drains}
    out |= {gpu.uuid: gpu.fault for gpu in peer.facts.gpus if gpu.fault}
    return "".join(f"; {uuid} is out ({reason})" for uuid, reason in sorted(out.items())[:3])
