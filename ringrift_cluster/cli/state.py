"""The replicated state itself: from a running node, or from the files of a stopped one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import RenderableType
from typer import Option

from ringrift_cluster.cli.call import Call, asks
from ringrift_cluster.cli.options import EXIT_NOT_FOUND, EXIT_USAGE, fail
from ringrift_cluster.cli.output import emit, emit_json, table
from ringrift_cluster.client.flows import Dump
from statemachine.machine import Machine
from statemachine.queries import dump as rows_of
from statemachine.rows import TABLES

app = typer.Typer(no_args_is_help=True, help="The replicated rows.")

#: columns of a table on the screen; the rest is in the JSON
_COLUMNS = 10
_CELL = 48


@app.callback()
def _state() -> None:
    """Keeps `state dump` two words."""


@app.command("dump")
@asks
def dump(
    call: Call,
    name: Annotated[str, Option("--table", help=f"One table, as lines: {', '.join(TABLES)}.")] = "",
    data_dir: Annotated[Path | None, Option(help="Read a stopped node's files instead of asking a node.")] = None,
    index: Annotated[int | None, Option(help="With --data-dir: the state after this entry.", min=0)] = None,
) -> None:
    """All replicated rows with index, term and digest; two nodes at one index print the same digest."""
    if name and name not in TABLES:
        raise fail(f"no table is called {name!r}; they are {', '.join(TABLES)}.", EXIT_USAGE)
    if index is not None and data_dir is None:
        raise fail("--index works on files: give --data-dir with it.", EXIT_USAGE)
    if data_dir is not None:
        found = offline(data_dir, index, name)
    else:
        with call.client() as client:
            found = client.dump(name)
    if call.as_json:
        emit_json(found)
    elif name:
        emit(found, False, lambda value: _lines(value, name))
    else:
        emit_json(found, indent=2)


def offline(data_dir: Path, index: int | None, name: str) -> Dump:
    """Read the state from a voter's journal and snapshots, or from a follower's snapshot."""
    from ringrift_cluster.feed.stored import load
    from ringrift_cluster.raft.errors import RaftError
    from ringrift_cluster.raft.offline import facts_of, read_offline
    from statemachine.snapshot import SnapshotDamaged

    snapshot = data_dir / "feed" / "follower.snap"
    try:
        if (data_dir / "raft" / "journal.db").exists() or not snapshot.exists():
            machine = read_offline(data_dir, index)
            facts = facts_of(data_dir)
            return _dumped(machine, facts.get("cluster_id", ""), facts.get("node_id", ""), name)
        found = load(snapshot)
    except (RaftError, SnapshotDamaged) as error:
        raise fail(f"{error}.", EXIT_USAGE) from error
    except LookupError as error:
        raise fail(f"{error.args[0]}.", EXIT_NOT_FOUND) from error
    if found is None or index not in (None, found[0].index):
        raise fail(f"{snapshot} holds the state at entry {found[0].index if found else '?'} only.", EXIT_NOT_FOUND)
    return _dumped(found[1], found[0].cluster_id, "", name)


def _dumped(machine: Machine, cluster_id: str, node_id: str, name: str) -> Dump:
    tables = rows_of(machine.state, name)
    return Dump(cluster_id, node_id, machine.index, machine.term, machine.chain.hex(), tables)


def _lines(value: Dump, name: str) -> Iterable[RenderableType]:
    yield f"index {value.index}  term {value.term}  digest {value.digest}"
    rows = value.tables.get(name, {})
    flat = [dict(_flat("", row)) for row in rows.values()]
    columns = list(dict.fromkeys(column for row in flat for column in row))[:_COLUMNS]
    yield table(
        ["key", *columns], ([key, *(row.get(c, "") for c in columns)] for key, row in zip(rows, flat, strict=True))
    )
    yield f"{len(rows)} rows"


def _flat(prefix: str, row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Columns of a row: nested rows by their fields, the rest as short text, empty values left out."""
    for name, value in row.items():
        if isinstance(value, dict) and prefix == "" and name in ("spec", "facts"):
            yield from _flat(f"{name}.", value)
        elif value not in ("", None, [], {}):
            text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
            yield prefix + name, text if len(text) <= _CELL else f"{text[: _CELL - 3]}..."
