"""One table says how every refusal leaves, and nothing leaves that is not in it."""

from __future__ import annotations

import httpx
import msgspec
import pytest

from ringrift_cluster import replica as rp
from ringrift_cluster.api import problems
from ringrift_cluster.api.app import create_app
from ringrift_cluster.api.problems import MEDIA_TYPE, ProblemDocument
from ringrift_cluster.api.services import Services
from statemachine.commands import PauseCluster
from statemachine.errors import Code, Rejected
from tests.support.memory_replica import MemoryReplica

pytestmark = pytest.mark.anyio

REPLICA_STATUS = {
    rp.ChangeRefused: 409,
    rp.NoLeader: 503,
    rp.Busy: 429,
    rp.TooLarge: 413,
    rp.OutcomeUnknown: 504,
    rp.Stale: 503,
    rp.ReadOnly: 503,
    rp.Halted: 503,
}
CODE_STATUS = {
    Code.NOT_FOUND: 404,
    Code.CONFLICT: 409,
    Code.STALE_FENCE: 409,
    Code.STALE_INCARNATION: 409,
    Code.ILLEGAL_TRANSITION: 409,
    Code.INVALID: 400,
    Code.LIMIT: 429,
    Code.EXPIRED: 410,
    Code.PAUSED: 423,
    Code.INELIGIBLE: 409,
    Code.EVIDENCE: 412,
    Code.INTERNAL: 500,
}
ITEM = {"work_type": "selfplay", "work_id": "w"}


def problem_of(answer: httpx.Response) -> ProblemDocument:
    assert answer.headers["content-type"] == MEDIA_TYPE
    found = msgspec.json.decode(answer.content, type=ProblemDocument)
    assert found.status == answer.status_code
    assert found.type == f"/problems/{found.code}"
    return found


def test_every_code_of_the_law_is_in_the_table() -> None:
    assert {code: problems.TABLE[code].status for code in Code} == CODE_STATUS


def test_every_replica_error_is_in_the_table() -> None:
    assert set(problems.REPLICA_CODES) == set(rp.ReplicaError.__subclasses__()) == set(REPLICA_STATUS)
    assert set(problems.REPLICA_CODES.values()) <= set(problems.TABLE)


def test_a_code_of_a_newer_release_is_told_as_a_conflict() -> None:
    found = problems.of_rejection(Rejected("from_the_future", "it says so"))
    assert (found.code, found.detail) == (Code.CONFLICT, "it says so")


@pytest.mark.parametrize("kind", REPLICA_STATUS, ids=lambda kind: kind.__name__)
async def test_a_replica_error_leaves_with_its_status_and_sentence(
    kind: type[rp.ReplicaError], client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    replica.refusing = kind("the reason, in a sentence")
    answer = await client.post("/work/add", json=ITEM)
    found = problem_of(answer)
    assert answer.status_code == REPLICA_STATUS[kind]
    assert found.code == problems.REPLICA_CODES[kind]
    assert found.detail == "the reason, in a sentence"


@pytest.mark.parametrize("kind", [rp.NoLeader, rp.Busy, rp.Stale])
async def test_what_passes_by_itself_says_when_to_come_back(
    kind: type[rp.ReplicaError], client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    replica.refusing = kind("later")
    answer = await client.post("/work/add", json=ITEM)
    assert int(answer.headers["retry-after"]) >= 1


async def test_a_node_that_does_not_lead_names_the_leader_and_its_address(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    replica.pretend(role="voter", leader_id="b")
    replica.refusing = rp.Busy("too much at once")
    answer = await client.post("/work/add", json=ITEM)
    assert answer.headers["ringrift-leader"] == "b"
    leader = problem_of(answer).leader
    assert leader is not None
    assert (leader.node_id, leader.address) == ("b", "http://10.0.0.2:8770")


async def test_a_refusal_of_the_law_leaves_with_its_own_code(client: httpx.AsyncClient, replica: MemoryReplica) -> None:
    replica.run(PauseCluster(paused=True, reason="power work"))
    answer = await client.post("/work/claim", json={"node_id": "w-1"})
    assert answer.status_code == 423
    assert problem_of(answer).code == Code.PAUSED
    assert "power work" in problem_of(answer).detail


async def test_an_unknown_path_and_a_wrong_method_are_problems_too(client: httpx.AsyncClient) -> None:
    missing = await client.get("/nowhere")
    assert (missing.status_code, problem_of(missing).code) == (404, "not_found")
    wrong = await client.put("/status")
    assert (wrong.status_code, problem_of(wrong).code) == (405, "method_not_allowed")


@pytest.mark.parametrize("path", ["/progress", "/work/sp-9"])
async def test_a_mistake_of_this_node_is_told_without_its_insides(path: str, services: Services) -> None:
    class Broken(MemoryReplica):
        async def read(self, *args: object, **more: object) -> rp.Read[object]:  # type: ignore[override]
            raise RuntimeError("a secret of the inside")

    services.replica = Broken()
    transport = httpx.ASGITransport(app=create_app(services), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
        answer = await client.get(path)
    assert (answer.status_code, problem_of(answer).code) == (500, "unexpected")
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"work_type": "selfplay", "priority": "high"}, "$.priority"),
        ({"work_type": "selfplay", "colour": 1}, "colour"),
        ({"work_type": "no spaces"}, "$.work_type"),
        ({}, "work_type"),
        ([{"work_type": "selfplay"}, {"work_type": "selfplay", "max_attempts": 0}], "$[1].max_attempts"),
        ({"items": [{"work_type": "selfplay", "ttl_seconds": -1}]}, "$.items[0].ttl_seconds"),
        ({"work_type": "selfplay", "params": {"a": [1]}}, "$.params[...]"),
        ({"work_type": "selfplay", "params": {"a": "x" * 5000}}, "$.params"),
    ],
)
async def test_a_bad_body_names_the_field(body: object, field: str, client: httpx.AsyncClient) -> None:
    answer = await client.post("/work/add", json=body)
    assert (answer.status_code, problem_of(answer).code) == (400, "invalid")
    assert field in problem_of(answer).detail


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=many", "limit"),
        ("wait=61", "wait"),
        ("consistency=perfect", "consistency"),
        ("status=lost", "lost"),
        ("unknown=1", "unknown"),
        ("&".join(f"a{n}=1" for n in range(100)), "query"),
    ],
)
async def test_a_bad_query_names_the_parameter(query: str, field: str, client: httpx.AsyncClient) -> None:
    answer = await client.get(f"/work?{query}")
    assert (answer.status_code, problem_of(answer).code) == (400, "invalid")
    assert field in problem_of(answer).detail


async def test_what_is_no_json_at_all_is_refused(client: httpx.AsyncClient) -> None:
    for content in (b"", b"{", b"\xff\xfe", b'{"work_type": "\xed\xa0\x80"}'):
        answer = await client.post("/work/add", content=content)
        assert (answer.status_code, problem_of(answer).code) == (400, "invalid"), content


async def test_the_table_can_be_read_where_the_types_point(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/problems")).json()["problems"]
    assert {row["code"] for row in listed} == {str(code) for code in problems.TABLE}
    one = (await client.get("/problems/stale_fence")).json()
    assert one["status"] == 409
    assert (await client.get("/problems/none")).status_code == 404


async def test_a_name_with_a_line_break_is_a_wrong_name_and_not_an_unknown_path(client: httpx.AsyncClient) -> None:
    refused = await client.put("/settings/%0Ax", json={"value": {}})
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid")
    for path in ("/settings/a%0Ab", "/work/%0A", "/peers/a%0A", "/jobs/%0Ab", "/jobs/%0A/log"):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert "is served" not in answer.json()["detail"]


async def test_a_text_of_the_wrong_form_is_refused_in_words(client: httpx.AsyncClient) -> None:
    told = problem_of(await client.post("/work/add", json={"work_type": "self play"}))
    assert told.detail == (
        "the body: Expected a name (letters, digits and . _ : @ / + -, the first a letter or digit) - at `$.work_type`"
    )
    item = {"work_type": "selfplay", "inputs": [{"name": "net", "digest": "abc"}]}
    told = problem_of(await client.post("/work/add", json=item))
    assert told.detail.startswith("the body: Expected a sha256 (64 digits of lower-case hex) - at ")
