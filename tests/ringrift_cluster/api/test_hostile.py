"""Bodies, paths, ids and queries that nobody means well with: a clear 4xx, and nothing changes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import httpx
import msgspec
import pytest

from ringrift_cluster.api.services import Services
from ringrift_cluster.ranges import admit_range
from tests.support.memory_replica import MemoryReplica

pytestmark = pytest.mark.anyio

DEEP = 100_000
JSON = {"content-type": "application/json"}
PACKED = {"content-type": "application/msgpack"}


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (JSON, b"[" * DEEP),
        (JSON, b'{"x":' + b"[" * DEEP + b"]" * DEEP + b"}"),
        (JSON, b'{"params":{"x":' + b"[" * DEEP + b"]" * DEEP + b"}}"),
        (JSON, b'{"work_type":"\xff"}'),
        (JSON, b'{"work_type":"\\ud800"}'),
        (JSON, b'{"work_type":"a","priority":NaN}'),
        (JSON, b'{"work_type":"a","timeout_seconds":Infinity}'),
        (JSON, b'{"work_type":"a","timeout_seconds":1e999}'),
        (JSON, b'{"work_type":"a","priority":' + b"9" * 5000 + b"}"),
        (JSON, b'{"work_type":"a","work_id":"a\\u0000b"}'),
        (JSON, b'{"work_type":"a","work_id":"a\\nb"}'),
        (JSON, b'{"work_type":"a","work_id":"../../etc"}'),
        (JSON, b'{"work_type":"a\\u001b[2J"}'),
        (JSON, b"\xef\xbb\xbf{}"),
        (JSON, b"\x00"),
    ],
    ids=[
        *("deep", "deep unknown", "deep parameter", "no utf-8", "lone surrogate", "nan", "infinity", "1e999"),
        *("5000 digits", "nul in an id", "newline in an id", "dots in an id", "escape", "byte order mark", "nul"),
    ],
)
async def test_a_body_that_means_no_good_is_refused(
    headers: dict[str, str], body: bytes, client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    before = replica.machine.index
    answer = await client.post("/work/add", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid")
    assert replica.machine.index == before


@pytest.mark.parametrize("path", ["/propose", "/heartbeat"])
@pytest.mark.parametrize(
    "body",
    [
        b"\x91" * DEEP,
        b"\x81\xa1x" + b"\x91" * DEEP + b"\xc0",
        b"\xdd\xff\xff\xff\xff",
        b"\xa2\xff\xfe",
        b"\xc1",
        msgspec.msgpack.encode([b"\x82\xa1x" + b"\x91" * DEEP + b"\xc0"]),
        msgspec.msgpack.encode({"peer": "gpu-1", "incarnation": float("nan")}),
    ],
    ids=["deep", "deep unknown", "4 G items", "no utf-8", "reserved", "deep command", "nan"],
)
async def test_packed_bodies_are_refused_alike(
    path: str, body: bytes, client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    before = replica.machine.index
    answer = await client.post(path, content=body, headers=PACKED)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid")
    assert replica.machine.index == before


@pytest.mark.parametrize(
    "query",
    [
        *("wait=nan", "wait=inf", "wait=-1", "wait=1e9", "wait=%00", "index=-1", "index=" + "9" * 5000, "index=1_0"),
        *(
            "limit=0",
            "limit=99999999",
            "limit=1&limit=2",
            "nobody=1",
            "consistency=%FF",
            "&".join("a=1" for _ in "x" * 99),
        ),
    ],
)
async def test_a_query_that_means_no_good_is_refused(query: str, client: httpx.AsyncClient) -> None:
    answer = await client.get(f"/work?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid")


async def test_of_two_keys_of_one_name_in_a_body_the_last_one_counts(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    answer = await client.post("/work/add", content=b'{"work_type":"a","work_id":"x","work_id":"y"}')
    assert answer.status_code == 200
    assert "y" in replica.machine.state.work
    assert "x" not in replica.machine.state.work


@pytest.mark.parametrize(
    "path",
    [
        "/artifacts/../../etc/passwd",
        "/artifacts/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/artifacts/" + "a" * 64 + "%0A",
        "/artifacts/" + "A" * 64,
        "/artifacts/%00",
        "/jobs/..%2f..%2fnode/log",
        "/jobs/%00/log",
        "/jobs/sp-0.1/log?stream=../../../etc/passwd",
        "/settings/../secret",
        "/work/%ff%fe",
    ],
)
async def test_no_path_leads_out_of_the_node(path: str, client: httpx.AsyncClient, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("nobody reads this")
    answer = await client.get(path)
    assert answer.status_code in (400, 404)
    assert answer.headers["content-type"] == "application/problem+json"
    assert "nobody reads this" not in answer.text


class TestRanges:
    DATA = bytes(range(100))
    DIGEST = hashlib.sha256(DATA).hexdigest()

    @pytest.fixture(autouse=True)
    def stored(self, services: Services) -> None:
        writer = services.blobs.writer(1000)
        writer.write(self.DATA)
        writer.commit(self.DIGEST)

    @pytest.mark.parametrize(
        ("asked", "status", "length"),
        [
            ("bytes=0-9", 206, 10),
            ("bytes=90-", 206, 10),
            ("bytes=-5", 206, 5),
            ("bytes=0-" + "9" * 18, 206, 100),
            ("bytes=" + ",".join(f"{n}-{n}" for n in range(0, 100, 2)), 200, 100),
            ("bytes=0-" + "9" * 40, 200, 100),
            ("bytes=9-1", 200, 100),
            ("bytes=", 200, 100),
            ("lines=1-2", 200, 100),
            ("bytes=100-", 416, None),
            ("bytes=-0", 416, None),
        ],
    )
    async def test_one_plain_range_is_honoured_and_nothing_else(
        self, asked: str, status: int, length: int | None, client: httpx.AsyncClient
    ) -> None:
        answer = await client.get(f"/artifacts/{self.DIGEST}", headers={"range": asked})
        assert answer.status_code == status
        if length is None:
            assert answer.json()["code"] == "range_not_satisfiable"
        else:
            assert len(answer.content) == length

    async def test_two_range_headers_are_none(self) -> None:
        headers = [(b"range", b"bytes=0-1"), (b"range", b"bytes=2-3"), (b"host", b"x")]
        assert admit_range(headers, 10)
        assert headers == [(b"host", b"x")]


async def test_an_answer_shows_what_was_asked_for_as_text_only(client: httpx.AsyncClient) -> None:
    answer = await client.get("/<script>alert(1)</script>\u2028")
    assert answer.status_code == 404
    assert json.loads(answer.content)["code"] == "not_found"
    assert answer.headers["content-type"] == "application/problem+json"
