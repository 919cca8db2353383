"""What each node holds, which copies are missing where, and an order to look at once."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from executors.storage import StorageStatus
from ringrift_cluster.api import examples
from ringrift_cluster.api.endpoint import Call, Routes
from ringrift_cluster.api.problems import Problem
from ringrift_cluster.api.views import Cursor, Page, View, look, scan
from ringrift_cluster.api.writes import Outcome, carry_out
from statemachine import copies, manifest
from statemachine.commands import RequestSync
from statemachine.copies import Plan
from statemachine.errors import Code
from statemachine.manifest import File, Manifest, Share
from statemachine.settings import Artifacts
from statemachine.state import State
from statemachine.values import Scope, Short

route = Routes("sync", "Where files are, and where copies of them are missing.")

#: rows of the plan in one answer
ROWS = 1_000


class ManifestPage(Page, frozen=True, kw_only=True):
    after: Annotated[str, Meta(max_length=160, description="`next` of the page before.")] = ""


class ManifestList(Struct, frozen=True):
    """Holders by name. `total_files` counts each file once, however many copies it has."""

    nodes: list[Manifest]
    total_files: int
    next: str


_MANIFEST = Manifest(
    "gpu-1", "alive", 40, 3_276_800, 10**12, 0, (Share("games", examples.ARTIFACT.config, 40, 3_276_800),)
)


async def cluster_manifest(call: Call, query: ManifestPage) -> ManifestList:
    """Nodes, and object stores with names that begin with `store:`. Read from kept counters, never by a scan."""

    def ask(state: State) -> ManifestList:
        nodes, after = manifest.manifests(state, query.after, query.limit)
        return ManifestList(nodes, len(state.artifacts), after)

    return await look(call, ask, query)


for path, summary in (
    ("/manifest", "What each node holds, by kind and config"),
    ("/cluster_data_manifest", "Another name for `/manifest`"),
):
    route("GET", path, summary, scope=Scope.READ, answer=ManifestList([_MANIFEST], 40, ""))(cluster_manifest)


class NodeFiles(Struct, frozen=True):
    """A page of one node's files, newest first. A page may be short while there is more."""

    manifest: Manifest
    files: list[File]
    next: str


_FILES = NodeFiles(_MANIFEST, [manifest.file_of(examples.ARTIFACT, "gpu-1")], "")


async def files_of(call: Call, name: str, query: Cursor) -> NodeFiles:
    def ask(state: State) -> NodeFiles:
        own = call.services.replica.status().node_id
        if name != own and name not in state.peers and name not in state.index.held:
            raise Problem(Code.NOT_FOUND, f"no node {name!r} is known, and nobody of that name holds a file")
        rows, after = scan(state.artifacts, query, lambda row: name in row.holders)
        return NodeFiles(manifest.manifest_of(state, name), [manifest.file_of(row, name) for row in rows], after)

    return await look(call, ask, query)


@route("GET", "/data_manifest", "The files that this node holds", scope=Scope.READ, answer=_FILES)
async def own_files(call: Call, query: Cursor) -> NodeFiles:
    return await files_of(call, call.services.replica.status().node_id, query)


@route(
    "GET",
    "/manifest/{peer_id:any}",
    "The files that one node holds",
    scope=Scope.READ,
    answer=_FILES,
    errors=(Code.NOT_FOUND, Code.EXPIRED),
)
async def node_files(call: Call, peer_id: str, query: Cursor) -> NodeFiles:
    """Also those of an object store, by its name `store:...`."""
    return await files_of(call, peer_id, query)


class PlanPage(View, frozen=True, kw_only=True):
    after: Annotated[int, Meta(ge=0, le=2**40, description="`next` of the answer before.")] = 0


class MissingCopy(Struct, frozen=True):
    """A copy that a storage node should fetch from `sources`, or that `via` should put into an object store."""

    digest: str
    kind: str
    size_bytes: int
    target: str
    via: str
    sources: tuple[str, ...]


class DoubtedCopy(Struct, frozen=True):
    digest: str
    holders: tuple[str, ...]


class Room(Struct, frozen=True):
    """What a storage node holds, and its quota; 0 is none."""

    node_id: str
    held_bytes: int
    quota_bytes: int


class SyncStatus(Struct, frozen=True):
    """The plan for the rows that were looked at, and what this node does about its part of it."""

    #: SYNCED: nothing is missing among these rows. SYNCING: copies are. LOST: a file has no holder that is there
    state: str
    missing: list[MissingCopy]
    missing_bytes: int
    #: files that nobody who is there can deliver
    lost: tuple[str, ...]
    doubted: list[DoubtedCopy]
    storage_nodes: list[Room]
    stores: list[str]
    #: how often a look was asked for
    asked: int
    rules: Artifacts
    total_files: int
    #: the rows that come next, as `after`; 0 at the end
    next: int
    node_id: str
    #: this node's own part; None before its agent has begun
    node: StorageStatus | None


def _status(state: State, plan: Plan, node_id: str, node: StorageStatus | None) -> SyncStatus:
    missing = [
        MissingCopy(c.digest, c.kind, c.size_bytes, c.target, c.via, tuple(name for name, _ in (*c.sources, *c.gates)))
        for c in plan.copies
    ]
    return SyncStatus(
        state="LOST" if plan.lost else "SYNCING" if missing else "SYNCED",
        missing=missing,
        missing_bytes=sum(copy.size_bytes for copy in missing),
        lost=plan.lost,
        doubted=[DoubtedCopy(d, state.artifacts[d].doubted) for d in sorted(state.index.doubted)[:ROWS]],
        storage_nodes=[
            Room(name, state.index.held_bytes(name), peer.facts.store_bytes)
            for name, peer in sorted(copies.storage_nodes(state).items())
        ],
        stores=sorted(state.index.gates),
        asked=state.cluster.syncs,
        rules=state.spreading,
        total_files=len(state.artifacts),
        next=plan.next,
        node_id=node_id,
        node=node,
    )


_STATUS = SyncStatus(
    state="SYNCING",
    missing=[MissingCopy(examples.DIGEST, "games", 81_920, "store-1", "", ("gpu-1",))],
    missing_bytes=81_920,
    lost=(),
    doubted=[],
    storage_nodes=[Room("store-1", 10**11, 10**12)],
    stores=[],
    asked=0,
    rules=Artifacts(),
    total_files=40,
    next=0,
    node_id="a",
    node=StorageStatus(files=40, used_bytes=3_276_800, listed_at_ms=1_700_000_000_000),
)


@route("GET", "/sync/status", "Which copies are missing where", scope=Scope.READ, answer=_STATUS)
async def status(call: Call, query: PlanPage) -> SyncStatus:
    """Each node carries out its own part of this plan, which follows from the rows alone. Each answer is about the
    next 1,000 files; `node` is what this node does at the moment."""
    services = call.services
    node_id, own = services.replica.status().node_id, services.storage()

    def ask(state: State) -> SyncStatus:
        return _status(state, copies.plan_copies(state, query.after, ROWS), node_id, own)

    return await look(call, ask, query)


class Sync(Struct, frozen=True, forbid_unknown_fields=True):
    reason: Short = ""


@route(
    "POST",
    "/admin/sync/trigger",
    "Have every node look at its files now",
    scope=Scope.ADMIN,
    example=Sync("after the move"),
    answer=Outcome(1, 1204),
)
async def trigger(call: Call, body: Sync) -> Outcome:
    """Every node lists its directory, forgets who did not answer, and copies and sends what is missing at once. The
    result is how often that was asked for."""
    return await carry_out(call, RequestSync(reason=body.reason))
