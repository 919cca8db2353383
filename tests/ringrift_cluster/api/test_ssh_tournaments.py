"""Tournaments on hosts over HTTP: what is queued, that it is queued once, what a run has come to, and its end."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import httpx
import pytest

from ringrift_cluster.api.app import create_app
from ringrift_cluster.api.services import Services
from statemachine import settings as st
from statemachine.commands import (
    AddWork,
    ChangeSetting,
    CompleteJob,
    CreateToken,
    FailJob,
    JoinPeer,
    PlaceWork,
    VoidMatch,
)
from statemachine.rows import Desired
from statemachine.values import MatchResult, PeerFacts, Scope, Tally
from tests.support.memory_replica import MemoryReplica

pytestmark = pytest.mark.anyio

RUN: dict[str, Any] = {"run_id": "r1", "board": "square8", "tiers": "D1-D3", "games_per_matchup": 10}
FACTS = PeerFacts(cpu_slots=4, labels=("ssh",))


@pytest.fixture(autouse=True)
def _hosts(replica: MemoryReplica) -> None:
    template = st.Template(("play", "{participant_a}", "{participant_b}"))
    replica.run(ChangeSetting("template/tournament", st.encode(template)))
    for name in ("h1", "h2"):
        host = st.Host(gateway="a", address="10.0.0.9", user="u")
        replica.run(ChangeSetting(f"host/{name}", st.encode(host)), JoinPeer(name, 1, name, "ssh", "http://a", FACTS))


async def start(client: httpx.AsyncClient, **more: Any) -> httpx.Response:
    return await client.post("/ssh_tournament/run", json=RUN | more)


async def status(client: httpx.AsyncClient, run_id: str = "r1") -> Any:
    return (await client.get(f"/ssh_tournament/status?run_id={run_id}")).json()


def fence(replica: MemoryReplica, work: str, peer: str) -> tuple[str, int]:
    replica.run(PlaceWork(work, peer, 1))
    job = replica.machine.state.jobs[replica.machine.state.work[work].job]
    return job.job, job.fence


async def test_each_pair_is_an_item_that_hosts_alone_may_take(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    answer = await start(client, seed=7, retries=1, job_timeout_sec=60, params={"mode": "fast"})
    body = answer.json()
    assert (answer.status_code, body["status"], body["matchups"], body["hosts"]) == (200, "started", 3, ["h1", "h2"])
    assert [(item["a"], item["b"], item["games"]) for item in body["items"]] == [
        ("D1", "D2", 10),
        ("D1", "D3", 10),
        ("D2", "D3", 10),
    ]
    spec = replica.machine.state.work["ssh-tournament/r1/2"].spec
    assert (spec.work_type, spec.config, spec.max_attempts, spec.timeout_ms) == ("tournament", "square8_2p", 2, 60_000)
    assert spec.needs
    assert (spec.needs.labels, spec.needs.peers) == (("ssh",), ())
    assert {"seed": "9", "mode": "fast", "board": "square8", "participant_a": "D2"}.items() <= spec.params.items()


async def test_the_same_run_again_adds_nothing_and_another_under_its_name_is_refused(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    await start(client)
    count = len(replica.machine.state.work)
    again = (await start(client)).json()
    assert (again["status"], len(replica.machine.state.work)) == ("repeated", count)
    other = await start(client, tiers="D1-D6")
    assert (other.status_code, other.json()["code"], len(replica.machine.state.work)) == (409, "conflict", count)


async def test_a_dry_run_shows_its_shards_and_adds_nothing(client: httpx.AsyncClient, replica: MemoryReplica) -> None:
    count = len(replica.machine.state.work)
    body = (await start(client, games_per_shard=4, dry_run=True, tiers=["x", "y"], hosts=["h2"])).json()
    assert (body["status"], body["hosts"], [item["games"] for item in body["items"]]) == ("planned", ["h2"], [4, 4, 2])
    assert len(replica.machine.state.work) == count
    assert (await client.get("/ssh_tournament/status?run_id=r1")).status_code == 404


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ({"hosts": ["h9"]}, 404, "hosts are h1, h2"),
        ({"template": "none"}, 404, "template/none"),
        ({"tiers": "D1"}, 400, "two or more"),
        ({"tiers": "D1,D1"}, 400, "different"),
        ({"tiers": ""}, 400, "two or more"),
        ({"participants": ["a", "b"]}, 400, "one of them"),
        ({"tiers": "D1-D100"}, 400, "4950 items"),
        ({"tiers": ",".join(["D0-D999"] * 100_000)}, 400, "at most 256 participants"),
        ({"tiers": "a,b" * 300}, 400, "at most 256 participants"),
        ({"games_per_shard": 1, "games_per_matchup": 10**6}, 400, "3000000 items"),
        ({"run_id": "a/b"}, 400, "run_id"),
        ({"max_parallel_per_host": 2}, 400, "max_parallel_per_host"),
    ],
)
async def test_a_bad_run_is_refused_with_what_is_wrong_and_adds_nothing(
    client: httpx.AsyncClient, replica: MemoryReplica, more: dict[str, Any], code: int, words: str
) -> None:
    before = replica.machine.index
    answer = await start(client, **more)
    assert (answer.status_code, replica.machine.index) == (code, before), answer.json()
    assert words in answer.json()["detail"]


async def test_results_are_added_up_once_and_items_say_why_they_are_where_they_are(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    await start(client, retries=1)
    first, second, third = (f"ssh-tournament/r1/{n}" for n in range(3))
    job = fence(replica, first, "h1")
    done = CompleteJob(*job, counts={"wins_a": 6, "draws": 1, "wins_b": 3})
    replica.run(done, done)
    job = fence(replica, second, "h1")
    replica.run(FailJob(*job, "user", "the engine crashed"))
    job = fence(replica, third, "h2")
    now = await status(client)
    assert (now["status"], now["by_status"]) == ("running", {"completed": 1, "pending": 1, "claimed": 1})
    assert (now["items_done"], now["games_done"], now["games_total"]) == (1, 10, 30)
    assert now["pairs"][0] == {"a": "D1", "b": "D2", "games": 10, "wins_a": 6, "draws": 1, "wins_b": 3}
    assert [row["participant"] for row in now["standings"]] == ["D1", "D2", "D3"]
    assert (now["standings"][0]["points"], now["standings"][1]["points"]) == (6.5, 3.5)
    assert [item.get("host") for item in now["items"]] == ["h1", "h1", "h2"]
    assert now["items"][1]["failed_on"] == ["h1"]
    assert "the engine crashed" in now["items"][1]["reason"]
    # A match in the table counts in place of the counts, from the side of the pair's first.
    match = MatchResult("D3", "D2", (Tally(1, 1, 7, 3, 0),))
    replica.run(CompleteJob(*job, match=match))
    assert (await status(client))["pairs"][2] == {
        "a": "D2", "b": "D3", "games": 10, "wins_a": 3, "draws": 0, "wins_b": 7
    }  # fmt: skip
    replica.run(VoidMatch(f"{job[0]}@{job[1]}", "a broken engine"))
    assert (await status(client))["pairs"][2]["games"] == 0


async def test_a_run_of_which_something_has_no_result_has_failed(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    await start(client, tiers="D1,D2", retries=0)
    replica.run(FailJob(*fence(replica, "ssh-tournament/r1/0", "h1"), "user", "no such board"))
    now = await status(client)
    assert (now["status"], now["items"][0]["status"]) == ("failed", "failed")
    assert "no such board" in now["items"][0]["reason"]


async def cancel(client: httpx.AsyncClient, **more: Any) -> httpx.Response:
    return await client.post("/ssh_tournament/cancel", json={"run_id": "r1"} | more)


async def test_a_cancelled_run_keeps_what_was_counted_and_its_jobs_are_told_to_stop(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    await start(client)
    await start(client, run_id="r10")
    state = replica.machine.state
    counted, running, waiting = (f"ssh-tournament/r1/{n}" for n in range(3))
    replica.run(CompleteJob(*fence(replica, counted, "h1"), counts={"wins_a": 6, "draws": 1, "wins_b": 3}))
    job, number = fence(replica, running, "h1")
    body = (await cancel(client, reason="the wrong model")).json()
    assert {name: body[name] for name in body if name != "index"} == {
        "run_id": "r1", "status": "cancelled", "cancelled": 2, "stopping": 1
    }  # fmt: skip
    assert state.jobs[job].desired is Desired.STOP
    assert state.work[waiting].reason == "the wrong model"
    assert list(replica.run(CompleteJob(job, number, counts={"wins_a": 9}))) == [{"published": False}]
    now = await status(client)
    assert (now["status"], now["by_status"], now["games_done"]) == ("cancelled", {"completed": 1, "cancelled": 2}, 10)
    assert (await status(client, "r10"))["by_status"] == {"pending": 3}


async def test_a_run_that_is_cancelled_again_or_is_over_is_left_as_it_is(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    await start(client, tiers="D1,D2")
    await cancel(client)
    before = len(replica.machine.state.events)
    again = (await cancel(client)).json()
    assert (again["status"], again["cancelled"], len(replica.machine.state.events)) == ("cancelled", 0, before)
    assert (await start(client, tiers="D1,D2")).json()["status"] == "repeated"
    assert (await status(client))["by_status"] == {"cancelled": 1}
    await start(client, tiers="D1,D2", run_id="r2")
    replica.run(CompleteJob(*fence(replica, "ssh-tournament/r2/0", "h1"), counts={"wins_a": 10}))
    over = (await cancel(client, run_id="r2")).json()
    assert (over["status"], over["cancelled"], (await status(client, "r2"))["games_done"]) == ("completed", 0, 10)
    assert (await cancel(client, run_id="r3")).status_code == 404


async def test_whoever_cancels_a_run_is_named_in_the_event_of_each_item(
    services: Services, replica: MemoryReplica, client: httpx.AsyncClient
) -> None:
    await start(client)
    replica.run(CreateToken("alice", Scope.SUBMIT, hashlib.sha256(b"secret").hexdigest()))
    transport = httpx.ASGITransport(app=create_app(dataclasses.replace(services, token="root")))
    bearer = {"authorization": "Bearer secret"}
    async with httpx.AsyncClient(transport=transport, base_url="http://node", headers=bearer) as door:
        assert (await cancel(door)).json()["cancelled"] == 3
    acts = [e.detail for e in replica.machine.state.events.values() if e.kind == "OperatorActed" and e.key == "alice"]
    assert [(a["act"], a["target"]) for a in acts] == [("work.cancel", f"ssh-tournament/r1/{n}") for n in range(3)]


async def test_an_item_that_only_looks_like_one_of_a_run_costs_nothing(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    for name, shards in (("x", "2000000000"), ("y", "abc"), ("z", "٣")):
        params = {"shards": shards, "games": "many", "participant_a": "a", "participant_b": "b"}
        replica.run(AddWork(f"ssh-tournament/{name}/0", "tournament", params=params))
        body = await status(client, name)
        assert (len(body["items"]), body["games_total"]) == (1, 0)
