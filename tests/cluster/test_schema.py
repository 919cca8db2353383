"""Requests made up from the OpenAPI document, right and wrong ones, against a running voter and a follower.

`make fuzz` runs the same with many more examples (`RINGRIFT_FUZZ_EXAMPLES`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as hs
from schemathesis import Case, GenerationMode, SerializationContext
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.cluster import TestCluster

pytestmark = pytest.mark.cluster

EXAMPLES = int(os.environ.get("RINGRIFT_FUZZ_EXAMPLES", "2"))
TOKEN = "the token of this test"
WITH_TOKEN = {"authorization": f"Bearer {TOKEN}"}
CHECKS = [status_code_conformance, content_type_conformance, response_headers_conformance, response_schema_conformance]
#: codes with which a node may answer 502, 503 and 504
UNAVAILABLE = {
    "no_leader", "stale", "read_only", "halted", "not_ready", "outcome_unknown", "unreachable", "no_channel",
}  # fmt: skip
#: they end the node, run what they are told to, or go on until the caller leaves, as they should
NOT_CALLED = {
    ("POST", "/admin/shutdown"),
    ("POST", "/admin/restart"),
    ("POST", "/workload/try"),
    ("GET", "/relay/channel"),
}


@schemathesis.serializer("application/msgpack")
def packed(context: SerializationContext, value: object) -> bytes:
    return value if isinstance(value, bytes) else msgspec.msgpack.encode(value, enc_hook=str)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCluster]:
    made = TestCluster(tmp_path_factory.mktemp("schema"), voters=1, followers=1, token=TOKEN)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def short(case: Case) -> Case:
    """The same request without its patience: what waits is another test's."""
    query: dict[str, Any] = dict(case.query or {})
    for name in ("wait", "timeout"):
        if isinstance(query.get(name), int | float) and query[name] > 0.2:
            query[name] = 0.2
    if query.get("follow") in (True, "true"):
        query["wait"] = 0.2
    case.query = query
    return case


def fuzz(url: str, modes: list[GenerationMode], examples: int, judge: Callable[[requests.Session, Case], None]) -> None:
    """Make up requests of these modes for every operation, and let `judge` send them and look at the answers."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", headers=WITH_TOKEN)
    schema.config.update(base_url=url)
    with requests.Session() as session:
        for result in schema.get_all_operations():
            operation = result.ok()
            if (operation.method.upper(), operation.path) in NOT_CALLED:
                continue
            cases = hs.one_of([operation.as_strategy(generation_mode=mode) for mode in modes])

            @seed(1)
            @settings(
                max_examples=examples,
                deadline=None,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=cases)
            def ask(case: Case) -> None:
                judge(session, short(case))

            ask()


def conforms(session: requests.Session, case: Case) -> None:
    answer = case.call(session=session, headers=WITH_TOKEN, timeout=10)
    if answer.status_code in (502, 503, 504):
        assert answer.json()["code"] in UNAVAILABLE, answer.text
    else:
        case.validate_response(answer, checks=[not_a_server_error])
    case.validate_response(answer, checks=CHECKS)


@pytest.mark.parametrize(("node", "examples"), [("v1", EXAMPLES), ("f1", EXAMPLES // 2)], ids=["voter", "follower"])
def test_no_request_makes_a_node_fail_and_every_answer_is_as_documented(
    cluster: TestCluster, node: str, examples: int
) -> None:
    fuzz(cluster.nodes[node].url, [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], examples, conforms)
    assert len(cluster.living()) == 2
    for one in cluster.living():
        assert one.get("/health")["healthy"], one.log
        assert "Traceback" not in one.log


def test_without_the_token_nothing_is_written(cluster: TestCluster) -> None:
    refused: list[int] = []

    def judge(session: requests.Session, case: Case) -> None:
        if case.method.upper() in ("GET", "HEAD"):
            return
        for headers in ({}, {"authorization": "Bearer wrong"}):
            answer = case.call(session=session, headers=headers, timeout=10)
            assert answer.status_code == 401, f"{case.method} {case.path} answered {answer.status_code}"
            refused.append(answer.status_code)

    # Beats, the clock and what is under way go on by themselves; what requests make is a row of these tables.
    tables = ("work", "models", "matches", "gauntlets", "artifacts", "tokens")
    voter = cluster.nodes["v1"]

    def made() -> list[object]:
        settings = voter.get("/state/dump?table=settings")["tables"]
        return [settings, *(set(voter.get(f"/state/dump?table={table}")["tables"][table]) for table in tables)]

    before = made()
    fuzz(voter.url, [GenerationMode.POSITIVE], EXAMPLES // 2, judge)
    assert refused
    assert made() == before
