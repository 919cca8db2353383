"""Every endpoint against every kind of token, and what a token may say once it is through the door."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import httpx
import msgspec
import pytest

from ringrift_cluster.api.app import GROUPS, create_app
from ringrift_cluster.api.endpoint import Endpoint
from ringrift_cluster.api.locks import NEEDS, Caller, Locks, proof
from ringrift_cluster.api.problems import Problem
from ringrift_cluster.api.services import Services
from ringrift_cluster.replica import NoLeader, Proposed
from statemachine import settings
from statemachine.commands import (
    AddHolder,
    AddWork,
    ChangeSetting,
    ClaimWork,
    Command,
    CompleteJob,
    CreateToken,
    DrainGpu,
    DrainPeer,
    DropHolder,
    Effect,
    FailJob,
    JoinPeer,
    LeavePeer,
    Once,
    PauseCluster,
    RecordAct,
    RecordHeartbeats,
    RedeemToken,
    RegisterArtifact,
    RenewJobs,
    RestartJob,
    RevokeToken,
    SaveCheckpoint,
    Signed,
    VouchForPeer,
    encode_command,
)
from statemachine.errors import Done, Rejected
from statemachine.tokens import GRANTS
from statemachine.values import Beat, JobProgress, PeerFacts, Scope
from tests.ringrift_cluster.api.test_openapi import KNOWN
from tests.support.memory_replica import MemoryReplica

pytestmark = pytest.mark.anyio

ROOT = "the-configured-one"
ENDPOINTS = [endpoint for group in GROUPS for endpoint in group.endpoints]
#: what each kind of credential is good for
GOOD_FOR: dict[str, frozenset[Scope]] = {
    **{f"Bearer {scope}-secret": granted for scope, granted in GRANTS.items()},
    f"Bearer {ROOT}": frozenset(Scope),
    f"bearer  {ROOT}": frozenset(Scope),
    "": frozenset(),
    "Bearer": frozenset(),
    "Bearer wrong": frozenset(),
    f"Basic {ROOT}": frozenset(),
    f"Bearer {ROOT}x": frozenset(),
    "Bearer revoked-secret": frozenset(),
    "Bearer expired-secret": frozenset(),
}
OVER = {"Bearer revoked-secret", "Bearer expired-secret"}


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}-secret"}


@pytest.fixture
def guarded(services: Services, replica: MemoryReplica) -> Services:
    """The populated cluster with a token of each kind."""
    replica.run(
        *(CreateToken(scope, scope, sha(f"{scope}-secret"), "gpu-1" if scope is Scope.NODE else "") for scope in Scope),
        CreateToken("revoked", Scope.ADMIN, sha("revoked-secret")),
        CreateToken("expired", Scope.ADMIN, sha("expired-secret"), expires_in_ms=1_000),
        RevokeToken("revoked", "leaked"),
    )
    replica.tick(2_000)
    return dataclasses.replace(services, token=ROOT)


@pytest.fixture
async def door(guarded: Services) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=create_app(guarded))
    async with httpx.AsyncClient(transport=transport, base_url="http://node") as made:
        yield made


# --- the table --------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda e: f"{e.method} {e.template}")
async def test_every_endpoint_lets_in_exactly_the_tokens_that_are_good_for_it(
    endpoint: Endpoint, door: httpx.AsyncClient
) -> None:
    path = endpoint.template.format(**KNOWN)
    body = msgspec.json.encode(endpoint.example) if endpoint.bodies else b""
    for credential, good_for in GOOD_FOR.items():
        answer = await door.request(endpoint.method, path, content=body, headers={"authorization": credential})
        said = answer.json() if answer.status_code in (401, 403) else {}
        if endpoint.scope is None or endpoint.scope in good_for:
            # A token of scope node may still speak for itself alone.
            assert answer.status_code != 401, (credential, said)
            assert "has the scope" not in said.get("detail", ""), (credential, said)
        elif good_for:
            assert (answer.status_code, said["code"]) == (403, "forbidden"), credential
            assert f"this needs {endpoint.scope}" in said["detail"]
        else:
            assert (answer.status_code, said["code"]) == (401, "token_over" if credential in OVER else "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert "-secret" not in answer.text
        assert ROOT not in answer.text


async def test_a_nodes_proof_opens_the_one_path_it_is_for(door: httpx.AsyncClient, replica: MemoryReplica) -> None:
    secret = sha("the secret of node gpu-1")
    replica.run(CreateToken("node:gpu-1", Scope.NODE, secret, "gpu-1"))

    async def ask(path: str, given: str, method: str = "GET") -> tuple[int, str]:
        answer = await door.request(method, path, headers={"authorization": given})
        return answer.status_code, answer.json().get("code", "") if answer.status_code == 401 else ""

    file = f"/artifacts/{'ab' * 32}"
    good = proof("gpu-1", secret, file)
    assert await ask(file, good) == (404, "")
    assert await ask(file, good, "PUT") == (401, "unauthorized")
    assert await ask(f"/artifacts/{'cd' * 32}", good) == (401, "unauthorized")
    for wrong in ("Proof", "Proof gpu-1", good[:-1], good.replace("gpu-1", "gpu-2"), proof("gpu-1", sha("x"), file)):
        assert await ask(file, wrong) == (401, "unauthorized"), wrong
    assert await ask("/probes/nobody", proof("gpu-1", secret, "/probes/nobody")) == (404, "")
    for closed in ("/status", "/state/dump", f"{file}/info"):
        assert await ask(closed, proof("gpu-1", secret, closed)) == (401, "unauthorized"), closed
    replica.run(RevokeToken("node:gpu-1", "gone"))
    assert await ask(file, good) == (401, "token_over")


async def test_a_node_that_hears_of_no_leader_trusts_what_it_knows_for_an_hour(replica: MemoryReplica) -> None:
    replica.run(
        CreateToken("short", Scope.READ, sha("short-secret"), expires_in_ms=60_000),
        CreateToken("long", Scope.READ, sha("long-secret")),
    )
    silent_s = 0.0
    state = replica.machine.state
    follower = Locks(None, lambda: state, lambda: silent_s, lambda: 10**9)
    voter = Locks(ROOT, lambda: state, lambda: silent_s, lambda: 10**9)

    def said(locks: Locks, secret: str) -> str:
        asking = SimpleNamespace(headers={b"authorization": f"Bearer {secret}".encode()}, scope={})
        try:
            return locks.admit(asking, Scope.READ, "GET /status").name
        except Problem as problem:
            return problem.code

    for silent_s, short, long in (
        (30.0, "short", "long"),
        (61.0, "token_over", "long"),
        (3_601.0, "not_ready", "not_ready"),
    ):
        assert (said(follower, "short-secret"), said(follower, "long-secret")) == (short, long), silent_s
    assert said(voter, "long-secret") == "long", "at a voter without a quorum an operator must be able to look"


async def test_a_token_that_a_node_does_not_know_before_it_has_caught_up_may_be_newer_than_its_state(
    guarded: Services, replica: MemoryReplica
) -> None:
    replica.run(CreateToken("reader", Scope.READ, sha("reader-secret")))
    replica.pretend(ready=False)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=create_app(guarded)), base_url="http://node"
    ) as door:

        async def said(**headers: str) -> tuple[int, str]:
            answer = await door.get("/status", headers=headers)
            return answer.status_code, answer.json().get("code", "")

        assert await said(**bearer("reader")) == (200, "")
        assert await said(**bearer("writer")) == (503, "not_ready")
        assert await said() == (401, "unauthorized")
        replica.pretend(ready=True)
        assert await said(**bearer("writer")) == (401, "unauthorized")


async def test_a_stream_ends_when_its_token_does(
    guarded: Services, replica: MemoryReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringrift_cluster.api.endpoint.LOOK_S", 0.0)
    replica.run(CreateToken("reader", Scope.READ, sha("reader-secret")))
    before = replica.machine.state.cluster.event_seq
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=create_app(guarded)), base_url="http://node"
    ) as door:
        following = asyncio.create_task(
            door.get("/events", params={"since": before, "follow": True, "wait": 600}, headers=bearer("reader"))
        )
        replica.run(AddWork(work="seen", work_type="export"))
        async with asyncio.timeout(10):
            while not guarded.streams:
                await asyncio.sleep(0.01)
        replica.run(RevokeToken("reader", "leaked"))
        replica.run(AddWork(work="unseen", work_type="export"))
        answer = await asyncio.wait_for(following, 10)
    assert answer.status_code == 200
    assert "unseen" not in answer.text
    assert guarded.streams == 0


async def test_an_act_is_recorded_under_the_name_of_the_token_that_asks(
    door: httpx.AsyncClient, guarded: Services
) -> None:
    caller = Caller("admin", Scope.ADMIN)
    guarded.locks.cleared(caller, RecordAct("admin", "backup", "all"))
    for forged in (RecordAct("alice", "backup", "all"), Once("r", 1_000, RecordAct("alice", "backup", "all"))):
        with pytest.raises(Problem, match="cannot record an act of 'alice'"):
            guarded.locks.cleared(caller, forged)


async def test_without_a_configured_token_everything_is_open(client: httpx.AsyncClient) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}):
        assert (await client.get("/status", headers=headers)).status_code == 200
        assert (await client.post("/admin/pause", json={"paused": False}, headers=headers)).status_code == 200


async def test_only_the_probes_are_open_where_tokens_are_asked_for(door: httpx.AsyncClient) -> None:
    assert {e.path for e in ENDPOINTS if e.scope is None} == {"/health", "/ready"}
    assert (await door.get("/openapi.json")).status_code == 401
    assert (await door.get("/openapi.json", headers=bearer("read"))).status_code == 200
    assert (await door.get("/no/such/path")).status_code == 404


async def test_the_document_says_which_scope_an_operation_needs(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    for endpoint in ENDPOINTS:
        operation = paths[endpoint.template][endpoint.method.lower()]
        assert operation.get("x-scope") == endpoint.scope
        assert ("401" in operation["responses"]) == (endpoint.scope is not None)


async def test_a_follower_without_the_configured_token_knows_those_of_the_log(services: Services) -> None:
    joined = dataclasses.replace(services, guarded=True)
    services.replica.run(CreateToken("r", Scope.READ, sha("r-secret")))  # type: ignore[attr-defined]
    transport = httpx.ASGITransport(app=create_app(joined))
    async with httpx.AsyncClient(transport=transport, base_url="http://node") as door:
        assert (await door.get("/status")).status_code == 401
        assert (await door.get("/status", headers=bearer("r"))).status_code == 200
        joined.replica.live_state = lambda: None  # type: ignore[method-assign]
        blind = create_app(dataclasses.replace(joined))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=blind), base_url="http://node") as early:
            answer = await early.get("/status", headers=bearer("r"))
            assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")


async def test_a_token_whose_time_has_come_is_refused_before_the_clock_gets_to_it(
    guarded: Services, replica: MemoryReplica, door: httpx.AsyncClient
) -> None:
    replica.run(CreateToken("brief", Scope.READ, sha("brief-secret"), expires_in_ms=500))
    row = replica.machine.state.tokens["brief"]
    replica.tick(400)
    assert (await door.get("/status", headers=bearer("brief"))).status_code == 200
    replica.tick(200)
    replica.machine.state.index.tokens[row.sha256] = row
    answer = await door.get("/status", headers=bearer("brief"))
    assert (answer.status_code, answer.json()["code"]) == (401, "token_over")


# --- what may be said -------------------------------------------------------------------------------


def test_every_command_needs_a_scope() -> None:
    assert set(NEEDS) == set(get_args(Effect))


async def proposed(door: httpx.AsyncClient, token: str, *commands: Command) -> httpx.Response:
    body = msgspec.msgpack.encode([encode_command(command) for command in commands])
    return await door.post("/propose", content=body, headers=bearer(token))


OTHERS: list[Command] = [
    JoinPeer("gpu-2", 1, "boot", "follower", "http://x:1", PeerFacts()),
    LeavePeer("gpu-2", 1),
    RecordHeartbeats((Beat("gpu-1", 1), Beat("gpu-2", 1))),
    VouchForPeer("gpu-1", 1, "gpu-2"),
    ClaimWork("c-9", "gpu-2"),
    RegisterArtifact("ab" * 32, 1, "model", "", "gpu-2"),
    DrainGpu("gpu-2", "GPU-0", True),
    CompleteJob("sp-0.1", 1),
    FailJob("sp-0.1", 1, "user", "broken"),
    SaveCheckpoint("sp-0.1", 1, "ab" * 32, 5),
    RestartJob("sp-0.1", 1, 1, "cuda", "CUDA error"),
    RenewJobs((JobProgress("sp-0.1", 1),)),
    Once("r-1", 10**9, ClaimWork("c-9", "gpu-2")),
]


@pytest.mark.parametrize("command", OTHERS, ids=lambda c: str(c.__struct_config__.tag))
async def test_a_node_speaks_for_itself_alone(
    command: Command, door: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    before = replica.machine.index
    answer = await proposed(door, "node", command)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert "'gpu-1', not for" in answer.json()["detail"]
    assert replica.machine.index == before


async def test_a_node_sends_what_its_agent_sends(door: httpx.AsyncClient, replica: MemoryReplica) -> None:
    newer = replica.machine.state.peers["gpu-1"].incarnation + 1
    own = (
        JoinPeer("gpu-1", newer, "boot", "follower", "http://10.0.0.4:8770", PeerFacts()),
        RecordHeartbeats((Beat("gpu-1", newer),)),
        ClaimWork("c-9", "gpu-1"),
        FailJob("no-such-job", 1, "user", "broken"),
    )
    answer = await proposed(door, "node", *own)
    results = msgspec.msgpack.decode(answer.content, type=Proposed).results
    assert [type(result) for result in results] == [Done, Done, Done, Rejected]
    beat = {"peer": "gpu-1", "incarnation": newer}
    assert (await door.post("/heartbeat", json=beat, headers=bearer("node"))).status_code == 200
    other = await door.post("/heartbeat", json={**beat, "peer": "gpu-2"}, headers=bearer("node"))
    assert (other.status_code, other.json()["code"]) == (403, "forbidden")
    claim = await door.post("/work/claim", json={"node_id": "gpu-2"}, headers=bearer("node"))
    assert (claim.status_code, claim.json()["code"]) == (403, "forbidden")


async def test_a_node_speaks_for_the_hosts_whose_gateway_it_is(door: httpx.AsyncClient, replica: MemoryReplica) -> None:
    join = JoinPeer("h1", 1, "boot", "ssh", "http://gpu-1:1", PeerFacts())
    for gateway, status in (("gpu-2", 403), ("gpu-1", 200)):
        host = settings.Host(gateway=gateway, address="10.0.0.9", user="u")
        replica.run(ChangeSetting("host/h1", settings.encode(host)))
        assert (await proposed(door, "node", join)).status_code == status


async def test_what_an_object_store_holds_is_said_by_nodes_with_access_alone(
    door: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    digest, peer = "ab" * 32, replica.machine.state.peers["gpu-1"]
    replica.run(RegisterArtifact(digest, 3, "file", "", "gpu-1"))
    says = (AddHolder(digest, "store:bucket"), DropHolder(digest, "store:bucket"))
    for command in says:
        assert (await proposed(door, "node", command)).status_code == 403
    facts = PeerFacts(labels=("store:bucket",))
    replica.run(JoinPeer("gpu-1", peer.incarnation + 1, "boot", "follower", "http://10.0.0.4:8770", facts))
    for command in says:
        assert (await proposed(door, "node", command)).status_code == 200


async def test_a_file_is_registered_for_the_node_that_took_it_whoever_brought_it(
    door: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    data = b"a model"
    digest = hashlib.sha256(data).hexdigest()
    answer = await door.put(f"/artifacts/{digest}?kind=model&config=hex8_2p", content=data, headers=bearer("node"))
    assert answer.status_code == 201
    assert replica.machine.state.artifacts[digest].holders == ("a",)


@pytest.mark.parametrize(
    ("token", "command"),
    [
        ("read", AddWork("w", "export")),
        ("submit", DrainPeer("gpu-1", True)),
        ("node", AddWork("w", "export")),
        ("node", PauseCluster(True)),
        ("submit", Signed("admin", PauseCluster(True))),
        ("submit", Once("r-2", 10**9, PauseCluster(True))),
        ("admin", Signed("root", PauseCluster(True))),
        ("read", RedeemToken("join", "gpu-7", "ab" * 32)),
    ],
)
async def test_a_proposal_needs_what_its_commands_need(
    token: str, command: Command, door: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    before = replica.machine.index
    answer = (
        await proposed(door, token, AddWork("fine", "export"), command)
        if token == "submit"
        else await proposed(door, token, command)
    )
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert replica.machine.index == before


# --- events of operators ----------------------------------------------------------------------------


def acts(replica: MemoryReplica) -> list[tuple[str, dict[str, str]]]:
    return [(e.key, e.detail) for e in replica.machine.state.events.values() if e.kind == "OperatorActed"]


async def test_every_act_of_an_operator_leaves_an_event_with_the_name_of_the_token(
    door: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    admin = bearer("admin")
    await door.post("/admin/drain", json={"node_id": "gpu-1"}, headers=admin)
    await door.post("/admin/pause", json={"paused": True, "reason": "x"}, headers={"authorization": f"Bearer {ROOT}"})
    await door.post("/admin/election/start", json={"target": "b"}, headers=admin)
    await door.post("/admin/shutdown", headers=admin)
    await proposed(door, "admin", PauseCluster(False))
    await proposed(door, "admin", Signed("admin", PauseCluster(False)))
    await door.post("/work/add", json={"work_type": "export"}, headers=admin)
    await door.post("/admin/drain", json={"node_id": "unknown"}, headers=admin)
    assert acts(replica) == [
        ("admin", {"act": "peer.drain", "target": "gpu-1"}),
        ("root", {"act": "cluster.pause", "target": "True"}),
        ("admin", {"act": "leadership", "target": "b"}),
        ("admin", {"act": "shutdown", "target": "a"}),
        ("admin", {"act": "cluster.pause", "target": "False"}),
        ("admin", {"act": "cluster.pause", "target": "False"}),
    ]
    events = await door.get("/events?kinds=OperatorActed&key=root", headers=bearer("read"))
    assert [msgspec.json.decode(line)["key"] for line in events.text.splitlines()] == ["root"]


@pytest.mark.parametrize(
    "endpoint",
    [e for e in ENDPOINTS if e.scope is Scope.ADMIN and e.method != "GET"],
    ids=lambda e: f"{e.method} {e.template}",
)
async def test_no_endpoint_for_operators_does_anything_without_an_event(
    endpoint: Endpoint, door: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    path = endpoint.template.format(**KNOWN)
    body = msgspec.json.encode(endpoint.example)
    answer = await door.request(endpoint.method, path, content=body, headers=bearer("admin"))
    assert (answer.status_code < 300) == (len(acts(replica)) == 1), answer.text


async def test_a_trial_leaves_an_event_of_who_ran_it(guarded: Services, replica: MemoryReplica, tmp_path: Path) -> None:
    transport = httpx.ASGITransport(app=create_app(dataclasses.replace(guarded, trials=tmp_path / "trials")))
    async with httpx.AsyncClient(transport=transport, base_url="http://node") as door:
        answer = await door.post(
            "/workload/try", json={"template": {"argv": ["true"]}}, headers=bearer("admin"), timeout=30.0
        )
    assert answer.status_code == 200, answer.text
    assert acts(replica) == [("admin", {"act": "workload.try", "target": "a"})]


async def test_a_cluster_without_a_leader_does_not_keep_an_operator_from_stopping_a_node(
    door: httpx.AsyncClient, replica: MemoryReplica, orders: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    replica.refusing = NoLeader("nobody leads")
    assert (await door.post("/admin/shutdown", headers=bearer("admin"))).status_code == 202
    assert len(orders) == 1
    assert "event=act_not_recorded by=admin" in caplog.text


async def test_refusals_are_counted_each_and_logged_once_a_second(
    guarded: Services, door: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    guarded.locks._monotonic_s = lambda: now  # type: ignore[union-attr]
    caplog.set_level(logging.WARNING, "ringrift.locks")
    for credential in ("Bearer guess-1", "Bearer guess-2", "", "Bearer revoked-secret", "Bearer join-secret"):
        await door.get("/status", headers={"authorization": credential})
    await proposed(door, "read", PauseCluster(True))
    now += 1.5
    await door.get("/status")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert "reason=unknown client=127.0.0.1 route=GET /status" in lines[0]
    assert "unlogged=4" in lines[1]
    assert "guess" not in caplog.text
    text = (await door.get("/metrics", headers=bearer("read"))).text
    for reason, count in {"missing": 2, "unknown": 2, "over": 1, "scope": 1, "forbidden": 1}.items():
        assert f'ringrift_auth_refused_total{{reason="{reason}"}} {count}.0' in text


# --- tokens over HTTP -------------------------------------------------------------------------------


async def test_a_token_is_made_shown_once_used_and_revoked(door: httpx.AsyncClient, replica: MemoryReplica) -> None:
    admin = bearer("admin")
    made = (await door.post("/tokens", json={"name": "grafana", "scope": "read"}, headers=admin)).json()
    own = {"authorization": f"Bearer {made['secret']}"}
    assert (await door.get("/status", headers=own)).status_code == 200
    listed = await door.get("/tokens", headers=admin)
    assert made["secret"] not in listed.text
    assert sha(made["secret"]) not in listed.text
    assert "grafana" in [row["name"] for row in listed.json()["tokens"]]
    dump = (await door.get("/state/dump", headers=admin)).text
    assert made["secret"] not in dump
    body = {"name": "grafana", "reason": "in a screenshot"}
    assert (await door.post("/tokens/revoke", json=body, headers=admin)).json()["result"] is True
    refused = await door.get("/status", headers=own)
    assert (refused.status_code, refused.json()["code"]) == (401, "token_over")
    assert "in a screenshot" in refused.json()["detail"]


async def test_a_client_may_keep_the_secret_to_itself(door: httpx.AsyncClient) -> None:
    body = {"name": "own", "scope": "read", "sha256": sha("own-secret"), "expires_seconds": 60}
    for _ in range(2):
        made = (await door.post("/tokens", json=body, headers=bearer("admin"))).json()
        assert (made["secret"], made["expires_at_ms"] > 0) == ("", True)
    assert (await door.get("/status", headers=bearer("own"))).status_code == 200


async def test_a_join_token_is_traded_for_a_nodes_own(door: httpx.AsyncClient, replica: MemoryReplica) -> None:
    body = {"node_id": "gpu-7", "sha256": sha("seven-secret")}
    joined = await door.post("/tokens/join", json=body, headers=bearer("join"))
    assert joined.json()["name"] == "node:gpu-7"
    assert replica.machine.state.tokens["node:gpu-7"].bought_with == "join"
    assert (await door.post("/tokens/join", json=body, headers=bearer("join"))).status_code == 200
    beat = RecordHeartbeats((Beat("gpu-7", 1),))
    assert (await proposed(door, "seven", beat)).status_code == 200
    stolen = {"node_id": "gpu-7", "sha256": sha("another")}
    answer = await door.post("/tokens/join", json=stolen, headers=bearer("join"))
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    not_a_join_token = await door.post("/tokens/join", json=stolen, headers=bearer("admin"))
    assert not_a_join_token.status_code == 400
