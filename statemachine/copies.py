"""Where copies of files should be: a pure plan from the rows, which each node carries out for itself."""

from __future__ import annotations

from hashlib import blake2b
from itertools import islice

from msgspec import Struct

from statemachine.queries import holders_of
from statemachine.rows import Artifact, Peer, PeerStatus
from statemachine.state import State

_THERE = frozenset((PeerStatus.ALIVE, PeerStatus.SUSPECT))

#: rows that one plan looks at, so that it stays short on the thread that applies
PLAN_ROWS = 2_000


class Copy(Struct, frozen=True):
    """One storage node should get one file from somebody who has it: (peer, address) of each."""

    digest: str
    size_bytes: int
    kind: str
    target: str
    address: str
    sources: tuple[tuple[str, str], ...]


class Plan(Struct, frozen=True):
    """What is missing among the rows that were looked at."""

    copies: tuple[Copy, ...]
    #: files that nobody can serve now
    lost: tuple[str, ...]
    #: where the next plan goes on; 0 when this one reached the end
    next: int


def storage_nodes(state: State) -> dict[str, Peer]:
    """The peers that files are copied to, of those that are there and stay: labelled ones, or voters without any."""
    label = state.spreading.storage_label
    labelled = [p for p in state.peers.values() if label in p.facts.labels]
    chosen = labelled or [p for p in state.peers.values() if p.role == "voter"]
    return {p.peer: p for p in chosen if p.status in _THERE and not p.draining}


def good_holders(state: State, row: Artifact) -> list[Peer]:
    """Holders that are there, stay, and whose copy nobody doubts."""
    known = [state.peers[h] for h in row.holders if h in state.peers and h not in row.doubted]
    return [p for p in known if p.status in _THERE and not p.draining]


def plan_copies(state: State, skip: int = 0, rows: int = PLAN_ROWS) -> Plan:
    """The copies that are missing on storage nodes, among `rows` artifacts after the first `skip`.

    Which node a file goes to follows from its digest and the nodes' names (rendezvous hashing), so every node makes
    the same plan from the same rows and a node that comes or goes moves few files.
    """
    targets = storage_nodes(state)
    wanted = state.spreading.wanted
    found: list[Copy] = []
    lost: list[str] = []
    looked = 0
    for row in islice(state.artifacts.values(), skip, skip + rows):
        looked += 1
        missing = wanted(row.kind) - sum(h in targets for h in row.holders if h not in row.doubted)
        if missing <= 0:
            continue
        sources = holders_of(state, row)
        if not sources:
            lost.append(row.digest)
            continue
        free = [p for p in targets.values() if p.peer not in row.holders and not p.facts.not_ready]
        free.sort(key=lambda p: _rank(row.digest, p.peer))
        found += [Copy(row.digest, row.size_bytes, row.kind, p.peer, p.address, sources) for p in islice(free, missing)]
    return Plan(tuple(found), tuple(lost), skip + looked if looked == rows else 0)


def _rank(digest: str, peer: str) -> bytes:
    return blake2b(f"{digest} {peer}".encode(), digest_size=8).digest()
