"""A follower reached through its channel, with a real server for the voter and no way to dial the follower."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest
from typer.testing import CliRunner

from executors.blobs import Blobs
from executors.folder import file_name
from executors.logs import Logs
from ringrift_cluster.api import workload
from ringrift_cluster.api.app import create_app
from ringrift_cluster.api.endpoint import BrokenOff
from ringrift_cluster.api.locks import Locks
from ringrift_cluster.api.problems import Problem
from ringrift_cluster.api.services import AgentStatus, Services, ShutdownOrder
from ringrift_cluster.api.tokens import hash_of
from ringrift_cluster.cli.app import app as commands
from ringrift_cluster.relay.channel import Channel
from ringrift_cluster.relay.frames import Head, Vouched
from ringrift_cluster.relay.inside import VOUCHED
from ringrift_cluster.relay.switchboard import Switchboard
from statemachine import settings as st
from statemachine.commands import AddWork, ChangeSetting, ClaimWork, CreateToken, JoinPeer, RevokeToken
from statemachine.values import PeerFacts, Scope
from tests.ringrift_cluster.api.conftest import DirectHeartbeats
from tests.support.memory_replica import MemoryReplica
from tests.support.served import served

pytestmark = pytest.mark.anyio

ROOT = "the-configured-one"
PROGRAM = """
import os, sys
print("tried")
sys.stderr.write("odd")
open(os.environ["RINGRIFT_JOB_DIR"] + "/result.json", "w").write('{{"counts": {{"games": 1}}}}')
"""


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {ROOT if name == 'root' else f'{name}-secret'}"}


def peopled(replica: MemoryReplica) -> MemoryReplica:
    """A follower f1 with a job, and a token of each scope; f1's own is `node`."""
    replica.run(
        JoinPeer(peer="f1", incarnation=1, boot_id="b", role="follower", address="http://f1:1", facts=PeerFacts()),
        AddWork(work="far", work_type="export"),
        ClaimWork(claim="c", peer="f1", work_types=("export",)),
        ChangeSetting("template/true", st.encode(st.Template(argv=("{python}", "-c", PROGRAM)))),
        *(CreateToken(s, s, hash_of(f"{s}-secret"), "f1" if s is Scope.NODE else "") for s in Scope),
    )
    return replica


def face(replica: MemoryReplica, folder: Path, orders: list[ShutdownOrder]) -> Services:
    return Services(
        replica=replica,
        heartbeats=DirectHeartbeats(replica),
        blobs=Blobs(folder / "blobs"),
        logs=Logs(folder),
        agent=lambda: AgentStatus(healthy=True),
        shutdown=orders.append,
        token=ROOT,
        trials=folder / "trials",
    )


@dataclasses.dataclass
class Pair:
    """A voter behind a real server, and a follower that nothing but its channel leads to."""

    voter: Services
    follower: Services
    orders: list[ShutdownOrder]
    url: str
    client: httpx.AsyncClient
    channel: Channel
    task: asyncio.Task[None]

    async def until(self, holds: object, seconds: float = 30.0) -> None:
        async with asyncio.timeout(seconds):
            while not holds():  # type: ignore[operator]
                await asyncio.sleep(0.01)

    async def held(self) -> None:
        await self.until(lambda: self.channel.voter)

    def log(self, text: str, ended: bool) -> Path:
        folder = self.follower.trials.parent / "jobs" / f"{file_name('far.1')}-1"  # type: ignore[union-attr]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "stdout.log").open("a") as file:
            file.write(text)
        if ended:
            (folder / "exit.json").write_text("{}")
        return folder


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    orders: list[ShutdownOrder] = []
    voter = face(peopled(MemoryReplica()), tmp_path / "a", [])
    voter.switchboard = Switchboard(voter.new_id)
    follower = face(peopled(MemoryReplica("f1")), tmp_path / "f1", orders)
    follower.token, follower.guarded = None, True
    follower.__post_init__()
    create_app(follower)
    assert follower.face is not None
    with served(create_app(voter)) as url:
        async with (
            httpx.AsyncClient(headers=bearer("node")) as out,
            httpx.AsyncClient(base_url=url, timeout=30) as client,
        ):
            channel = Channel(follower.replica, lambda: {"a": url}, out, follower.face)
            task = asyncio.create_task(channel.run())
            made = Pair(voter, follower, orders, url, client, channel, task)
            await made.held()
            yield made
            task.cancel()
            await asyncio.wait([task])
            await asyncio.to_thread(voter.switchboard.close)


async def test_a_log_comes_through_the_channel_from_its_offset_while_it_is_written(pair: Pair) -> None:
    pair.log("one\ntwo\n", ended=False)
    got = b""
    params = {"follow": "true", "offset": "4"}
    async with pair.client.stream("GET", "/jobs/far.1/log", params=params, headers=bearer("read")) as answer:
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")
        async for chunk in answer.aiter_bytes():
            if not got:
                pair.log("three\n", ended=True)
            got += chunk
    assert got == b"two\nthree\n"
    await pair.until(lambda: not pair.channel.answering)


async def test_a_follower_of_a_log_that_goes_away_lets_the_node_go_too(pair: Pair) -> None:
    pair.log("one\n", ended=False)
    async with pair.client.stream(
        "GET", "/jobs/far.1/log", params={"follow": "true"}, headers=bearer("read")
    ) as answer:
        chunks = answer.aiter_bytes()
        assert await anext(chunks) == b"one\n"
        assert pair.channel.answering == 1
    await pair.until(lambda: not pair.channel.answering)
    assert pair.voter.switchboard is not None
    await pair.until(lambda: not pair.voter.switchboard.open)  # type: ignore[union-attr]


async def test_a_log_that_breaks_off_for_good_does_not_look_whole(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringrift_cluster.api.jobs.RESUME_S", 0.1)
    monkeypatch.setattr("ringrift_cluster.api.passing.PATIENCE_S", 0.0)
    pair.log("one\n", ended=False)
    with pytest.raises(httpx.RemoteProtocolError):
        async with pair.client.stream(
            "GET", "/jobs/far.1/log", params={"follow": "true"}, headers=bearer("read"), timeout=20
        ) as answer:
            async for _ in answer.aiter_bytes():
                pair.task.cancel()


async def test_a_node_is_restarted_by_its_name_and_the_act_is_recorded_once(pair: Pair) -> None:
    for name, status in (("read", 403), ("submit", 403), ("node", 403), ("wrong", 401)):
        answer = await pair.client.post("/admin/restart", json={"node_id": "f1"}, headers=bearer(name))
        assert answer.status_code == status, name
    assert pair.orders == []
    answer = await pair.client.post(
        "/admin/restart", json={"node_id": "f1", "reason": "new release"}, headers=bearer("admin")
    )
    assert (answer.status_code, answer.json()["node_id"]) == (202, "f1")
    assert pair.orders == [ShutdownOrder("new release", stop_jobs=False, restart=True)]
    events = (await pair.client.get("/events", headers=bearer("read"))).text.splitlines()
    acts = [e["detail"] for e in map(json.loads, events) if e["kind"] == "OperatorActed"]
    assert len(acts) == 1, acts
    nobody = await pair.client.post("/admin/restart", json={"node_id": "nobody"}, headers=bearer("admin"))
    assert (nobody.status_code, nobody.json()["code"]) == (404, "not_found")


async def test_the_target_looks_at_the_callers_token_itself(pair: Pair) -> None:
    assert isinstance(pair.follower.replica, MemoryReplica)
    pair.follower.replica.run(RevokeToken("admin", "leaked"))
    answer = await pair.client.post("/admin/shutdown", json={"node_id": "f1"}, headers=bearer("admin"))
    assert (answer.status_code, answer.json()["code"]) == (401, "token_over")
    assert pair.orders == []
    root = await pair.client.post("/admin/shutdown", json={"node_id": "f1"}, headers=bearer("root"))
    assert root.status_code == 202


async def test_only_what_is_on_the_list_passes(pair: Pair) -> None:
    for path in ("/settings", "/state/dump", "/feed/entries", "/relay/forward", "/tokens"):
        answer = await pair.client.post("/relay/forward", json={"node_id": "f1", "path": path}, headers=bearer("root"))
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), path
    order = {"node_id": "f1", "method": "POST", "path": "/admin/shutdown", "body": {}}
    answer = await pair.client.post("/relay/forward", json=order, headers=bearer("read"))
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert pair.orders == []
    assert pair.voter.switchboard is not None
    assert pair.voter.switchboard.asked == 0


async def test_health_and_numbers_of_a_node_are_shown_by_any_other(pair: Pair) -> None:
    health = await pair.client.get("/relay/f1/health", headers=bearer("read"))
    assert (health.status_code, health.json()["node_id"]) == (200, "f1")
    metrics = await pair.client.get("/relay/f1/metrics", headers=bearer("read"))
    assert metrics.headers["content-type"].startswith("text/plain")
    assert "ringrift_api_streams_open" in metrics.text
    own = await pair.client.get("/relay/a/health", headers=bearer("read"))
    assert own.json()["node_id"] == "a"


async def test_a_channel_is_a_nodes_own(pair: Pair) -> None:
    other = await pair.client.get("/relay/channel", params={"node_id": "f2"}, headers=bearer("node"))
    assert (other.status_code, other.json()["code"]) == (403, "forbidden")
    reader = await pair.client.get("/relay/channel", params={"node_id": "f1"}, headers=bearer("read"))
    assert reader.status_code == 403
    stray = await pair.client.post("/relay/answers/abcd", headers=bearer("node"))
    assert (stray.status_code, stray.headers["connection"]) == (404, "close")


async def test_a_channel_ends_with_the_token_of_its_node(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringrift_cluster.api.endpoint.LOOK_S", 0.0)
    assert isinstance(pair.voter.replica, MemoryReplica)
    pair.voter.replica.run(RevokeToken("node", "leaked"))
    await pair.until(lambda: not pair.channel.voter)
    await pair.until(lambda: "token 'node' is over" in pair.channel.last_error)
    assert pair.voter.switchboard is not None
    await pair.until(lambda: not pair.voter.switchboard.lines)  # type: ignore[union-attr]


async def test_the_command_line_reaches_a_node_by_its_name(pair: Pair) -> None:
    def run(*arguments: str) -> str:
        done = CliRunner().invoke(
            commands, [*arguments, "--api", pair.url], env={"RINGRIFT_AUTH_TOKEN": "admin-secret"}
        )
        assert done.exit_code == 0, done.output
        return done.output

    said = await asyncio.to_thread(run, "channels")
    assert "f1" in said
    said = await asyncio.to_thread(run, "workload", "try", "true", "--node", "f1")
    assert "tried" in said
    assert "odd" in said
    assert "verdict      completed" in said
    await asyncio.to_thread(run, "restart", "f1")
    await asyncio.to_thread(run, "shutdown", "f1", "--reason", "sold")
    assert [(one.restart, one.reason) for one in pair.orders] == [(True, "asked for over HTTP"), (False, "sold")]


async def test_a_trial_whose_caller_goes_away_is_stopped_and_one_runs_at_a_time(pair: Pair) -> None:
    sleeper = st.Template(argv=("{python}", "-c", "import time; time.sleep(60)"))
    wish = {"template": msgspec.json.decode(st.encode(sleeper)), "node_id": "f1", "grace_seconds": 0}
    async with pair.client.stream("POST", "/workload/try", json=wish, headers=bearer("admin")) as answer:
        lines = answer.aiter_lines()
        started = json.loads(await anext(lines))
        assert (started["type"], started["node_id"]) == ("started", "f1")
        second = await pair.client.post("/workload/try", json=wish, headers=bearer("admin"))
        assert (second.status_code, second.json()["code"]) == (429, "busy")
    trial = pair.follower.trial
    assert trial is not None
    await asyncio.to_thread(trial.join, 20)
    assert not trial.is_alive()


async def test_a_trial_that_says_nothing_is_told_of_and_one_that_fell_ends_its_answer() -> None:
    living = [True]
    lines = workload._lines(asyncio.Queue(), lambda: living[0], lambda: False, beat_s=workload.LOOK_S)
    assert await anext(lines) == b"\n"
    living[0] = False
    with pytest.raises(BrokenOff, match="without a word"):
        await anext(lines)


def lying(pair: Pair, head: Head, body: bytes, ends: bool = True) -> None:
    """From now on the follower answers whatever it is asked with these bytes."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", head.media_type.encode())]
        await send({"type": "http.response.start", "status": head.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": not ends})
        if not ends:
            await receive()
            await receive()

    pair.channel._app = app


TRAP = {"leader": {"node_id": "x", "address": "http://evil.example:1"}}


@pytest.mark.parametrize("status", [307, 404, 429, 502, 503, 504])
async def test_a_node_that_is_asked_cannot_say_where_the_leader_is(pair: Pair, status: int) -> None:
    document = json.dumps({"code": "not_ready", "detail": "come later", "status": status, **TRAP}).encode()
    order = {"node_id": "f1", "path": "/status"}
    lying(pair, Head(status, "application/problem+json"), document)
    for answer in (
        await pair.client.post("/relay/forward", json=order, headers=bearer("read")),
        await pair.client.get("/relay/f1/health", headers=bearer("read")),
        await pair.client.get("/jobs/far.1/log", headers=bearer("read")),
        await pair.client.post("/admin/restart", json={"node_id": "f1"}, headers=bearer("admin")),
    ):
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert answer.json()["detail"] == "come later"
        assert "evil" not in answer.text


async def test_a_probe_that_says_no_keeps_its_words_and_its_status(pair: Pair) -> None:
    lying(pair, Head(503, "application/json"), json.dumps({"healthy": False, "problems": ["p"], **TRAP}).encode())
    answer = await pair.client.get("/relay/f1/health", headers=bearer("read"))
    assert (answer.status_code, answer.json()) == (503, {"healthy": False, "problems": ["p"]})
    status = await pair.client.get("/relay/f1/status", headers=bearer("read"))
    assert (status.status_code, status.json()["code"]) == (502, "unreachable")


async def test_a_refusal_that_cannot_be_read_leaves_the_outcome_of_an_order_open(pair: Pair) -> None:
    lying(pair, Head(500, "text/plain"), b"x" * 200_000)
    answer = await pair.client.post("/admin/restart", json={"node_id": "f1"}, headers=bearer("admin"))
    assert (answer.status_code, answer.json()["code"]) == (504, "outcome_unknown")
    await pair.until(lambda: not pair.channel.answering)


async def test_a_look_at_a_node_that_never_ends_its_answer_is_broken_off(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringrift_cluster.api.relay.LOOK_S", 0.5)
    lying(pair, Head(200, "application/json"), b"{", ends=False)
    with pytest.raises(httpx.RemoteProtocolError):
        await pair.client.get("/relay/f1/health", headers=bearer("read"))
    await pair.until(lambda: not pair.channel.answering)


async def test_a_read_of_another_node_waits_for_its_index_a_short_while_only(pair: Pair) -> None:
    for wait, status in (("60", 400), ("nan", 400), ("0.1", 503)):
        order = {"node_id": "f1", "path": "/status", "query": f"index=999999&wait={wait}"}
        answer = await pair.client.post("/relay/forward", json=order, headers=bearer("read"))
        assert answer.status_code == status, answer.text
    assert pair.channel.opened == 1


async def test_a_node_that_answers_enough_requests_says_so(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringrift_cluster.relay.channel.MOST_OPEN", 1)
    pair.log("one\n", ended=False)
    async with pair.client.stream(
        "GET", "/jobs/far.1/log", params={"follow": "true"}, headers=bearer("read")
    ) as followed:
        assert followed.status_code == 200
        answer = await pair.client.get("/relay/f1/health", headers=bearer("read"))
        assert (answer.status_code, answer.json()["code"]) == (429, "busy")
    assert pair.channel.opened == 1


async def test_a_voter_that_is_not_ready_does_not_end_the_search_for_a_channel(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringrift_cluster.api.passing.PATIENCE_S", 0.0)
    others = {"a": pair.url, "b": "http://b", "c": "http://c"}
    asked: list[str] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        if request.url.host in ("b", "c"):
            code = "not_ready" if request.url.host == "b" else "no_channel"
            document = json.dumps({"code": code, "detail": "starting", "status": 503}).encode()
            return httpx.Response(503, stream=httpx.ByteStream(document))
        sent = await pair.client.post(request.url.path, content=request.content, headers=request.headers)
        return httpx.Response(sent.status_code, stream=httpx.ByteStream(sent.content))

    asking = face(peopled(MemoryReplica("d")), tmp_path / "d", [])
    asking.voters = others
    asking.routes["f1"] = "b"
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as asking.http:
        transport = httpx.ASGITransport(create_app(asking))
        async with httpx.AsyncClient(transport=transport, base_url="http://d", headers=bearer("read")) as client:
            found = await client.get("/relay/f1/health")
            assert (found.status_code, found.json()["node_id"]) == (200, "f1")
            assert asked[0] == "b"
            del others["a"]
            asking.routes.clear()
            none = await client.get("/relay/f1/health")
            assert (none.status_code, none.json()["code"]) == (503, "not_ready")


def test_a_voters_word_for_a_caller_is_checked_as_far_as_it_can_be() -> None:
    replica = peopled(MemoryReplica("f1"))
    replica.run(RevokeToken("submit", "leaked"))
    locks = Locks(None, replica.live_state, lambda: 0.0)

    def said(name: str, scope: Scope, needed: Scope) -> str:
        asking = SimpleNamespace(headers={}, scope={VOUCHED: Vouched(name, scope)})
        try:
            return locks.admit(asking, needed, "POST /admin/shutdown").name
        except Problem as problem:
            return problem.code

    assert said("admin", Scope.ADMIN, Scope.ADMIN) == "admin"
    assert said("read", Scope.ADMIN, Scope.ADMIN) == "forbidden", "the scope is the one known here"
    assert said("submit", Scope.SUBMIT, Scope.READ) == "token_over"
    assert said("young", Scope.ADMIN, Scope.ADMIN) == "young", "its row may not have come this far yet"
    assert said("young", Scope.READ, Scope.ADMIN) == "forbidden"
    assert said("root", Scope.READ, Scope.ADMIN) == "root"
    assert said("", Scope.ADMIN, Scope.READ) == "unauthorized"
