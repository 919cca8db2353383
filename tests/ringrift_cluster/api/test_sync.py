"""What each node holds, the plan of copies, and the order to look at once."""

from __future__ import annotations

import httpx
import pytest

from executors.storage import Fetching, StorageStatus
from ringrift_cluster.api.services import Services
from statemachine.commands import AddHolder, ChangeSetting, DoubtHolder, JoinPeer, RegisterArtifact
from statemachine.values import PeerFacts
from tests.ringrift_cluster.api.conftest import CHAMPION
from tests.support.memory_replica import MemoryReplica

pytestmark = pytest.mark.anyio

X, Y = "0a" * 32, "0b" * 32
S3 = "store:bucket/ours"


@pytest.fixture(autouse=True)
def files(replica: MemoryReplica) -> None:
    """Two files of the node `w`, a storage node with a quota that has one of them in doubt, and a bucket."""
    storage = PeerFacts(labels=("storage", S3), store_bytes=10_000)
    replica.run(
        JoinPeer("w", 1, "boot-w", "follower", "http://w:8770", PeerFacts()),
        JoinPeer("s", 1, "boot-s", "follower", "http://s:8770", storage),
        RegisterArtifact(X, 500, "games", "hex8_2p", "w", {"games": 50}),
        RegisterArtifact(Y, 70, "notes", "", "w"),
        AddHolder(X, "s"),
        AddHolder(Y, S3),
        DoubtHolder(X, "s", "w"),
        ChangeSetting("artifacts", '{"copies": {"default": 1, "model": 0}}'),
    )


async def test_the_manifest_says_what_each_node_holds(client: httpx.AsyncClient) -> None:
    answer = (await client.get("/manifest")).json()
    rows = {row["node_id"]: row for row in answer["nodes"]}
    assert rows["w"]["shares"] == [
        {"kind": "games", "config": "hex8_2p", "files": 1, "size_bytes": 500},
        {"kind": "notes", "config": "", "files": 1, "size_bytes": 70},
    ]
    assert (rows["s"]["quota_bytes"], rows["s"]["doubted"], rows["s"]["size_bytes"]) == (10_000, 1, 500)
    assert (rows[S3]["status"], rows[S3]["files"]) == ("store", 1)
    assert answer["total_files"] >= 2
    assert (await client.get("/cluster_data_manifest")).json() == answer


async def test_the_manifest_comes_in_pages(client: httpx.AsyncClient) -> None:
    names: list[str] = []
    after = ""
    while True:
        page = (await client.get("/manifest", params={"limit": 1, "after": after})).json()
        names += [row["node_id"] for row in page["nodes"]]
        after = page["next"]
        if not after:
            break
    assert names == sorted(names)
    assert {"gpu-1", "s", S3, "w"} <= set(names)


async def test_the_files_of_one_node_are_listed_with_the_names_that_operators_know(client: httpx.AsyncClient) -> None:
    answer = (await client.get("/manifest/w")).json()
    games = next(row for row in answer["files"] if row["hash"] == X)
    assert (games["path"], games["size"], games["type"]) == (X, 500, "games")
    assert (games["board"], games["players"], games["game_count"]) == ("hex8", 2, 50)
    assert answer["manifest"]["files"] == 2
    in_store = (await client.get(f"/manifest/{S3}")).json()
    assert [row["hash"] for row in in_store["files"]] == [Y]
    page = (await client.get("/manifest/w?limit=1")).json()
    rest = (await client.get("/manifest/w", params={"after": page["next"]})).json()
    assert [row["hash"] for row in page["files"] + rest["files"]] == [Y, X]
    unknown = await client.get("/manifest/nobody")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")


async def test_a_node_lists_its_own_files(client: httpx.AsyncClient, replica: MemoryReplica) -> None:
    assert (await client.get("/data_manifest")).json()["files"] == []
    replica.run(AddHolder(X, "a"))
    assert [row["hash"] for row in (await client.get("/data_manifest")).json()["files"]] == [X]


async def test_the_status_says_what_is_missing_where_and_what_this_node_does(
    client: httpx.AsyncClient, services: Services, replica: MemoryReplica
) -> None:
    services.storage = lambda: StorageStatus(files=3, fetching=(Fetching(X, 500, 100),), last_error="no room")
    page = (await client.get("/sync/status")).json()
    by_digest: dict[str, list[tuple[str, str, list[str]]]] = {}
    for row in page["missing"]:
        by_digest.setdefault(row["digest"], []).append((row["target"], row["via"], row["sources"]))
    # The doubted copy of X counts for nothing, and its holder is not asked to be one twice.
    assert by_digest[X] == [(S3, "s", ["w", "s"])]
    assert Y not in by_digest
    assert (page["state"], page["lost"]) == ("SYNCING", [])
    assert page["doubted"] == [{"digest": X, "holders": ["s"]}]
    assert {"node_id": "s", "held_bytes": 500, "quota_bytes": 10_000} in page["storage_nodes"]
    assert (page["stores"], page["rules"]["files_per_job"], page["next"]) == ([S3], 50, 0)
    assert page["node"]["fetching"] == [{"digest": X, "size_bytes": 500, "received_bytes": 100}]
    manager = (await client.get("/status")).json()["managers"]["sync_planner"]
    assert (manager["healthy"], manager["last_error"]) == (False, "no room")
    replica.run(RegisterArtifact("0c" * 32, 1, "games", "hex8_2p", "a-worker"))
    page = (await client.get("/sync/status")).json()
    assert (page["state"], page["lost"]) == ("LOST", ["0c" * 32])
    replica.run(ChangeSetting("artifacts", '{"copies": {"default": 0}}'))
    assert (await client.get("/sync/status")).json()["state"] == "SYNCED"


async def test_a_sync_that_is_triggered_is_in_the_log(client: httpx.AsyncClient, replica: MemoryReplica) -> None:
    for times in (1, 2):
        answer = await client.post("/admin/sync/trigger", json={"reason": "after the move"})
        assert answer.json()["result"] == times
    assert (await client.get("/sync/status")).json()["asked"] == replica.machine.state.cluster.syncs == 2
    assert (await client.post("/admin/sync/trigger")).json()["result"] == 3


async def test_a_champion_that_no_node_can_deliver_is_an_alarm(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    async def alarms() -> list[str]:
        found = (await client.get("/status")).json()["alarms"]
        return [alarm["sentence"] for alarm in found if alarm["kind"] == "unserved_champion"]

    assert f"first {CHAMPION[:12]} of hex8_2p" in (await alarms())[0]
    replica.run(AddHolder(CHAMPION, "w"))
    assert await alarms() == []


async def test_a_node_with_access_to_the_bucket_gets_a_file_for_whoever_asks(
    client: httpx.AsyncClient, services: Services, replica: MemoryReplica
) -> None:
    asked: list[str] = []

    def restore(digest: str) -> bool:
        asked.append(digest)
        return True

    services.restore = restore
    elsewhere = await client.get(f"/artifacts/{Y}")
    assert (elsewhere.status_code, asked) == (404, [])
    facts = PeerFacts(labels=(S3,))
    replica.run(JoinPeer("a", 1, "boot-a", "voter", "http://a:8770", facts))
    answer = await client.get(f"/artifacts/{Y}")
    assert (answer.status_code, answer.json()["code"], asked) == (503, "saturated", [Y])
    assert answer.headers["retry-after"]
