"""GPUs: list them, take one out of placement, put it back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer
from rich.console import RenderableType
from typer import Argument, Option

from ringrift_cluster.api.gpus import GpuList, GpuView
from ringrift_cluster.cli.call import Call, asks
from ringrift_cluster.cli.cluster import said
from ringrift_cluster.cli.options import Node, Reason
from ringrift_cluster.cli.output import size, span, table

app = typer.Typer(no_args_is_help=True, help="GPUs, and which are out of placement.")

Uuid = Annotated[str, Argument(help="The GPU's UUID, as `gpus list` shows it.")]


@app.command("list")
@asks
def list_(call: Call, node: Annotated[str, Option(help="Only this node's.")] = "") -> None:
    """All GPUs, with memory, strangers on them, jobs, and why one is out."""
    with call.client() as client:
        call.emit(client.gpus(node), lines)


def lines(value: GpuList) -> Iterable[RenderableType]:
    yield table(
        ["node", "gpu", "name", "memory ", "strangers ", "busy ", "heat ", "jobs ", "note"],
        (
            [
                row.node_id,
                row.gpu.uuid,
                row.gpu.name,
                size(row.gpu.memory_bytes),
                size(row.gpu.foreign_bytes),
                f"{row.gpu.busy_percent} %",
                f"{row.gpu.temperature_c} C",
                len(row.jobs),
                _note(row),
            ]
            for row in value.gpus
        ),
    )
    yield f"{value.offered} offered of {value.total}"


def _note(row: GpuView) -> str:
    left = f" for {span(row.drained_for_ms)}" if row.drained_for_ms else ""
    drained = f"drained{left}: {row.drained}" if row.drained else ""
    return "; ".join(part for part in (drained, row.gpu.fault) if part)


@app.command()
@asks
def drain(
    call: Call,
    node: Node,
    gpu: Uuid,
    reason: Reason = "",
    for_s: Annotated[float, Option(help="It comes back by itself then; 0 is until it is put back.", min=0)] = 0,
) -> None:
    """Take one GPU out of placement; the node's others go on."""
    with call.client() as client:
        done = client.drain_gpu(node, gpu, reason=reason, for_s=for_s)
        call.emit(done, said(f"{gpu} of {node} gets no new work"))


@app.command()
@asks
def undrain(call: Call, node: Node, gpu: Uuid) -> None:
    """Put one GPU back into placement, also one that its node doubted."""
    with call.client() as client:
        call.emit(client.undrain_gpu(node, gpu), said(f"{gpu} of {node} takes work again"))
