"""The queue over HTTP: what an old client sends, and what a worker needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx
import msgspec
import pytest

from ringrift_cluster.api import problems
from ringrift_cluster.api.services import Services
from ringrift_cluster.api.views import SCAN_ROWS
from ringrift_cluster.replica import Busy, NoLeader, Proposed, ReplicaError
from statemachine.commands import AddWork, RestartJob, decode_command
from statemachine.rows import WorkStatus
from tests.support.memory_replica import MemoryReplica

pytestmark = pytest.mark.anyio


async def test_one_item_is_queued_with_the_fields_of_the_old_clients(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    answer = await client.post(
        "/work/add",
        json={
            "work_type": "gpu_cmaes",
            "priority": 70,
            "config": {"board_type": "square8", "num_players": 3, "sigma": 0.5, "elite": True},
            "timeout_seconds": 90.5,
            "depends_on": ["sp-9"],
        },
    )
    assert answer.status_code == 200
    made = answer.json()
    assert (made["status"], made["config"], made["priority"]) == ("added", "square8_3p", 70)
    spec = replica.machine.state.work[made["work_id"]].spec
    assert spec.params == {"sigma": "0.5", "elite": "true"}
    assert (spec.timeout_ms, spec.depends_on) == (90_500, ("sp-9",))


async def test_the_config_is_its_key_or_its_board_and_seats(client: httpx.AsyncClient) -> None:
    for fields, config in (
        ({"config": "hex8_2p"}, "hex8_2p"),
        ({"board_type": "hex8", "num_players": 4}, "hex8_4p"),
        ({"config": {"config_key": "hex8_3p"}}, "hex8_3p"),
        ({}, ""),
    ):
        made = (await client.post("/work/add", json={"work_type": "export", **fields})).json()
        assert made.get("config", "") == config
    answer = await client.post("/work/add", json={"work_type": "export", "board_type": "hex8"})
    assert answer.status_code == 400
    assert "num_players" in answer.json()["detail"]


@pytest.mark.parametrize("error", [NoLeader, Busy])
async def test_a_call_that_lost_its_leader_between_two_entries_does_not_say_that_nothing_changed(
    error: type[ReplicaError], client: httpx.AsyncClient, replica: MemoryReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def only_once(commands: Sequence[bytes], *, timeout_s: float = 10.0) -> Proposed:
        if replica.refusing is not None:
            raise replica.refusing
        replica.refusing = error("not now")
        return replica.commit(commands)

    items = [{"work_type": "export", "work_id": f"two-entries-{n}"} for n in range(501)]
    with monkeypatch.context() as patch:
        patch.setattr(replica, "propose", only_once)
        answer = await client.post("/work/add", json=items)
    assert (answer.status_code, answer.json()["code"]) == (504, "outcome_unknown")
    assert "first 500 commands" in answer.json()["detail"]
    # Nothing was committed: then it is said so.
    answer = await client.post("/work/add", json=items)
    assert answer.json()["code"] == problems.REPLICA_CODES[error]
    replica.refusing = None
    again = (await client.post("/work/add", json=items)).json()
    assert [again["results"][n].get("repeat", False) for n in (0, 499, 500)] == [True, True, False]


async def test_numbers_become_their_shortest_decimal_text(client: httpx.AsyncClient, replica: MemoryReplica) -> None:
    params = {"a": 1, "b": 0.1, "c": 1e-7, "d": True, "e": "as it is", "f": -3}
    await client.post("/work/add", json={"work_type": "export", "work_id": "p", "params": params})
    assert replica.machine.state.work["p"].spec.params == {
        "a": "1",
        "b": "0.1",
        "c": "1e-07",
        "d": "true",
        "e": "as it is",
        "f": "-3",
    }


@pytest.mark.parametrize("wrap", [lambda items: items, lambda items: {"items": items}], ids=["list", "object"])
async def test_many_items_are_answered_one_by_one(wrap: Any, client: httpx.AsyncClient) -> None:
    items = [
        {"work_type": "export", "work_id": "many-1"},
        {"work_type": "export", "work_id": "many-2", "template": "unknown"},
        {"work_type": "export", "work_id": "many-1"},
    ]
    answer = (await client.post("/work/add", json=wrap(items))).json()
    assert (answer["status"], answer["count"], answer["rejected"]) == ("partial", 2, 1)
    assert [r["status"] for r in answer["results"]] == ["added", "rejected", "added"]
    assert answer["results"][1]["code"] == "invalid"
    assert answer["results"][2]["repeat"] is True


async def test_a_call_takes_at_least_one_and_at_most_a_thousand_items(client: httpx.AsyncClient) -> None:
    thousand = [{"work_type": f"t{n % 10}", "work_id": f"n-{n}"} for n in range(1000)]
    answer = await client.post("/work/add", json=thousand)
    assert answer.json()["count"] == 1000
    for items in ([], [*thousand, {"work_type": "t"}]):
        refused = await client.post("/work/add", json=items)
        assert refused.status_code == 400
        assert "1 to 1000" in refused.json()["detail"]


async def test_items_too_big_for_one_proposal_travel_in_several(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    before = replica.machine.index
    items = [{"work_type": "export", "work_id": f"big-{n}", "params": {"p": "x" * 4000}} for n in range(300)]
    answer = await client.post("/work/add", json=items)
    assert answer.json()["count"] == 300
    assert replica.machine.index - before == 4
    assert [r["work_id"] for r in answer.json()["results"]] == [f"big-{n}" for n in range(300)]


async def test_adding_the_same_item_again_adds_nothing(client: httpx.AsyncClient) -> None:
    item = {"work_type": "export", "work_id": "twice"}
    first = (await client.post("/work/add", json=item)).json()
    second = (await client.post("/work/add", json=item)).json()
    assert "repeat" not in first
    assert second["repeat"] is True
    other = await client.post("/work/add", json={**item, "priority": 1})
    assert (other.status_code, other.json()["code"]) == (409, "conflict")


async def test_a_made_up_id_follows_the_request_id(client: httpx.AsyncClient, replica: MemoryReplica) -> None:
    headers = {"Request-Id": "r-77"}
    before = len(replica.machine.state.work)
    first = (await client.post("/work/add", json={"work_type": "export"}, headers=headers)).json()
    second = (await client.post("/work/add", json={"work_type": "export"}, headers=headers)).json()
    assert first["work_id"] == second["work_id"] == "export-r-77.0"
    assert len(replica.machine.state.work) == before + 1


async def test_what_reaches_the_log_is_what_the_law_can_decode(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    replica.proposed.clear()
    await client.post("/work/add", json={"work_type": "export", "work_id": "wire"})
    refused = await client.post("/work/add", json={"work_type": "export", "config": "x" * 65})
    assert refused.status_code == 400
    (only,) = map(decode_command, replica.proposed)
    assert isinstance(only, AddWork)
    assert only.work == "wire"


async def test_many_completions_in_one_call_are_answered_one_by_one(client: httpx.AsyncClient) -> None:
    await client.post("/work/add", json=[{"work_type": "bulk", "work_id": f"bulk-{n}"} for n in range(3)])
    claim = {"node_id": "w-1", "work_types": ["bulk"], "max_items": 3}
    granted = (await client.post("/work/claim", json=claim)).json()["items"]
    assert len(granted) == 3
    for grant in granted:
        await client.post("/work/start", json={"job": grant["job"], "fence": grant["fence"]})
    done = [{"job": grant["job"], "fence": grant["fence"], "counts": {"games": 1}} for grant in granted]
    done[1]["fence"] -= 1
    answer = await client.post("/work/complete", json=done)
    assert answer.status_code == 200
    made = answer.json()
    assert [r.get("code", "") for r in made["results"]] == ["", "stale_fence", ""]
    assert made["rejected"] == 1
    assert (await client.post("/work/complete", json=[])).status_code == 400


async def test_a_worker_claims_starts_renews_and_completes(client: httpx.AsyncClient, replica: MemoryReplica) -> None:
    await client.post("/work/add", json={"work_type": "selfplay", "work_id": "job-1", "params": {"games": 5}})
    claim = {"node_id": "w-1", "claim_id": "c-1", "capabilities": ["selfplay"], "max_items": 4}
    claimed = (await client.post("/work/claim", json=claim)).json()
    assert (claimed["status"], claimed["claim_id"]) == ("claimed", "c-1")
    grant = next(g for g in claimed["items"] if g["work"] == "job-1")
    assert grant["params"] == {"games": "5"}
    assert claimed["work"] == claimed["items"][0]
    again = (await client.post("/work/claim", json=claim)).json()
    assert again["items"] == claimed["items"]

    fenced = {"job": grant["job"], "fence": grant["fence"]}
    assert (await client.post("/work/start", json=fenced)).json()["result"] == "run"
    renewed = await client.post("/work/renew", json={"jobs": [{**fenced, "counts": {"games": 2}}]})
    assert renewed.json()["result"] == {"over": [], "stop": []}
    done = await client.post("/work/complete", json={**fenced, "counts": {"games": 5}})
    assert done.json()["result"] == {"published": True}
    repeated = await client.post("/work/complete", json={**fenced, "counts": {"games": 5}})
    assert repeated.json()["result"] == {"published": True, "repeat": True}
    assert replica.machine.state.work["job-1"].status is WorkStatus.COMPLETED


async def test_nothing_to_claim_is_no_error(client: httpx.AsyncClient) -> None:
    answer = await client.post("/work/claim", json={"node_id": "w-1", "work_types": ["tournament"]})
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["work"], answer.json()["items"]) == ("no_work_available", None, [])


async def test_a_report_under_an_old_fence_is_refused(client: httpx.AsyncClient, replica: MemoryReplica) -> None:
    job = replica.machine.state.jobs["sp-0.1"]
    for path, more in (
        ("/work/start", {}),
        ("/work/complete", {"counts": {"games": 1}}),
        ("/work/fail", {"error_class": "user", "error": "x"}),
        ("/work/release", {"reason": "x"}),
    ):
        answer = await client.post(path, json={"job": job.job, "fence": job.fence + 1, **more})
        assert (answer.status_code, answer.json()["code"]) == (409, "stale_fence"), path


async def test_a_failure_and_a_release_say_where_the_item_went(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    job = replica.machine.state.jobs["sp-0.1"]
    fenced = {"job": job.job, "fence": job.fence}
    released = await client.post("/work/release", json={**fenced, "reason": "no room"})
    assert released.json()["result"] == "pending"
    refused = await client.post("/work/fail", json={**fenced, "error_class": "user", "error": ""})
    assert refused.status_code == 400
    assert "$.error" in refused.json()["detail"]


async def test_cancel_and_retry(client: httpx.AsyncClient, replica: MemoryReplica) -> None:
    cancelled = await client.post("/work/cancel", json={"work_id": "sp-9", "reason": "superseded"})
    assert cancelled.json()["result"] == "cancelled"
    shown = (await client.get("/work/sp-9")).json()
    assert (shown["work"]["status"], shown["why"]["sentence"]) == ("cancelled", "superseded")
    retried = await client.post("/work/retry", json={"work_id": "sp-9", "reason": "after all"})
    assert retried.json()["result"] == "pending"


async def test_a_retry_under_a_request_id_happens_once(client: httpx.AsyncClient, replica: MemoryReplica) -> None:
    retry = {"work_id": "sp-9", "request_id": "r-1"}
    await client.post("/work/cancel", json={"work_id": "sp-9"})
    first = await client.post("/work/retry", json=retry)
    await client.post("/work/cancel", json={"work_id": "sp-9"})
    repeated = await client.post("/work/retry", json=retry)
    assert first.json()["result"] == repeated.json()["result"] == "pending"
    assert replica.machine.state.work["sp-9"].status is WorkStatus.CANCELLED


async def test_a_request_id_is_forgotten_after_ten_minutes_of_the_cluster_clock(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    await client.post("/work/cancel", json={"work_id": "sp-9"})
    await client.post("/work/retry", json={"work_id": "sp-9"}, headers={"Request-Id": "r-1"})
    (row,) = replica.machine.state.requests.values()
    assert row.expires_at_ms == 600_000
    replica.tick(600_001)
    assert not replica.machine.state.requests


async def test_pending_items_come_best_first(client: httpx.AsyncClient) -> None:
    for priority in (10, 90):
        await client.post("/work/add", json={"work_type": "export", "work_id": f"p{priority}", "priority": priority})
    listed = (await client.get("/work/pending")).json()
    assert [row["spec"]["work"] for row in listed["items"]] == ["p90", "sp-9", "p10"]
    assert listed["total"] == 3
    typed = (await client.get("/work/pending?work_type=selfplay")).json()
    assert [row["spec"]["work"] for row in typed["items"]] == ["sp-9"]


async def test_items_are_listed_newest_first_page_by_page(client: httpx.AsyncClient) -> None:
    for number in range(7):
        await client.post("/work/add", json={"work_type": "export", "work_id": f"n-{number}"})
    seen: list[str] = []
    after = ""
    while True:
        page = (await client.get("/work", params={"work_type": "export", "limit": 3, "after": after})).json()
        assert len(page["items"]) <= 3
        seen += [row["spec"]["work"] for row in page["items"]]
        after = page["next"]
        if not after:
            break
    assert seen == [f"n-{number}" for number in reversed(range(7))]


async def test_a_cursor_whose_row_is_gone_says_so(client: httpx.AsyncClient) -> None:
    answer = await client.get("/work?after=long-gone")
    assert (answer.status_code, answer.json()["code"]) == (410, "request_expired")


async def test_items_are_filtered_by_status_type_and_config(client: httpx.AsyncClient) -> None:
    async def listed(query: str) -> set[str]:
        return {row["spec"]["work"] for row in (await client.get(f"/work?{query}")).json()["items"]}

    assert await listed("status=claimed,running") == {"sp-0"}
    assert await listed("status=pending") == {"sp-9"}
    assert await listed("status=completed") == {"t-0", "t-1"}
    assert await listed("work_type=training&config=hex8_2p") == {"t-0", "t-1"}
    assert await listed("config=none") == set()


async def test_an_item_says_why_it_waits(client: httpx.AsyncClient) -> None:
    await client.post("/work/add", json={"work_type": "export", "work_id": "late", "depends_on": ["sp-9"]})
    shown = (await client.get("/work/late")).json()
    assert shown["why"]["reasons"][0]["code"] == "dependency"
    assert "sp-9" in shown["why"]["sentence"]
    assert shown["job"] is None
    live = (await client.get("/work/sp-0")).json()
    assert live["job"]["job"] == "sp-0.1"


async def test_an_item_shows_its_attempts_newest_first(client: httpx.AsyncClient, replica: MemoryReplica) -> None:
    for number in range(3):
        claim = {"node_id": f"w-{number}", "work_types": ["selfplay"], "max_items": 9}
        claimed = (await client.post("/work/claim", json=claim)).json()
        grant = next(item for item in claimed["items"] if item["work"] == "sp-9")
        await client.post("/work/release", json={"job": grant["job"], "fence": grant["fence"], "reason": "x"})
        replica.tick(700_000)
    shown = (await client.get("/work/sp-9")).json()
    assert [job["job"] for job in shown["jobs"]] == ["sp-9.3", "sp-9.2", "sp-9.1"]


async def test_a_job_shows_how_often_its_program_was_started_again(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    job = replica.machine.state.jobs["sp-0.1"]
    assert "restarts" not in (await client.get("/jobs/sp-0.1")).json()["job"]
    replica.run(RestartJob(job.job, job.fence, 2, "cuda", "CUDA error: lost"))
    shown = (await client.get("/jobs/sp-0.1")).json()["job"]["restarts"]
    assert (shown["count"], shown["error_class"], shown["error"]) == (2, "cuda", "CUDA error: lost")
    why = (await client.get("/work/sp-0")).json()["why"]["sentence"]
    assert "failed there 2 times" in why


async def test_a_request_id_that_is_no_id_is_refused(client: httpx.AsyncClient) -> None:
    for path, body in (
        ("/work/add", {"work_type": "export"}),
        ("/work/retry", {"work_id": "sp-9"}),
        ("/work/claim", {"node_id": "w"}),
    ):
        answer = await client.post(path, json=body, headers={"Request-Id": "no id !"})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid"), path


async def test_ids_with_slashes_are_found(client: httpx.AsyncClient) -> None:
    await client.post("/work/add", json={"work_type": "export", "work_id": "team/a/1"})
    assert (await client.get("/work/team/a/1")).json()["work"]["spec"]["work"] == "team/a/1"


async def test_the_queue_at_a_glance_counts_and_shows(client: httpx.AsyncClient) -> None:
    for path in ("/work/status", "/work_queue_status"):
        view = (await client.get(path)).json()
        assert view["by_status"]["pending"] == 1
        assert view["total_items"] == 4
        assert [row["spec"]["work"] for row in view["running"]] == ["sp-0"]
        assert view["is_leader"] is True


async def test_bodies_may_be_msgpack(client: httpx.AsyncClient, services: Services) -> None:
    body = msgspec.msgpack.encode({"work_id": "sp-9"})
    answer = await client.post("/work/cancel", content=body, headers={"content-type": "application/msgpack"})
    assert answer.json()["result"] == "cancelled"


async def test_a_search_through_many_items_goes_on_where_a_short_page_ended(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    for at in range(0, SCAN_ROWS + 500, 500):
        items = [{"work_type": f"t{at}", "work_id": f"m-{at + k}"} for k in range(500)]
        await client.post("/work/add", json=items)
    first = (await client.get("/work?work_type=training")).json()
    assert first["items"] == []
    assert first["next"]
    second = (await client.get("/work", params={"work_type": "training", "after": first["next"]})).json()
    assert [row["spec"]["work"] for row in second["items"]] == ["t-1", "t-0"]
    assert second["next"] == ""
