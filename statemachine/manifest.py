"""What each node holds, from counters that are kept with every entry, and the files of one node by name."""

from __future__ import annotations

from bisect import bisect_right

from msgspec import Struct

from statemachine.rows import STORE, Artifact
from statemachine.state import State


class Share(Struct, frozen=True):
    """The files of one kind and config that a node holds."""

    kind: str
    config: str
    files: int
    size_bytes: int


class Manifest(Struct, frozen=True):
    """What one holder has: a node, an object store (`store:...`), or a worker that never joined."""

    node_id: str
    #: of the node; `store` for an object store, `unknown` for what is no node
    status: str
    files: int
    size_bytes: int
    #: 0: it has none
    quota_bytes: int
    #: copies that somebody got other bytes of, until the node has read them again
    doubted: int
    shares: tuple[Share, ...]


class File(Struct, frozen=True):
    """One file of a node's manifest. `board`, `players` and `game_count` are what its config and counts say."""

    path: str
    hash: str
    size: int
    type: str
    config: str
    board: str
    players: int
    game_count: int
    created_at_ms: int
    doubted: bool


def manifests(state: State, after: str, limit: int) -> tuple[list[Manifest], str]:
    """A page of holders by name, every node among them, and where the next page goes on (empty at the end)."""
    names = sorted(state.peers.keys() | state.index.held.keys())
    start = bisect_right(names, after) if after else 0
    page = names[start : start + limit]
    return [manifest_of(state, name) for name in page], page[-1] if start + limit < len(names) else ""


def manifest_of(state: State, name: str) -> Manifest:
    peer = state.peers.get(name)
    held = state.index.held.get(name, {})
    shares = tuple(Share(kind, config, *counted) for (kind, config), counted in sorted(held.items()))
    return Manifest(
        node_id=name,
        status=str(peer.status) if peer is not None else "store" if name.startswith(STORE) else "unknown",
        files=sum(share.files for share in shares),
        size_bytes=sum(share.size_bytes for share in shares),
        quota_bytes=peer.facts.store_bytes if peer is not None else 0,
        doubted=sum(name in state.artifacts[digest].doubted for digest in state.index.doubted),
        shares=shares,
    )


def file_of(row: Artifact, holder: str) -> File:
    board, _, seats = row.config.rpartition("_")
    players = seats.removesuffix("p")
    return File(
        path=row.name or row.digest,
        hash=row.digest,
        size=row.size_bytes,
        type=row.kind,
        config=row.config,
        board=board,
        players=int(players) if players.isascii() and players.isdigit() and len(players) < 4 else 0,
        game_count=row.counts.get("games", 0),
        created_at_ms=row.created_at_ms,
        doubted=holder in row.doubted,
    )
