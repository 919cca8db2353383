"""The GPUs of the cluster, one by one: what they are, what is on them, and which are out of placement."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from ringrift_cluster.api import examples
from ringrift_cluster.api.endpoint import Call, Routes
from ringrift_cluster.api.views import View, look
from ringrift_cluster.api.writes import Outcome, Requested, carry_out_once
from statemachine.commands import DrainGpu
from statemachine.errors import Code
from statemachine.rows import LIVE_JOB
from statemachine.state import State
from statemachine.values import Gpu, Id, Scope, Short

route = Routes("gpus", "GPUs: memory, health, jobs, and taking one out of placement.")


class GpuView(Struct, frozen=True):
    """One GPU (or MIG instance) of a node, and what the cluster has on it."""

    node_id: str
    node_status: str
    gpu: Gpu
    jobs: list[str]
    #: why it is out of placement; empty when it is not
    drained: str = ""
    #: how long it stays out; 0 is until it is put back
    drained_for_ms: int = 0


class GpuList(Struct, frozen=True):
    gpus: list[GpuView]
    total: int
    #: healthy, not drained, on a node that is alive and takes work
    offered: int


class OfNode(View, frozen=True, kw_only=True):
    node_id: Annotated[str, Meta(max_length=128, description="Only this node's.")] = ""


@route(
    "GET",
    "/gpus",
    "All GPUs",
    scope=Scope.READ,
    answer=GpuList([GpuView("gpu-1", "alive", examples.GPU, ["sp-1.1"])], 1, 1),
)
async def listing(call: Call, query: OfNode) -> GpuList:
    """As their nodes told them last; load and heat in coarse steps. Each node's `/metrics` has them in full."""

    def ask(state: State) -> GpuList:
        found: list[GpuView] = []
        offered = 0
        for peer in state.peers.values():
            if query.node_id not in ("", peer.peer):
                continue
            drains = {drain.gpu: drain for drain in peer.gpu_drains}
            jobs = [state.jobs[name] for name in state.index.live_jobs_of(peer.peer)]
            takes_work = peer.status == "alive" and not peer.draining and not peer.facts.not_ready
            for gpu in peer.facts.gpus:
                on_it = [job.job for job in jobs if gpu.uuid in job.gpus and job.actual in LIVE_JOB]
                drain = drains.get(gpu.uuid)
                reason = (drain.reason or "by an operator") if drain else ""
                left_ms = max(drain.until_ms - state.now_ms, 1) if drain and drain.until_ms else 0
                found.append(GpuView(peer.peer, peer.status, gpu, on_it, reason, left_ms))
                offered += takes_work and not gpu.fault and drain is None
        return GpuList(found, len(found), offered)

    return await look(call, ask, query)


class DrainedGpu(Requested, frozen=True, kw_only=True):
    node_id: Id
    #: its UUID
    gpu: Id
    reason: Short = ""
    #: it comes back by itself then; 0 is until it is put back
    for_seconds: Annotated[float, Meta(ge=0, le=10**9)] = 0


@route(
    "POST",
    "/admin/gpus/drain",
    "Take one GPU out of placement",
    scope=Scope.ADMIN,
    example=DrainedGpu(node_id="gpu-1", gpu=examples.GPU.uuid, reason="it is being reset", for_seconds=3600.0),
    answer=Outcome(True, 1204),
    errors=(Code.NOT_FOUND, Code.LIMIT),
)
async def drain(call: Call, body: DrainedGpu) -> Outcome:
    """It gets no new job; what runs on it goes on, and the node's other GPUs are not touched."""
    for_ms = round(body.for_seconds * 1000)
    command = DrainGpu(peer=body.node_id, gpu=body.gpu, drain=True, reason=body.reason, for_ms=for_ms)
    return await carry_out_once(call, command, body.request_id)


class UndrainedGpu(Requested, frozen=True, kw_only=True):
    node_id: Id
    gpu: Id


@route(
    "POST",
    "/admin/gpus/undrain",
    "Put one GPU back into placement",
    scope=Scope.ADMIN,
    example=UndrainedGpu(node_id="gpu-1", gpu=examples.GPU.uuid),
    answer=Outcome(False, 1204),
    errors=(Code.NOT_FOUND,),
)
async def undrain(call: Call, body: UndrainedGpu) -> Outcome:
    """Also one that its node doubted. A fault that the node still sees keeps it out all the same."""
    return await carry_out_once(call, DrainGpu(peer=body.node_id, gpu=body.gpu, drain=False), body.request_id)
