"""Two releases in one cluster: nothing is refused before the level is raised, and it waits for everybody."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from statemachine.commands import ChangeSetting, encode_command
from tests.support.cluster import NodeProcess, TestCluster, eventually
from tests.support.next_release import LEVEL, Salute

pytestmark = pytest.mark.cluster


class Next(NodeProcess):
    """A node of the next release."""

    def command(self) -> list[str]:
        return ["tests.support.next_release" if part == "ringrift_cluster" else part for part in super().command()]


def upgrade(cluster: TestCluster, name: str) -> None:
    old = cluster.nodes[name]
    assert old.terminate(60.0) == 0
    new = cluster.nodes[name] = Next(**{f.name: getattr(old, f.name) for f in fields(old)})
    new.start()
    eventually(lambda: new.get("/ready")["ready"], f"{name} to be ready", 60.0)


def salute(node: NodeProcess) -> httpx.Response:
    return propose(node, Salute("hello"))


def propose(node: NodeProcess, command: Any) -> httpx.Response:
    body = msgspec.msgpack.encode([encode_command(command)])
    return httpx.post(f"{node.url}/propose", content=body, headers={"content-type": "application/msgpack"}, timeout=15)


def noted(node: NodeProcess, note: str) -> httpx.Response:
    """Set what only the next release knows of a setting."""
    value = {"enabled": True, "note": note}
    return httpx.put(f"{node.url}/settings/controller/placement", json={"value": value}, timeout=15)


def raised(node: NodeProcess) -> httpx.Response:
    return node.post("/admin/feature-level", {"level": LEVEL})


@pytest.fixture
def mixed(tmp_path: Path) -> Iterator[TestCluster]:
    cluster = TestCluster(tmp_path, voters=3, followers=1, cpu_slots=0)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def test_a_rolling_upgrade_uses_nothing_new_before_every_node_can(mixed: TestCluster) -> None:
    written = 0

    def goes_on() -> None:
        nonlocal written
        for node in mixed.living():
            written += 1
            answer = node.post("/work/add", {"work_id": f"w{written}", "work_type": "upgrade"})
            assert answer.is_success, answer.text
        mixed.same_digest()

    old = mixed.nodes["v2"]
    assert "supports level 1" in raised(old).json()["detail"]
    for name in ("v1", "f1", "v3", "v2"):
        upgrade(mixed, name)
        goes_on()
        # The leader may be of either release: both keep the entry out that an older node could not read.
        refused = salute(mixed.nodes[name])
        assert not refused.is_success
        assert "needs feature level 2 and the cluster is at 1" in noted(mixed.nodes[name], "new").json()["detail"]
        assert noted(mixed.nodes[name], "").is_success
        # Where no door keeps it out of the log, the replicas refuse it alike.
        past_the_door = propose(mixed.nodes[name], ChangeSetting("controller/placement", '{"note":"new"}'))
        (result,) = msgspec.msgpack.decode(past_the_door.content)["results"]
        assert result["detail"] == "setting controller/placement: Object contains unknown field `note`"
        goes_on()
        told = raised(mixed.nodes[name])
        if name == "v2":
            break
        assert (told.status_code, "upgrade or remove it first" in told.text) == (409, True)

    def agreed() -> bool:
        answer = raised(mixed.nodes["v1"])
        return answer.is_success or "is 2, so the next one is 3" in answer.text

    eventually(agreed, "everybody to have said what it supports", 30.0)
    assert salute(mixed.nodes["f1"]).is_success
    assert noted(mixed.nodes["f1"], "new").is_success
    assert mixed.nodes["v1"].get("/settings/controller/placement")["value"]["note"] == "new"
    goes_on()
    assert {node.get("/status")["feature_level"] for node in mixed.living()} == {LEVEL}
