"""Certificates: make the authority, give each node its own, look, renew."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer
from msgspec import Struct
from rich.console import RenderableType
from typer import Argument, Option

from ringrift_cluster.certs import LOCAL, CertificateError, Facts, Pair, facts, issue, make_authority
from ringrift_cluster.cli.options import EXIT_USAGE, Json, fail
from ringrift_cluster.cli.output import emit, table
from ringrift_cluster.revoked import Reason, revoke, serials

app = typer.Typer(no_args_is_help=True, help="The cluster's own certificate authority.")

#: the name of the authority's own files
AUTHORITY = "ca"
#: certificates that were given out, by serial number: a renewed one must be found again to be revoked
ISSUED = "issued"

Directory = Annotated[
    Path, Option("--dir", help="Where the authority's files are. ca.key is the cluster's crown jewel.")
]
Days = Annotated[int, Option(help="How long it is good for.", min=1, max=36_500)]


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _files(directory: Path, name: str) -> tuple[Path, Path]:
    plain = name if name == AUTHORITY else quote(name, safe="")
    return directory / f"{plain}.crt", directory / f"{plain}.key"


def _read(directory: Path, name: str) -> Pair:
    cert, key = _files(directory, name)
    try:
        return Pair(cert.read_bytes(), key.read_bytes())
    except OSError as error:
        raise fail(f"{error.filename} cannot be read ({error.strerror}).", EXIT_USAGE) from error


def _write(*files: tuple[Path, bytes, int]) -> None:
    """Each file under its mode; it appears whole or not at all."""
    try:
        for path, data, mode in files:
            path.parent.mkdir(exist_ok=True, mode=0o700)
            draft = path.with_name(f".{path.name}.{os.getpid()}")
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
                out.write(data)
            draft.rename(path)
    except OSError as error:
        raise fail(f"{error.filename} cannot be written ({error.strerror}).", EXIT_USAGE) from error


def _refuse_existing(directory: Path, name: str, instead: str) -> None:
    for path in _files(directory, name):
        if path.exists():
            raise fail(f"{path} exists; {instead}.", EXIT_USAGE)


class Shown(Struct, frozen=True):
    """A certificate's file and what it says."""

    file: str
    facts: Facts
    revoked: bool = False


@app.command("init")
def init(
    directory: Directory = Path("certs"),
    name: Annotated[str, Option(help="What the authority is called.")] = "ringrift cluster authority",
    days: Days = 3650,
    as_json: Json = False,
) -> None:
    """Make a new authority: ca.crt, which every node and client gets, and ca.key, which none gets."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise fail(f"{directory} cannot be made ({error.strerror}).", EXIT_USAGE) from error
    _refuse_existing(directory, AUTHORITY, "an authority is made once; give another --dir for another cluster")
    made = make_authority(name, _now(), days)
    cert, key = _files(directory, AUTHORITY)
    _write((key, made.key, 0o600), (cert, made.cert, 0o644))
    emit([Shown(str(cert), facts(made.cert, _now()))], as_json, _lines)


@app.command("issue")
def issue_one(
    node_id: Annotated[str, Argument(help="The node's id.")],
    host: Annotated[
        list[str] | None, Option("--host", help="A host name or address under which others reach it; several times.")
    ] = None,
    voter: Annotated[bool, Option("--voter", help="It votes: the other voters take it for one.")] = False,
    directory: Directory = Path("certs"),
    days: Days = 365,
    as_json: Json = False,
) -> None:
    """Give a node a key and a certificate: ID.key and ID.crt."""
    if node_id == AUTHORITY:
        raise fail(f"{AUTHORITY} is the authority itself; give the node another id.", EXIT_USAGE)
    _refuse_existing(directory, node_id, f"renew it with: certs renew {node_id}")
    _issue(directory, node_id, voter, tuple(host or ()), days, as_json)


def _issue(directory: Path, node_id: str, voter: bool, hosts: tuple[str, ...], days: int, as_json: bool) -> None:
    try:
        made = issue(_read(directory, AUTHORITY), node_id, voter, hosts, _now(), days)
    except CertificateError as error:
        raise fail(f"{node_id}: {error}.", EXIT_USAGE) from error
    cert, key = _files(directory, node_id)
    said = facts(made.cert, _now())
    _write(
        (directory / ISSUED / f"{said.serial}.crt", made.cert, 0o644), (key, made.key, 0o600), (cert, made.cert, 0o644)
    )
    emit([Shown(str(cert), said)], as_json, _lines)


@app.command("renew")
def renew(
    node_id: Annotated[str, Argument(help="The node's id.")],
    directory: Directory = Path("certs"),
    days: Days = 365,
    as_json: Json = False,
) -> None:
    """A new key and certificate with the names of the old one. Copy both to the node; it need not be restarted."""
    try:
        old = facts(_read(directory, node_id).cert, _now())
    except CertificateError as error:
        raise fail(f"{_files(directory, node_id)[0]}: {error}.", EXIT_USAGE) from error
    if old.authority or not old.node_id:
        raise fail(
            f"{_files(directory, node_id)[0]} is no node's certificate; an authority is replaced by a new one in"
            " another --dir.",
            EXIT_USAGE,
        )
    hosts = tuple(host for host in old.hosts if host not in LOCAL)
    _issue(directory, node_id, old.voter, hosts, days, as_json)


class Revocation(Struct, frozen=True):
    """The list that was written, and what is on it."""

    file: str
    #: those that this call has added, in hex
    added: list[str]
    total: int


@app.command("revoke")
def revoke_one(
    which: Annotated[
        str, Argument(metavar="NODE|SERIAL", help="A node's id: all it was given so far. Or one serial number, in hex.")
    ],
    reason: Annotated[Reason, Option(help="Why, in the words of X.509.")] = Reason.UNSPECIFIED,
    directory: Directory = Path("certs"),
    as_json: Json = False,
) -> None:
    """Put certificates on the authority's list, ca.crl, which belongs beside every ca.crt. There is no way back."""
    authority = _read(directory, AUTHORITY)
    found = {one.facts.serial: one.facts for one in _known(directory) if not one.facts.authority}
    chosen = [serial for serial, said in found.items() if which in (said.node_id, serial)]
    if not chosen and (serial := _serial(which)):
        # One that was made elsewhere, or whose copy is lost.
        chosen = [serial]
    if not chosen:
        raise fail(f"{directory} knows no certificate of {which}, and it is no serial number either.", EXIT_USAGE)
    path = directory / f"{AUTHORITY}.crl"
    before = _list_of(path)
    try:
        made = revoke(authority, before, [int(serial, 16) for serial in chosen], reason, _now())
        on_it = serials(made)
        added = [s for s in chosen if before is None or int(s, 16) not in serials(before)]
    except CertificateError as error:
        raise fail(f"{path}: {error}.", EXIT_USAGE) from error
    if added:
        _write((path, made, 0o644))
    emit(Revocation(str(path), sorted(added), len(on_it)), as_json, _revocation_lines)


def _serial(text: str) -> str:
    """A serial number as it is written here; empty when it is none."""
    try:
        number = int(text.replace(":", ""), 16)
    except ValueError:
        return ""
    return f"{number:x}" if len(text) >= 8 and 0 < number < 1 << 160 else ""


def _list_of(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise fail(f"{path} cannot be read ({error.strerror}).", EXIT_USAGE) from error


def _known(directory: Path) -> list[Shown]:
    """What was given out, the latest of each name and those before it."""
    return _looked_at([*sorted(directory.glob("*.crt")), *sorted(directory.glob(f"{ISSUED}/*.crt"))], frozenset())


def _revocation_lines(value: Revocation) -> Iterable[RenderableType]:
    if value.added:
        yield f"revoked {', '.join(value.added)}"
        yield f"copy {value.file} beside ca.crt on every node; it counts within two seconds, without a restart"
    else:
        yield f"nothing new: {value.file} says so already ({value.total} on it)"


@app.command("show")
def show(
    files: Annotated[list[Path] | None, Argument(help="Certificates; all of --dir when left out.")] = None,
    directory: Directory = Path("certs"),
    as_json: Json = False,
) -> None:
    """What certificates say, how long they are good for, and whether the list of --dir has them.

    Of all of --dir those are shown, too, that were replaced since and are on the list.
    """
    listed = _list_of(directory / f"{AUTHORITY}.crl")
    try:
        over = serials(listed) if listed is not None else frozenset()
    except CertificateError as error:
        raise fail(f"{directory / AUTHORITY}.crl: {error}.", EXIT_USAGE) from error
    shown = _looked_at(files or sorted(directory.glob("*.crt")), over)
    if not files:
        present = {one.facts.serial for one in shown}
        given_out = _looked_at(sorted(directory.glob(f"{ISSUED}/*.crt")), over)
        shown += [one for one in given_out if one.revoked and one.facts.serial not in present]
        if not shown:
            raise fail(f"{directory} holds no certificates; `ringrift-node certs init` makes an authority.", EXIT_USAGE)
    emit(shown, as_json, _lines)


def _looked_at(files: Iterable[Path], over: frozenset[int]) -> list[Shown]:
    found = []
    for path in files:
        try:
            said = facts(path.read_bytes(), _now())
        except OSError as error:
            raise fail(f"{path} cannot be read ({error.strerror}).", EXIT_USAGE) from error
        except CertificateError as error:
            raise fail(f"{path}: {error}.", EXIT_USAGE) from error
        found.append(Shown(str(path), said, int(said.serial, 16) in over))
    return found


def _lines(value: list[Shown]) -> Iterable[RenderableType]:
    yield table(
        ["file", "node", "role", "good for ", "hosts", "serial"],
        (
            [
                one.file,
                one.facts.node_id or "-",
                "authority" if one.facts.authority else "voter" if one.facts.voter else "node",
                "revoked" if one.revoked else f"{one.facts.days_left} d",
                " ".join(one.facts.hosts),
                one.facts.serial,
            ]
            for one in value
        ),
    )
