"""The document is made from the declarations, so what it shows is what the routes do."""

from __future__ import annotations

import re
from typing import Any

import httpx
import msgspec
import pytest

from ringrift_cluster.api.app import GROUPS
from ringrift_cluster.api.endpoint import Endpoint
from ringrift_cluster.api.problems import MEDIA_TYPE, ProblemDocument
from tests.ringrift_cluster.api.conftest import CHAMPION, CONFIG

pytestmark = pytest.mark.anyio

ENDPOINTS = [endpoint for group in GROUPS for endpoint in group.endpoints]
ids = [f"{e.method} {e.template}" for e in ENDPOINTS]
#: things of the populated cluster, by path parameter
KNOWN = {
    "work_id": "sp-9",
    "job_id": "sp-0.1",
    "peer_id": "gpu-1",
    "node_id": "a",
    "answer_id": "0",
    "digest": CHAMPION,
    "name": f"config/{CONFIG}",
    "code": "stale_fence",
}
#: what a missing file or log is answered with, and what the examples run into on this cluster
EXPECTED = {
    "GET /artifacts/{digest}": 404,
    "GET /jobs/{job_id}/log": 404,
    "PUT /artifacts/{digest}": 422,
    "PUT /settings/{name}": 400,
    "POST /propose": 400,
    "POST /ssh_tournament/run": 404,
    "POST /ssh_tournament/cancel": 404,
    "GET /ssh_tournament/status": 400,
    "POST /work/start": 404,
    "POST /work/complete": 404,
    "POST /work/fail": 404,
    "POST /work/release": 404,
    "POST /work/stop": 404,
    "POST /work/cancel": 404,
    "POST /work/retry": 404,
    "POST /models/promote": 409,
    "POST /models/rollback": 409,
    "POST /elo/void": 404,
    "POST /admin/peers/remove": 409,
    "POST /admin/feature-level": 400,
    "POST /admin/shutdown": 202,
    "POST /admin/restart": 202,
    # Channels and trials want real ones: tests/ringrift_cluster/api/test_relay.py
    "GET /relay/channel": 400,
    "POST /relay/answers/{answer_id}": 404,
    "POST /workload/try": 404,
    # What changes voters needs real ones: tests/cluster/test_voters.py
    "POST /admin/voters/add": 503,
    "POST /admin/voters/remove": 503,
    "POST /raft/learn": 409,
    "POST /tokens/revoke": 404,
    "POST /tokens/join": 400,
}


@pytest.fixture
async def document(client: httpx.AsyncClient) -> dict[str, Any]:
    answer = await client.get("/openapi.json")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


async def test_every_route_is_in_the_document_and_nothing_else(document: dict[str, Any]) -> None:
    shown = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert shown == {(e.method, e.template) for e in ENDPOINTS}


async def test_every_operation_has_a_summary_a_description_and_a_tag_that_is_explained(
    document: dict[str, Any],
) -> None:
    tags = {tag["name"] for tag in document["tags"] if tag["description"]}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (method, path)
            assert operation["description"], (method, path)
            assert set(operation["tags"]) <= tags, (method, path)


async def test_every_operation_shows_its_bodies_with_schema_and_example(document: dict[str, Any]) -> None:
    for endpoint in ENDPOINTS:
        operation = document["paths"][endpoint.template][endpoint.method.lower()]
        if endpoint.method in ("POST", "PUT") and not endpoint.query:
            assert "requestBody" in operation, endpoint.path
        for content in operation.get("requestBody", {}).get("content", {}).values():
            assert content["schema"]
        if endpoint.bodies:
            assert operation["requestBody"]["content"]["application/json"]["example"]
        first = operation["responses"][str(endpoint.statuses[0])]["content"]
        assert first, endpoint.path
        if endpoint.answers:
            assert first["application/json"]["schema"]
            assert "example" in first["application/json"]


async def test_every_operation_names_its_errors_as_problem_documents(document: dict[str, Any]) -> None:
    for methods in document["paths"].values():
        for operation in methods.values():
            failures = {s: r for s, r in operation["responses"].items() if int(s) >= 400}
            assert failures
            for answer in failures.values():
                assert MEDIA_TYPE in answer["content"]


async def test_every_reference_in_the_document_leads_somewhere(document: dict[str, Any]) -> None:
    names = set(re.findall(r"#/components/schemas/([A-Za-z0-9_.]+)", msgspec.json.encode(document).decode()))
    assert names <= set(document["components"]["schemas"])


async def test_path_parameters_of_the_document_are_those_of_the_handlers(document: dict[str, Any]) -> None:
    for endpoint in ENDPOINTS:
        parameters = document["paths"][endpoint.template][endpoint.method.lower()]["parameters"]
        assert {p["name"] for p in parameters if p["in"] == "path"} == set(endpoint.path_arguments)


@pytest.mark.parametrize("endpoint", [e for e in ENDPOINTS if e.bodies], ids=lambda e: e.template)
def test_the_example_of_a_body_is_one_that_the_route_takes(endpoint: Endpoint) -> None:
    raw = msgspec.json.encode(endpoint.example)
    if endpoint.decode is not None:
        assert endpoint.decode(raw) == endpoint.example
    else:
        assert msgspec.json.encode(msgspec.json.decode(raw, type=endpoint.bodies[0])) == raw


@pytest.mark.parametrize("endpoint", [e for e in ENDPOINTS if e.answers], ids=lambda e: f"{e.method} {e.template}")
def test_the_example_of_an_answer_has_the_type_of_the_answer(endpoint: Endpoint) -> None:
    assert type(endpoint.answer) in endpoint.answers
    raw = msgspec.json.encode(endpoint.answer)
    assert msgspec.json.encode(msgspec.json.decode(raw, type=type(endpoint.answer))) == raw


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=ids)
async def test_every_route_answers_as_it_says(endpoint: Endpoint, client: httpx.AsyncClient) -> None:
    path = endpoint.template.format(**KNOWN)
    body = msgspec.json.encode(endpoint.example) if endpoint.bodies else b""
    answer = await client.request(endpoint.method, path, content=body)
    name = f"{endpoint.method} {endpoint.template}"
    assert answer.status_code == EXPECTED.get(name, 200), answer.text
    assert int(answer.headers["ringrift-index"]) > 0
    if answer.status_code >= 400:
        problem = msgspec.json.decode(answer.content, type=ProblemDocument)
        assert answer.headers["content-type"] == MEDIA_TYPE
        assert problem.status == answer.status_code
        assert problem.instance == path
        return
    assert answer.status_code in endpoint.statuses
    media = answer.headers["content-type"].partition(";")[0]
    if endpoint.answers:
        assert media == "application/json"
        msgspec.json.decode(answer.content, type=type(endpoint.answer))
    else:
        assert media in endpoint.produces


async def test_head_is_answered_like_get_without_a_body(client: httpx.AsyncClient) -> None:
    get = await client.get("/election/leader")
    head = await client.head("/election/leader")
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == get.headers["content-length"]
