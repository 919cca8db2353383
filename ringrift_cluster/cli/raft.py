"""The files of a stopped node: what is wrong with them, and the ways back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from typer import Option

from ringrift_cluster.cli.backup import Tls, first_voter, next_steps, one_voter
from ringrift_cluster.cli.options import EXIT_REFUSED, EXIT_USAGE, Json, fail
from ringrift_cluster.cli.output import emit
from ringrift_cluster.raft.errors import RaftError

if TYPE_CHECKING:
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


@app.command("recover")
def recover_quorum(
    data_dir: DataDir,
    keep: Annotated[
        str,
        Option("--keep", metavar="NODE=HOST:PORT[/RAFT]", help="The voter whose files these are, and its address."),
    ],
    confirmed: Annotated[
        bool,
        Option("--yes-i-have-lost-quorum", help="More than half of the voters are gone for good; do it."),
    ] = False,
    accept_damage: Annotated[
        bool, Option("--accept-damage", help="Go on with what can be read of damaged files.")
    ] = False,
    tls: Tls = False,
    as_json: Json = False,
) -> None:
    """The way back when more than half of the voters are gone for good: a new cluster from a voter that is left.

    Use the voter whose last entry has the highest term, and the highest number within it (`raft verify` says it).
    Everything in its log is kept. What only lost voters had acknowledged is gone. The old files stay beside the new
    ones. Without the confirmation it only says what it would do. Exit code 2: refused, nothing is changed.
    """
    from ringrift_cluster.raft.anew import recover, survivor

    member = one_voter(keep, "--keep", tls=tls)
    try:
        found = survivor(data_dir, member.id)
        report = found.report
        if found.lost and not accept_damage:
            said = "; ".join(found.lost[:3])
            raise fail(
                f"these files are damaged ({said}); use another voter's, or give --accept-damage to begin with entry "
                f"{found.machine.index}, the last one that can be read.",
                EXIT_USAGE,
            )
        if not confirmed:
            raise fail(
                f"this would begin a new cluster from {member.id} at entry {found.machine.index} (it knows "
                f"{report.commit} to be committed); what only the lost voters have is gone then, and they must not be "
                "started on their old files again; if that is meant, add --yes-i-have-lost-quorum.",
                EXIT_USAGE,
            )
        begun = recover(data_dir, first_voter(member), found)
    except (RaftError, OSError) as error:
        raise fail(f"{error}.", EXIT_USAGE) from error
    for sentence in found.lost:
        typer.echo(f"ringrift-node: left out: {sentence}", err=True)
    emit(begun, as_json, lambda value: next_steps(value, member, data_dir))
