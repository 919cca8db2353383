"""GPUs: list them, take one out of placement, put it back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer
from rich.console import RenderableType
from typer import Argument, Option

from ringrift_cluster.api.gpus import GpuList, GpuView
from ringrift_cluster.cli.cluster import said
from ringrift_cluster.cli.options import DEFAULT_API, Api, Json, Token, TokenFile, connect
from ringrift_cluster.cli.output import emit, size, span, table

app = typer.Typer(no_args_is_help=True, help="GPUs, one by one: what is on them, and which are out of placement.")

Node = Annotated[str, Argument(help="The node.")]
Uuid = Annotated[str, Argument(help="The GPU's UUID, as `gpus list` shows it.")]


@app.command("list")
def list_(
    node: Annotated[str, Option(help="Only this node's.")] = "",
    api: Api = DEFAULT_API,
    as_json: Json = False,
    token: Token = None,
    token_file: TokenFile = None,
) -> None:
    """All GPUs, with memory, strangers on them, jobs, and why one is out."""
    with connect(api, token, token_file) as client:
        emit(client.gpus(node), as_json, lines)


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
def drain(
    node: Node,
    gpu: Uuid,
    reason: Annotated[str, Option(help="Why, for people.")] = "",
    for_s: Annotated[float, Option(help="It comes back by itself then; 0 is until it is put back.", min=0)] = 0,
    api: Api = DEFAULT_API,
    as_json: Json = False,
    token: Token = None,
    token_file: TokenFile = None,
) -> None:
    """Take one GPU out of placement; the node's others go on."""
    with connect(api, token, token_file) as client:
        done = client.drain_gpu(node, gpu, reason=reason, for_s=for_s)
        emit(done, as_json, said(f"{gpu} of {node} gets no new work"))


@app.command()
def undrain(
    node: Node,
    gpu: Uuid,
    api: Api = DEFAULT_API,
    as_json: Json = False,
    token: Token = None,
    token_file: TokenFile = None,
) -> None:
    """Put one GPU back into placement, also one that its node doubted."""
    with connect(api, token, token_file) as client:
        emit(client.undrain_gpu(node, gpu), as_json, said(f"{gpu} of {node} takes work again"))
