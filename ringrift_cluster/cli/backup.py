"""A copy of the whole state in one file, and a new cluster from it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from msgspec import Struct
from rich.console import RenderableType
from typer import Argument, Option

from ringrift_cluster.cli.call import Call, asks
from ringrift_cluster.cli.options import EXIT_UNAVAILABLE, EXIT_USAGE, Json, fail
from ringrift_cluster.cli.output import emit, size
from ringrift_cluster.members import Member, SettingsError, parse_member
from ringrift_cluster.raft.datadir import sync_directory
from statemachine.machine import Machine
from statemachine.snapshot import Header, SnapshotDamaged, read
from statemachine.values import Voter

if TYPE_CHECKING:
    from ringrift_cluster.raft.anew import Begun


class Taken(Struct, frozen=True):
    """A verified backup file and the position it stands at."""

    file: str
    cluster_id: str
    index: int
    term: int
    digest: str
    rows: int
    size_bytes: int


@asks
def backup(
    call: Call,
    file: Annotated[Path, Argument(help="Where it goes; an earlier file of that name is replaced once it is whole.")],
) -> None:
    """Copy the whole state of a running cluster into a file.

    It holds everything that was acknowledged before the command began. The file is verified before it gets its name.
    """
    draft = file.with_name(f"{file.name}.part")
    try:
        with call.client() as client:
            head = _fetch(client.backup(), draft)
        draft.replace(file)
        sync_directory(file.absolute().parent)
    except OSError as error:
        raise fail(f"the backup {file} cannot be written: {error}.", EXIT_USAGE) from error
    finally:
        draft.unlink(missing_ok=True)
    taken = Taken(
        file=str(file),
        cluster_id=head.cluster_id,
        index=head.index,
        term=head.term,
        digest=head.chain.hex(),
        rows=sum(head.rows.values()),
        size_bytes=file.stat().st_size,
    )
    call.emit(taken, _taken_lines)


def _fetch(chunks: Iterator[bytes], draft: Path) -> Header:
    # Its owner's alone, like a data directory.
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        for chunk in chunks:
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    try:
        with draft.open("rb") as source:
            return read(source)[0]
    except SnapshotDamaged as error:
        raise fail(f"what arrived is no whole backup: {error}; take it again.", EXIT_UNAVAILABLE) from error


def _taken_lines(value: Taken) -> Iterable[RenderableType]:
    yield f"{value.file} holds cluster {value.cluster_id} as of entry {value.index}"
    yield f"{value.rows} rows, {size(value.size_bytes)}"
    yield f"digest {value.digest}"


Tls = Annotated[bool, Option("--tls", help="That voter serves HTTPS: it is started with --tls-cert.")]


def one_voter(text: str, option: str, *, tls: bool) -> Member:
    """The first voter of a new cluster, as `id=host:port[/raft-port]`."""
    if "," in text:
        raise fail(
            f"{option} takes one voter: a new cluster begins with one, and the others are added to it.", EXIT_USAGE
        )
    try:
        member = parse_member(text)
    except SettingsError as error:
        raise fail(str(error), EXIT_USAGE) from error
    if "=" not in text:
        raise fail(f"{option} needs the voter's name as well: {option} NODE={text}", EXIT_USAGE)
    return replace(member, scheme="https") if tls else member


def first_voter(member: Member) -> Voter:
    return Voter(member.id, member.raft_address, member.url)


def restore(
    file: Annotated[Path, Argument(help="A file that `backup` wrote.")],
    data_dir: Annotated[Path, Option(help="The data directory of the new cluster's first voter.")],
    cluster: Annotated[
        str, Option("--cluster", metavar="NODE=HOST:PORT[/RAFT]", help="That voter; more are added once it runs.")
    ],
    tls: Tls = False,
    as_json: Json = False,
) -> None:
    """Begin a new cluster from a backup. It has an id of its own, so nodes of the old one never mix with it.

    Exit code 2: the file is damaged, or the data directory holds a voter already; nothing is changed then.
    """
    from ringrift_cluster.raft.anew import restore as begin
    from ringrift_cluster.raft.errors import RaftError

    member = one_voter(cluster, "--cluster", tls=tls)
    try:
        head, machine = _load(file)
        begun = begin(data_dir, first_voter(member), head, machine)
    except (RaftError, OSError) as error:
        raise fail(f"{error}.", EXIT_USAGE) from error
    emit(begun, as_json, lambda value: next_steps(value, member, data_dir))


def _load(file: Path) -> tuple[Header, Machine]:
    try:
        with file.open("rb") as source:
            return read(source)
    except OSError as error:
        raise fail(f"the backup {file} cannot be read ({error.strerror}).", EXIT_USAGE) from error
    except SnapshotDamaged as error:
        raise fail(f"the backup {file} is damaged: {error}; use another one.", EXIT_USAGE) from error


def next_steps(begun: Begun, member: Member, data_dir: Path) -> Iterable[RenderableType]:
    """What there is now and what comes next."""
    yield f"cluster {begun.cluster_id} begins at entry {begun.index} with {begun.rows} rows"
    yield f"its one voter is {begun.node_id}"
    if begun.kept:
        yield f"the old files are in {begun.kept}"
    where = f"{member.id}={member.address}/{member.raft_port}"
    yield f"start it: ringrift-node serve --node-id {member.id} --cluster {where} --data-dir {data_dir}"
    yield "with its other flags as before (certificates, secret, bind)"
