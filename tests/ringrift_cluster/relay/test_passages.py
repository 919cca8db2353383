"""What passes through a channel, against everything that the face offers."""

from __future__ import annotations

import pytest

from ringrift_cluster.api.app import GROUPS
from ringrift_cluster.relay.passages import PASSAGES, passage
from statemachine.values import Scope

ENDPOINTS = {(e.method, e.template): e for group in GROUPS for e in group.endpoints}


@pytest.mark.parametrize("one", PASSAGES, ids=lambda p: f"{p.method} {p.template}")
def test_a_passage_asks_for_what_its_endpoint_asks_for(one: object) -> None:
    endpoint = ENDPOINTS[one.method, one.template]  # type: ignore[attr-defined]
    assert one.needs == (endpoint.scope or Scope.READ)  # type: ignore[attr-defined]


def test_no_other_endpoint_can_be_asked_through_a_channel() -> None:
    passing = {(p.method, p.template) for p in PASSAGES}
    names = {"job_id": "one.1", "node_id": "x", "digest": "ab" * 32, "name": "timing"}
    for method, template in ENDPOINTS:
        path = template
        for part in template.split("/"):
            if part.startswith("{"):
                path = path.replace(part, names.get(part[1:-1], "x"))
        found = passage(method, path)
        assert (found is not None) == ((method, template) in passing), (method, path)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/health"),
        ("get", "/health"),
        ("GET", "/health/"),
        ("GET", "/health\n"),
        ("GET", "//health"),
        ("GET", "http://elsewhere/health"),
        ("GET", "/jobs//log"),
        ("GET", "/jobs/a\x00b/log"),
        ("GET", "/jobs/one.1/log?follow=true\r\n"),
        ("POST", "/admin/shutdown/../election/start"),
    ],
)
def test_a_request_that_only_looks_like_one_does_not_pass(method: str, path: str) -> None:
    assert passage(method, path) is None
