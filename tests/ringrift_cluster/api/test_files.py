"""Files and logs over HTTP: ranges, uploads that are verified, logs of jobs on other nodes."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest

from executors.blobs import Blobs
from executors.folder import file_name
from executors.pace import Pace
from executors.uploads import ABANDONED_S, InUse, Uploads
from ringrift_cluster.api.app import create_app
from ringrift_cluster.api.passing import Forward
from ringrift_cluster.api.services import ApiLimits, Services
from ringrift_cluster.relay.frames import BEAT, Head, framed, packed
from statemachine.commands import AddWork, ClaimWork, JoinPeer
from statemachine.values import PeerFacts
from tests.support.memory_replica import MemoryReplica

pytestmark = pytest.mark.anyio

BODY = bytes(range(256)) * 20_000
DIGEST = hashlib.sha256(BODY).hexdigest()


async def test_an_upload_is_verified_registered_and_served(
    client: httpx.AsyncClient, services: Services, replica: MemoryReplica
) -> None:
    stored = await client.put(f"/artifacts/{DIGEST}?kind=model&config=hex8_2p", content=BODY)
    assert stored.status_code == 201
    assert stored.json() == {
        "digest": DIGEST,
        "size_bytes": len(BODY),
        "new": True,
        "index": replica.machine.index,
    }
    row = replica.machine.state.artifacts[DIGEST]
    assert (row.kind, row.config, row.holders, row.size_bytes) == ("model", "hex8_2p", ("a",), len(BODY))
    assert (await client.get(f"/artifacts/{DIGEST}")).content == BODY
    again = await client.put(f"/artifacts/{DIGEST}?kind=model", content=BODY)
    assert again.json()["new"] is False


async def test_a_file_is_served_in_ranges_and_described_by_head(client: httpx.AsyncClient, services: Services) -> None:
    services.blobs.add(BODY)
    part = await client.get(f"/artifacts/{DIGEST}", headers={"range": "bytes=1000-1999"})
    assert part.status_code == 206
    assert part.content == BODY[1000:2000]
    assert part.headers["content-range"] == f"bytes 1000-1999/{len(BODY)}"
    tail = await client.get(f"/artifacts/{DIGEST}", headers={"range": "bytes=-10", "if-range": f'"{DIGEST}"'})
    assert (tail.status_code, tail.content) == (206, BODY[-10:])
    beyond = await client.get(f"/artifacts/{DIGEST}", headers={"range": f"bytes={len(BODY)}-"})
    assert beyond.status_code == 416
    head = await client.head(f"/artifacts/{DIGEST}")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(BODY)), b"")
    assert head.headers["etag"] == f'"{DIGEST}"'


async def test_what_a_node_sends_keeps_to_its_rate(client: httpx.AsyncClient, services: Services) -> None:
    taken: list[int] = []

    class Counted(Pace):
        async def take(self, size_bytes: int) -> None:
            taken.append(size_bytes)

    services.gate.pace = Counted()
    services.blobs.add(BODY)
    assert (await client.get(f"/artifacts/{DIGEST}")).content == BODY
    assert sum(taken) == len(BODY)


async def test_bytes_that_are_not_the_digests_are_refused_and_leave_nothing(
    client: httpx.AsyncClient, services: Services, replica: MemoryReplica, tmp_path: Path
) -> None:
    before = replica.machine.index
    answer = await client.put(f"/artifacts/{DIGEST}", content=BODY[:-1])
    assert (answer.status_code, answer.json()["code"]) == (422, "digest_mismatch")
    assert services.blobs.path(DIGEST) is None
    assert replica.machine.index == before
    assert not list((tmp_path / "blobs" / "partial").iterdir())


async def test_an_upload_over_the_quota_is_refused(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    services.limits = ApiLimits(upload_bytes=1_000_000)

    async def unannounced():  # type: ignore[no-untyped-def]
        for at in range(0, len(BODY), 65_536):
            yield BODY[at : at + 65_536]

    for content in (BODY, unannounced()):
        answer = await client.put(f"/artifacts/{DIGEST}", content=content)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert not list((tmp_path / "blobs" / "partial").iterdir())


async def test_a_file_comes_in_pieces_that_must_fit(
    client: httpx.AsyncClient, services: Services, replica: MemoryReplica, tmp_path: Path
) -> None:
    url, size, half = f"/artifacts/{DIGEST}", len(BODY), len(BODY) // 2

    async def put(part: str, content: bytes, **query: str) -> tuple[int, dict[str, object]]:
        answer = await client.put(url, content=content, params=query, headers={"content-range": f"bytes {part}/{size}"})
        return answer.status_code, answer.json()

    status, answer = await put(f"0-{half - 1}", BODY[:half])
    assert (status, answer["code"]) == (404, "not_found"), "what it is must be known, or said"
    assert await put(f"0-{half - 1}", BODY[:half], kind="games") == (202, {"received_bytes": half, "stored": False})
    status, answer = await put(f"0-{half - 1}", BODY[:half], kind="games")
    assert (status, answer["code"]) == (409, "out_of_step")
    assert (await client.get(f"{url}/upload")).json() == {"received_bytes": half, "stored": False}
    for wrong in ("5-4", "0-10", f"{half}-{size}", "x"):
        status, answer = await put(wrong, BODY[half:], kind="games")
        assert (status, answer["code"]) == (400, "invalid"), wrong
    assert services.blobs.path(DIGEST) is None
    (unfinished,) = (tmp_path / "blobs" / "partial").glob("push-*")
    unfinished.write_bytes(BODY)  # as after a stop between the last byte and its verification
    status, answer = await put("*", b"", kind="games")
    assert (status, answer["new"]) == (201, True)
    assert replica.machine.state.artifacts[DIGEST].holders == ("a",)
    assert (await client.get(f"{url}/upload")).json() == {"received_bytes": 0, "stored": True}


async def test_wrong_pieces_leave_nothing_and_spoil_nobody_elses(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    headers = {"content-range": f"bytes 0-{len(BODY) - 1}/{len(BODY)}"}
    answer = await client.put(f"/artifacts/{DIGEST}?kind=games", content=bytes(len(BODY)), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "digest_mismatch")
    assert not list((tmp_path / "blobs" / "partial").iterdir())

    async def piece() -> AsyncIterator[bytes]:
        yield BODY[:10]

    assert await services.uploads.take(DIGEST, "one", 0, len(BODY), piece()) == (10, False)
    assert services.uploads.received(DIGEST, "another") == 0


async def test_files_that_their_senders_gave_up_take_nobodys_place(tmp_path: Path) -> None:
    uploads = Uploads(Blobs(tmp_path), most=2)

    async def piece() -> AsyncIterator[bytes]:
        yield BODY[:10]

    for sender in ("one", "two"):
        await uploads.take(DIGEST, sender, 0, len(BODY), piece())
    with pytest.raises(InUse, match="too many"):
        await uploads.take(DIGEST, "three", 0, len(BODY), piece())
    assert await uploads.take(DIGEST, "two", 10, len(BODY), piece()) == (20, False)
    for path in (tmp_path / "partial").glob("push-*"):
        os.utime(path, (0, time.time() - ABANDONED_S))
    assert await uploads.take(DIGEST, "three", 0, len(BODY), piece()) == (10, False)
    assert await uploads.take(DIGEST, "one", 10, len(BODY), piece()) == (20, False)


async def test_pieces_over_the_limit_or_the_quota_are_refused_at_the_first_byte(
    client: httpx.AsyncClient, services: Services
) -> None:
    services.limits = ApiLimits(upload_bytes=1_000_000)
    headers = {"content-range": "bytes 0-9/1000001"}
    answer = await client.put(f"/artifacts/{DIGEST}?kind=games", content=bytes(10), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    services.blobs.quota_bytes = 1_000
    headers = {"content-range": "bytes 0-9/2000"}
    answer = await client.put(f"/artifacts/{DIGEST}?kind=games", content=bytes(10), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (507, "no_room")


async def test_a_file_that_is_elsewhere_names_its_holders(client: httpx.AsyncClient, replica: MemoryReplica) -> None:
    digest = next(iter(replica.machine.state.artifacts))
    nobody = await client.get(f"/artifacts/{digest}")
    assert (nobody.status_code, nobody.json()["code"]) == (404, "not_found")
    assert "no live node holds it" in nobody.json()["detail"]
    facts = PeerFacts()
    replica.run(JoinPeer(peer="worker", incarnation=1, boot_id="b", role="follower", address="http://w:1", facts=facts))
    held = await client.get(f"/artifacts/{digest}")
    assert "http://w:1" in held.json()["detail"]
    assert (await client.get(f"/artifacts/{digest}/info")).json()["holders"] == [["worker", "http://w:1"]]


@pytest.mark.parametrize("name", ["short", "Z" * 64, DIGEST.upper()])
async def test_what_is_no_digest_is_refused(name: str, client: httpx.AsyncClient) -> None:
    for answer in (await client.get(f"/artifacts/{name}"), await client.put(f"/artifacts/{name}", content=b"x")):
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid")


def log_of(data_dir: Path, job: str, text: str) -> None:
    folder = data_dir / "jobs" / f"{file_name(job)}-1"
    folder.mkdir(parents=True)
    (folder / "stdout.log").write_text(text)
    (folder / "exit.json").write_text("{}")


async def test_a_log_is_tailed_where_it_is(client: httpx.AsyncClient, tmp_path: Path) -> None:
    log_of(tmp_path, "sp-0.1", "".join(f"line {n}\n" for n in range(500)))
    tail = await client.get("/jobs/sp-0.1/log?tail=2")
    assert tail.headers["content-type"].startswith("text/plain")
    assert tail.text == "line 498\nline 499\n"
    followed = await client.get("/jobs/sp-0.1/log?follow=true")
    assert followed.text.count("\n") == 500


async def test_a_log_on_another_node_is_fetched_from_there(
    client: httpx.AsyncClient, services: Services, replica: MemoryReplica, tmp_path: Path
) -> None:
    replica.run(
        JoinPeer(peer="w-9", incarnation=1, boot_id="b", role="follower", address="http://w-9", facts=PeerFacts()),
        AddWork(work="far", work_type="export"),
        ClaimWork(claim="c-9", peer="w-9", work_types=("export",)),
    )
    asked: list[httpx.Request] = []

    def other_voter(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if request.url.host != "10.0.0.2":
            raise httpx.ConnectError("not this one")

        async def answer() -> AsyncIterator[bytes]:
            yield packed(Head(200, "text/plain")) + BEAT + framed(b"from ") + framed(b"afar\n")

        return httpx.Response(200, content=answer())

    async with httpx.AsyncClient(transport=httpx.MockTransport(other_voter)) as http:
        services.http = http
        answer = await client.get("/jobs/far.1/log?tail=7", headers={"authorization": "Bearer t"})
        assert answer.text == "from afar\n"
    (one,) = asked
    assert str(one.url) == "http://10.0.0.2:8770/relay/forward", "the caller's token is for voters alone"
    assert one.headers["authorization"] == "Bearer t"
    body = msgspec.json.decode(one.content, type=Forward)
    assert (body.node_id, body.method, body.path, body.framed) == ("w-9", "GET", "/jobs/far.1/log", True)
    assert body.query == "stream=stdout&tail=7&follow=false&offset=0"


async def test_a_node_that_does_not_answer_for_its_log_is_named(
    client: httpx.AsyncClient, services: Services, replica: MemoryReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringrift_cluster.api.passing.PATIENCE_S", 0.0)
    replica.run(
        JoinPeer(peer="worker", incarnation=1, boot_id="b", role="follower", address="http://w", facts=PeerFacts())
    )

    def silent(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectTimeout("nobody there")

    async with httpx.AsyncClient(transport=httpx.MockTransport(silent)) as http:
        services.http = http
        answer = await client.get("/jobs/sp-0.1/log")
    assert (answer.status_code, answer.json()["code"]) == (502, "unreachable")
    assert "worker" in answer.json()["detail"]
    unknown = await client.get("/jobs/none.1/log")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")


async def test_without_a_store_of_its_own_each_face_shows_its_own_files(
    client: httpx.AsyncClient, services: Services
) -> None:
    services.blobs.add(BODY)
    transport = httpx.ASGITransport(app=create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://other") as other:
        assert (await other.get(f"/artifacts/{DIGEST}")).content == (await client.get(f"/artifacts/{DIGEST}")).content
