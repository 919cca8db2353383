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

app = typer.Typer(no_args_is_help=True, help="The cluster's own certificate authority, in a directory of files.")

#: the name of the authority's own files
AUTHORITY = "ca"

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


def _write(directory: Path, name: str, pair: Pair) -> Path:
    """Both files, the key for its owner alone; each appears whole or not at all."""
    cert, key = _files(directory, name)
    try:
        for path, data, mode in ((key, pair.key, 0o600), (cert, pair.cert, 0o644)):
            draft = path.with_name(f".{path.name}.{os.getpid()}")
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
                out.write(data)
            draft.rename(path)
    except OSError as error:
        raise fail(f"{error.filename} cannot be written ({error.strerror}).", EXIT_USAGE) from error
    return cert


def _refuse_existing(directory: Path, name: str, instead: str) -> None:
    for path in _files(directory, name):
        if path.exists():
            raise fail(f"{path} exists; {instead}.", EXIT_USAGE)


class Shown(Struct, frozen=True):
    """A certificate's file and what it says."""

    file: str
    facts: Facts


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
    cert = _write(directory, AUTHORITY, made)
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
    cert = _write(directory, node_id, made)
    emit([Shown(str(cert), facts(made.cert, _now()))], as_json, _lines)


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


@app.command("show")
def show(
    files: Annotated[list[Path] | None, Argument(help="Certificates; all of --dir when left out.")] = None,
    directory: Directory = Path("certs"),
    as_json: Json = False,
) -> None:
    """What certificates say, and how long they are good for."""
    found = []
    for path in files or sorted(directory.glob("*.crt")):
        try:
            found.append(Shown(str(path), facts(path.read_bytes(), _now())))
        except OSError as error:
            raise fail(f"{path} cannot be read ({error.strerror}).", EXIT_USAGE) from error
        except CertificateError as error:
            raise fail(f"{path}: {error}.", EXIT_USAGE) from error
    emit(found, as_json, _lines)


def _lines(value: list[Shown]) -> Iterable[RenderableType]:
    yield table(
        ["file", "node", "role", "good for ", "hosts", "sha256"],
        (
            [
                one.file,
                one.facts.node_id or "-",
                "authority" if one.facts.authority else "voter" if one.facts.voter else "node",
                f"{one.facts.days_left} d",
                " ".join(one.facts.hosts),
                one.facts.sha256[:16],
            ]
            for one in value
        ),
    )
