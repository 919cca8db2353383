"""The files of a stopped node: what is wrong with them, and the ways back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType
from typer import Option

from ringrift_cluster.cli.options import EXIT_REFUSED, EXIT_USAGE, Json, fail
from ringrift_cluster.cli.output import emit
from ringrift_cluster.raft.errors import RaftError
from ringrift_cluster.raft.verify import Report

app = typer.Typer(no_args_is_help=True, help="The files of a stopped node.")

DataDir = Annotated[Path, Option("--data-dir", help="The data directory of a stopped node.")]


@app.callback()
def _raft() -> None:
    """Keeps `raft verify` two words."""


@app.command("verify")
def verify_files(data_dir: DataDir, as_json: Json = False) -> None:
    """Say everything that is wrong with a stopped node's log and snapshots. Nothing is written.

    Exit code 0: sound. 1: damaged, and each sentence says where. 2: it cannot be read, or the node runs.
    """
    from ringrift_cluster.raft.verify import verify

    try:
        report = verify(data_dir)
    except (RaftError, OSError, LookupError) as error:
        raise fail(f"{error.args[0] if isinstance(error, LookupError) else error}.", EXIT_USAGE) from error
    emit(report, as_json, report_lines)
    if report.damages:
        raise typer.Exit(EXIT_REFUSED)


def report_lines(value: Report) -> Iterable[RenderableType]:
    if value.node_id or value.entries:
        yield f"voter {value.node_id or '?'} of cluster {value.cluster_id or '?'}, term {value.term}"
        yield (
            f"entries {value.first_index} to {value.last_index} ({value.entries}), the last of term {value.last_term}, "
            f"committed up to {value.commit}"
        )
        yield f"snapshots {' '.join(value.snapshots) or 'none'}"
    if value.follower_index:
        yield f"follower's snapshot at {value.follower_index}"
    for note in value.notes:
        yield f"- {note}"
    for damage in value.damages:
        yield f"! {damage}"
    yield "damaged" if value.damages else "sound"
