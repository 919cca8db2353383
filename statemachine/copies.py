"""Where copies of files should be: a pure plan from the rows, which each node carries out for itself."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from itertools import islice

from msgspec import Struct

from statemachine.queries import THERE, gates_of, holders_of, keepers_of
from statemachine.rows import STORE, Artifact, Peer, PeerStatus
from statemachine.state import State

#: rows that one plan looks at, so that it stays short on the thread that applies
PLAN_ROWS = 2_000


class Copy(Struct, frozen=True):
    """A target should get one file from somebody who has it: (peer, address) of each."""

    digest: str
    size_bytes: int
    kind: str
    #: a storage node that fetches it, or an object store
    target: str
    #: empty for an object store
    address: str
    sources: tuple[tuple[str, str], ...]
    #: nodes that can get it from an object store, when no source delivers it
    gates: tuple[tuple[str, str], ...] = ()
    #: the node that puts it into the object store
    via: str = ""


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
    return {p.peer: p for p in chosen if p.status in THERE and not p.draining}


def good_holders(state: State, row: Artifact) -> list[Peer]:
    """Holders that answer, stay, and whose copy nobody doubts; a suspect may be gone, so nothing is deleted for it."""
    known = [state.peers[h] for h in row.holders if h in state.peers and h not in row.doubted]
    return [p for p in known if p.status is PeerStatus.ALIVE and not p.draining]


def stores_with(row: Artifact) -> list[str]:
    """The object stores that have a file, as far as nobody doubts it."""
    return [h for h in row.holders if h.startswith(STORE) and h not in row.doubted]


def plan_copies(state: State, skip: int = 0, rows: int = PLAN_ROWS) -> Plan:
    """The copies that are missing on storage nodes and in object stores, among `rows` artifacts after the first `skip`.

    Which node a file goes to follows from its digest and the nodes' names (rendezvous hashing), so every node makes
    the same plan from the same rows and a node that comes or goes moves few files. A node whose quota is used up
    comes last. A copy in an object store counts like one on a storage node.
    """
    targets = storage_nodes(state)
    free_bytes = {
        name: peer.facts.store_bytes - state.index.held_bytes(name)
        for name, peer in targets.items()
        if peer.facts.store_bytes
    }
    bearers = {store: near for store in sorted(state.index.gates) if (near := _staying(keepers_of(state, store)))}
    wanted = state.spreading.wanted
    found: list[Copy] = []
    lost: list[str] = []
    looked = 0
    for row in islice(state.artifacts.values(), skip, skip + rows):
        looked += 1
        copies = wanted(row.kind)
        kept = stores_with(row)
        missing = copies - len(kept) - sum(h in targets for h in row.holders if h not in row.doubted)
        unstored = [store for store in bearers if store not in kept] if copies else []
        if missing <= 0 and not unstored:
            continue
        sources, gates = holders_of(state, row), gates_of(state, row)
        if not sources and not gates:
            lost.append(row.digest)
            continue

        def copy(
            target: str,
            address: str,
            via: str = "",
            row: Artifact = row,
            sources: tuple[tuple[str, str], ...] = sources,
            gates: tuple[tuple[str, str], ...] = gates,
        ) -> Copy:
            return Copy(row.digest, row.size_bytes, row.kind, target, address, sources, gates, via)

        free = [p for p in targets.values() if p.peer not in row.holders and not p.facts.not_ready]
        full = {p.peer for p in free if free_bytes.get(p.peer, row.size_bytes) < row.size_bytes}
        free.sort(key=lambda p: (p.peer in full, _rank(row.digest, p.peer)))
        found += [copy(p.peer, p.address) for p in islice(free, max(missing, 0))]
        found += [copy(store, "", via=_bearer(row, bearers[store])) for store in unstored]
    return Plan(tuple(found), tuple(lost), skip + looked if looked == rows else 0)


def _staying(peers: Iterable[Peer]) -> list[Peer]:
    return [p for p in peers if not p.draining]


def _bearer(row: Artifact, near: list[Peer]) -> str:
    """The node that puts a file into a store: one that has it, where there is one."""

    def order(peer: Peer) -> tuple[bool, bytes]:
        return peer.peer not in row.holders or peer.peer in row.doubted, _rank(row.digest, peer.peer)

    return min(near, key=order).peer


def _rank(digest: str, peer: str) -> bytes:
    return blake2b(f"{digest} {peer}".encode(), digest_size=8).digest()
