"""What operators, supervisors and Prometheus read."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ringrift_cluster.api.raft import health
from ringrift_cluster.api.services import AgentStatus, LoopStatus, Services
from statemachine.values import Beat
from tests.ringrift_cluster.api.conftest import CHAMPION, CONFIG
from tests.support.memory_replica import MemoryReplica

pytestmark = pytest.mark.anyio


async def test_the_status_page_has_the_fields_of_the_runbooks(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    page = (await client.get("/status")).json()
    assert (page["node_id"], page["role"], page["leader_id"]) == ("a", "leader", "a")
    assert page["leader_address"] == "http://10.0.0.1:8770"
    assert (page["alive_peers"], page["total_peers"], page["known_peers"]) == (1, 1, 1)
    assert page["uptime_seconds"] >= 0
    assert (page["selfplay_jobs"], page["training_jobs"]) == (1, 0)
    assert page["work_queue"]["by_status"]["pending"] == 1
    assert page["managers"]["job_manager"] == {
        "healthy": True,
        "jobs_active": 2,
        "last_pass": 1.7e9,
        "not_ready": "",
    }
    assert page["managers"]["sync_planner"]["healthy"] is True
    assert page["managers"]["selfplay_scheduler"]["configs_weighted"] == 1
    assert page["loops"]["placement"]["success_rate"] == 100.0
    assert page["event_subscription_status"]["all_healthy"] is True
    assert page["event_subscription_status"]["critical_failed"] == []
    assert page["voters"] == ["a", "b", "c"]
    assert page["digest"] == replica.machine.chain.hex()
    assert page["index"] == page["applied"] == replica.machine.index
    assert page["champions"] == {CONFIG: CHAMPION}
    assert page["totals"][CONFIG]["training_jobs"] == 2


async def test_a_part_that_fails_shows_on_the_status_page(client: httpx.AsyncClient, services: Services) -> None:
    services.agent = lambda: AgentStatus(healthy=False, not_ready="the disk is full")
    services.loops = lambda: {
        "population": LoopStatus(enabled=True, running=True, success_rate=40.0, last_error="no template")
    }
    page = (await client.get("/status")).json()
    assert page["event_subscription_status"]["critical_failed"] == ["daemon_events", "manager_events"]
    assert page["managers"]["job_manager"]["not_ready"] == "the disk is full"
    assert page["managers"]["selfplay_scheduler"]["healthy"] is False


async def test_health_does_not_depend_on_a_leader(client: httpx.AsyncClient, replica: MemoryReplica) -> None:
    replica.pretend(leader_id=None, role="candidate", ready=False)
    answer = await client.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")


async def test_health_fails_when_a_loop_stands_still_or_the_replica_stopped(
    client: httpx.AsyncClient, services: Services, replica: MemoryReplica
) -> None:
    services.pulse = lambda: {"consensus": 31.0, "http": 0.1}
    stalled = await client.get("/health")
    assert stalled.status_code == 503
    assert stalled.json()["problems"] == ["the consensus loop has not turned for 31.0 s"]
    services.pulse = dict
    replica.pretend(halted="the digest differs at 17")
    stopped = await client.get("/health")
    assert stopped.status_code == 503
    assert "the digest differs at 17" in stopped.json()["problems"][0]


async def test_readiness_gives_its_reason(
    client: httpx.AsyncClient, services: Services, replica: MemoryReplica
) -> None:
    ready = await client.get("/ready")
    assert (ready.status_code, ready.json()["ready"]) == (200, True)
    replica.pretend(ready=False)
    assert "caught up" in (await client.get("/ready")).json()["reason"]
    replica.pretend(leader_id=None)
    assert "no leader" in (await client.get("/ready")).json()["reason"]
    replica.pretend(halted="it diverged")
    assert "it diverged" in (await client.get("/ready")).json()["reason"]
    services.closing = lambda: True
    leaving = await client.get("/ready")
    assert (leaving.status_code, leaving.json()["reason"]) == (503, "this node is leaving")


async def test_metrics_are_what_prometheus_reads(client: httpx.AsyncClient, replica: MemoryReplica) -> None:
    await client.post("/work/cancel", json={"work_id": "none"})
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples["ringrift_is_leader",] == 1
    assert samples["ringrift_cluster_peers_alive",] == 1
    assert samples["ringrift_work_queue_pending",] == 1
    assert samples["ringrift_games_total", ("config", CONFIG)] == 0
    assert samples["ringrift_training_jobs_total", ("config", CONFIG)] == 2
    assert samples["ringrift_raft_applied_index",] == replica.machine.index
    assert samples["ringrift_raft_fsyncs_total",] == 7
    assert samples["ringrift_raft_turn_max_seconds",] == 0.002
    labels = (("method", "POST"), ("path", "/work/cancel"))
    assert samples["ringrift_api_requests_total", *labels, ("status", "404")] == 1
    assert samples["ringrift_api_seconds_count", *labels] == 1


async def test_the_champions_rating_is_exported_with_its_board(client: httpx.AsyncClient) -> None:
    match = {"kind": "match.record", "match": "m-9", "config": CONFIG}
    tally = {"seats_a": 1, "seats_b": 1, "wins_a": 15, "wins_b": 5, "draws": 0}
    result = {"a": f"{CHAMPION}@policy-only", "b": "random", "tally": [tally]}
    assert (await client.post("/elo/match", json={**match, "result": result})).status_code == 200
    text = (await client.get("/metrics")).text
    assert f'ringrift_best_elo{{board_type="hex8",config="{CONFIG}",num_players="2"}}' in text
    ranks = (await client.get(f"/elo/rankings?config={CONFIG}")).json()["configs"][CONFIG]
    champion = next(row for row in ranks if row["model"] == CHAMPION)
    assert champion["elo"] > 400
    assert (champion["status"], champion["anchored"]) == ("champion", True)


async def test_cluster_health_is_told_by_the_voters_that_are_heard(replica: MemoryReplica) -> None:
    status = replica.status()
    assert health(status) == "healthy"
    replica.pretend(voters_heard=("b",))
    assert health(replica.status()) == "partial"
    replica.pretend(voters_heard=())
    assert health(replica.status()) == "unavailable"
    replica.pretend(node_id="gpu-1", role="follower", voters_heard=("b",))
    assert health(replica.status()) == "healthy"
    replica.pretend(leader_id=None)
    assert health(replica.status()) == "unavailable"


async def test_a_heartbeat_is_answered_once_it_was_applied(
    client: httpx.AsyncClient, replica: MemoryReplica, beat: Beat
) -> None:
    replica.tick(50_000)
    assert (await client.get("/peers?status=alive")).json()["peers"] == []
    answer = await client.post("/heartbeat", json={"peer": beat.peer, "incarnation": beat.incarnation})
    assert answer.json() == {"peer": "gpu-1", "index": replica.machine.index}
    assert replica.machine.state.peers["gpu-1"].heard_at_ms == 50_000


@pytest.mark.parametrize(
    ("peer", "incarnation", "status", "code"),
    [("gpu-1", 1, 409, "stale_incarnation"), ("nobody", 1, 404, "not_found")],
)
async def test_a_heartbeat_that_is_not_taken_says_why(
    peer: str, incarnation: int, status: int, code: str, client: httpx.AsyncClient
) -> None:
    answer = await client.post("/heartbeat", json={"peer": peer, "incarnation": incarnation})
    assert (answer.status_code, answer.json()["code"]) == (status, code)


class Unscannable(dict[str, Any]):
    """A table that can be asked for a row, and for nothing that grows with its size."""

    def _refuse(self) -> Any:
        raise AssertionError("the table was scanned")

    __iter__ = keys = values = items = _refuse  # type: ignore[assignment]


@pytest.mark.parametrize("path", ["/status", "/progress", "/metrics", "/work/status", "/health", "/ready"])
async def test_pages_that_are_polled_scan_no_table(
    path: str, client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    state = replica.machine.state
    for name in ("work", "jobs", "peers", "artifacts", "models", "matches", "gauntlets", "events", "requests"):
        setattr(state, name, Unscannable(getattr(state, name)))
    assert (await client.get(path)).status_code == 200
