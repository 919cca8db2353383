"""What operators do over HTTP, and who may."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import httpx
import msgspec
import pytest
from msgspec.structs import replace

from executors.gpus import Reading
from executors.telemetry import Telemetry
from ringrift_cluster.api.app import GROUPS, create_app
from ringrift_cluster.api.examples import GPU, PEER
from ringrift_cluster.api.gone import GONE
from ringrift_cluster.api.services import ApiLimits, Services, ShutdownOrder
from ringrift_cluster.replica import Proposed
from statemachine import settings as st
from statemachine.commands import (
    AddWork,
    ChangeSetting,
    CreateToken,
    JoinPeer,
    PauseCluster,
    RaiseFeatureLevel,
    encode_command,
)
from statemachine.errors import Done, Rejected, Result
from statemachine.levels import Since
from statemachine.values import Gpu, Scope
from tests.ringrift_cluster.api.conftest import CHAMPION, CONFIG, DIGEST
from tests.support.memory_replica import MemoryReplica

pytestmark = pytest.mark.anyio

PEER_OF_THE_NEXT_RELEASE = JoinPeer(
    "gpu-1", PEER.incarnation, PEER.boot_id, "follower", PEER.address, replace(PEER.facts, feature_level=2)
)
SHIPPED = Path(__file__).parents[3] / "deploy" / "templates"


async def test_a_shutdown_is_begun_and_answered(client: httpx.AsyncClient, orders: list[ShutdownOrder]) -> None:
    without_body = await client.post("/admin/shutdown")
    assert without_body.status_code == 202
    await client.post("/admin/shutdown", json={"reason": "kernel update", "stop_jobs": True})
    assert [(order.reason, order.stop_jobs) for order in orders] == [
        ("asked for over HTTP", False),
        ("kernel update", True),
    ]


async def test_leadership_is_handed_over(client: httpx.AsyncClient) -> None:
    answer = await client.post("/admin/election/start", json={"target": "c"})
    assert answer.json() == {"leader_id": "c"}
    assert (await client.get("/election/leader")).json()["leader_id"] == "c"
    nobody = await client.post("/admin/election/start", json={"target": "z"})
    assert (nobody.status_code, nobody.json()["detail"]) == (404, "z is not a voter; a, b, c are")


async def test_a_node_is_drained_and_put_back(client: httpx.AsyncClient, replica: MemoryReplica) -> None:
    drain = {"node_id": "gpu-1", "reason": "new disk", "deadline_seconds": 60}
    assert (await client.post("/admin/drain", json=drain)).json()["result"] is True
    row = replica.machine.state.peers["gpu-1"]
    assert (row.draining, row.drain_reason, row.drain_deadline_ms) == (True, "new disk", 60_000)
    await client.post("/admin/undrain", json={"node_id": "gpu-1"})
    assert replica.machine.state.peers["gpu-1"].draining is False
    itself = await client.post("/admin/drain", json={})
    assert (itself.status_code, itself.json()["code"]) == (404, "not_found")
    assert "'a'" in itself.json()["detail"]


async def test_one_gpu_is_drained_for_a_while_shown_and_put_back(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    drain = {"node_id": "gpu-1", "gpu": GPU.uuid, "reason": "a reset", "for_seconds": 60}
    assert (await client.get("/gpus")).json()["offered"] == 1
    assert (await client.post("/admin/gpus/drain", json=drain)).json()["result"] is True
    shown = (await client.get("/gpus?node_id=gpu-1")).json()
    (row,) = shown["gpus"]
    assert (row["drained"], row["drained_for_ms"], shown["offered"], shown["total"]) == ("a reset", 60_000, 0, 1)
    assert replica.machine.state.peers["gpu-1"].draining is False
    assert (await client.get("/gpus?node_id=gpu-2")).json()["gpus"] == []
    named = {"node_id": "gpu-1", "gpu": GPU.uuid}
    assert (await client.post("/admin/gpus/undrain", json=named)).json()["result"] is False
    await client.post("/admin/gpus/drain", json=named)
    (row,) = (await client.get("/gpus")).json()["gpus"]
    assert (row["drained"], row["drained_for_ms"]) == ("by an operator", 0)
    unknown = await client.post("/admin/gpus/drain", json={"node_id": "gpu-1", "gpu": "GPU-9"})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")


async def test_the_metrics_show_each_gpu_of_this_node_in_full(services: Services) -> None:
    reading = Reading(9, 80, 93, 71, 640.5, 2, "power brake", ((1, 5), (2, None)))
    quiet = Telemetry(Gpu("GPU-1", memory_bytes=8, fault="lost: it is gone"), None, 0, settling=True)
    services.gpus = lambda: (Telemetry(GPU, reading, 5, settling=False), quiet)
    transport = httpx.ASGITransport(app=create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://node") as door:
        text = (await door.get("/metrics")).text
    for line in (
        'ringrift_gpu_memory_used_bytes{gpu="GPU-5c0e"} 9.0',
        'ringrift_gpu_memory_foreign_bytes{gpu="GPU-5c0e"} 5.0',
        'ringrift_gpu_busy_ratio{gpu="GPU-5c0e"} 0.93',
        'ringrift_gpu_power_watts{gpu="GPU-5c0e"} 640.5',
        'ringrift_gpu_power_limit_watts{gpu="GPU-5c0e"} 700.0',
        'ringrift_gpu_ecc_errors{gpu="GPU-5c0e"} 2.0',
        'ringrift_gpu_slowed{gpu="GPU-5c0e"} 1.0',
        'ringrift_gpu_processes{gpu="GPU-5c0e"} 2.0',
        'ringrift_gpu_healthy{gpu="GPU-1"} 0.0',
        'ringrift_gpu_memory_settling{gpu="GPU-1"} 1.0',
    ):
        assert line in text
    assert 'used_bytes{gpu="GPU-1"}' not in text


async def test_a_live_node_is_not_forgotten_before_it_is_drained_and_silent(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    assert (await client.post("/admin/peers/remove", json={"node_id": "gpu-1"})).status_code == 409
    await client.post("/admin/drain", json={"node_id": "gpu-1"})
    assert (await client.post("/admin/peers/remove", json={"node_id": "gpu-1"})).status_code == 409
    replica.tick(replica.machine.state.timing.suspect_after_ms + 2_000)
    assert (await client.post("/admin/peers/remove", json={"node_id": "gpu-1"})).status_code == 200
    assert "gpu-1" not in replica.machine.state.peers


async def test_the_cluster_is_paused_and_resumed(client: httpx.AsyncClient) -> None:
    await client.post("/admin/pause", json={"paused": True, "reason": "power work"})
    page = (await client.get("/status")).json()
    assert (page["paused"], page["pause_reason"]) == (True, "power work")
    await client.post("/admin/pause", json={"paused": False})
    assert (await client.get("/status")).json()["paused"] is False


async def test_stale_jobs_are_reported_with_the_time_they_have_left(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    before = (await client.post("/admin/jobs/reset-stale")).json()
    assert before["found"] == []
    assert "nothing was reset" in before["detail"]
    await client.post("/work/add", json={"work_type": "export", "work_id": "ex"})
    await client.post("/work/claim", json={"node_id": "gpu-1", "work_types": ["export"]})
    replica.tick(100_000)
    (stale,) = (await client.post("/admin/jobs/reset-stale")).json()["found"]
    assert (stale["job"], stale["peer"], stale["peer_status"]) == ("ex.1", "gpu-1", "suspect")
    assert stale["lease_ends_in_ms"] == 200_000


async def test_settings_are_read_checked_and_changed_by_version(client: httpx.AsyncClient) -> None:
    default = (await client.get("/settings/timing")).json()
    assert (default["version"], default["value"]["heartbeat_ms"]) == (0, 15_000)
    value = {**default["value"], "heartbeat_ms": 5_000}
    changed = await client.put("/settings/timing", json={"value": value, "expected_version": 0, "by": "me"})
    assert changed.json()["result"] == {"version": 1}
    again = await client.put("/settings/timing", json={"value": default["value"], "expected_version": 0})
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    bad = await client.put("/settings/timing", json={"value": {**value, "suspect_after_ms": 1}})
    assert (bad.status_code, bad.json()["code"]) == (400, "invalid")
    assert "suspect_after_ms" in bad.json()["detail"]
    unknown = await client.put("/settings/colour", json={"value": {}})
    assert unknown.status_code == 400
    names = {row["name"] for row in (await client.get("/settings")).json()["settings"]}
    assert {"timing", "limits", "retention", f"config/{CONFIG}", "template/selfplay"} <= names
    assert (await client.get("/settings/template/none")).status_code == 404


class Later(st.Controller, frozen=True):
    """A group of settings with a field of a later feature level."""

    note: Annotated[str, Since(2)] = ""


async def test_a_setting_needs_its_feature_level_only_where_it_says_something_new(
    client: httpx.AsyncClient, replica: MemoryReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def put(value: object) -> httpx.Response:
        return await client.put("/settings/controller/placement", json={"value": value})

    monkeypatch.setitem(st.GROUPS, "controller", Later)
    assert (await put({"enabled": False, "note": ""})).is_success
    assert (await client.get("/settings/controller/placement")).json()["value"] == {"enabled": False, "note": ""}
    told = await put({"note": "new"})
    assert (told.status_code, told.json()["code"]) == (400, "invalid")
    assert "`note`; it needs feature level 2 and the cluster is at 1" in told.json()["detail"]
    replica.run(PEER_OF_THE_NEXT_RELEASE, RaiseFeatureLevel(2))
    assert (await put({"note": "new"})).is_success
    assert (await client.get("/settings/controller/placement")).json()["value"] == {"enabled": True, "note": "new"}


async def test_a_gauntlet_takes_what_is_left_out_from_the_config(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    for mode, cap in (("quick", 100), ("standard", 100), ("thorough", 100)):
        answer = await client.post("/gauntlet/run", json={"config": CONFIG, "gauntlet_id": mode, "mode": mode})
        assert answer.json()["result"] == {"gauntlet": mode, "status": "running"}
        spec = replica.machine.state.gauntlets[mode].spec
        assert (spec.candidate, spec.opponent) == (DIGEST, f"{CHAMPION}@policy-only")
        assert (spec.cap_games, spec.floor_games) == (cap, 100)
        assert spec.baselines == ("random",)
    listed = (await client.get(f"/gauntlet/results?config={CONFIG}&status=running")).json()["gauntlets"]
    assert [row["spec"]["gauntlet"] for row in listed] == ["thorough", "standard", "quick", "g-0"]
    missing = await client.post("/gauntlet/run", json={"config": "none_2p"})
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(("mode", "floor", "cap"), [("quick", 30, 30), ("quick", 10, 20), ("thorough", 30, 100)])
async def test_a_quick_gauntlet_does_not_promote_on_fewer_games_than_the_config_asks_for(
    mode: str, floor: int, cap: int, client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    game = replica.machine.state.config(CONFIG)
    assert game is not None
    lower = msgspec.structs.replace(game, gate=msgspec.structs.replace(game.gate, floor_games=floor))
    replica.run(ChangeSetting(f"config/{CONFIG}", st.encode(lower)))
    await client.post("/gauntlet/run", json={"config": CONFIG, "gauntlet_id": "g-1", "mode": mode})
    spec = replica.machine.state.gauntlets["g-1"].spec
    assert (spec.floor_games, spec.cap_games) == (floor, cap)


async def test_a_match_that_must_not_count_is_taken_out_over_http(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    voiding = {"match_id": "m-0", "reason": "its engine was broken"}
    assert (await client.post("/elo/void", json=voiding)).json()["result"] is True
    assert replica.machine.state.matches["m-0"].voided == "its engine was broken"
    assert (await client.post("/elo/void", json=voiding)).json()["result"] is False
    unknown = await client.post("/elo/void", json={**voiding, "match_id": "m-9"})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")
    assert (await client.post("/elo/void", json={"match_id": "m-0"})).status_code == 400


async def test_the_feature_level_is_raised_one_step_and_only_to_what_this_release_supports(
    client: httpx.AsyncClient, replica: MemoryReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def raised(level: int) -> tuple[int, str]:
        answer = await client.post("/admin/feature-level", json={"level": level})
        return answer.status_code, answer.json().get("detail", "")

    status, detail = await raised(2)
    assert (status, "supports level 1" in detail) == (400, True)
    monkeypatch.setattr("ringrift_cluster.api.admin.SUPPORTED_FEATURE_LEVEL", 3)
    for level in (1, 3):
        status, detail = await raised(level)
        assert (status, "the next one is 2" in detail) == (400, True)
    status, detail = await raised(2)
    assert (status, "'gpu-1'" in detail, "upgrade or remove it first" in detail) == (409, True, True)
    replica.run(PEER_OF_THE_NEXT_RELEASE)
    assert await raised(2) == (200, "")
    assert replica.machine.state.cluster.feature_level == 2


async def test_a_rollback_needs_a_former_champion(client: httpx.AsyncClient) -> None:
    body = {"config": CONFIG, "model": DIGEST, "reason": "worse"}
    answer = await client.post("/models/rollback", json=body)
    assert (answer.status_code, answer.json()["code"]) == (409, "illegal_transition")
    other = await client.post("/models/rollback", json={**body, "config": "none"})
    assert other.status_code == 404
    champion = (await client.get("/models?status=champion")).json()["models"]
    assert [row["digest"] for row in champion] == [CHAMPION]


async def test_an_operator_promotes_a_candidate_and_says_why(client: httpx.AsyncClient) -> None:
    body = {"config": CONFIG, "model": DIGEST, "reason": ""}
    silent = await client.post("/models/promote", json=body)
    assert (silent.status_code, silent.json()["code"]) == (412, "insufficient_evidence")
    moved = await client.post("/models/promote", json={**body, "reason": "stronger", "previous": DIGEST})
    assert (moved.status_code, moved.json()["code"]) == (409, "conflict")
    answer = await client.post("/models/promote", json={**body, "reason": "stronger"})
    assert answer.json()["result"] == {"model": DIGEST, "previous": CHAMPION}
    shown = (await client.get(f"/models/{DIGEST}")).json()["model"]
    assert (shown["status"], shown["evidence"]["kind"], shown["evidence"]["note"]) == (
        "champion", "operator", "stronger"
    )  # fmt: skip
    back = await client.post("/models/rollback", json={"config": CONFIG, "model": CHAMPION, "reason": "it was not"})
    assert back.json()["result"] == {"model": CHAMPION, "previous": DIGEST}


@pytest.mark.parametrize("path", GONE)
async def test_paths_of_the_old_protocol_say_what_took_their_place(path: str, client: httpx.AsyncClient) -> None:
    real = re.sub(r"\{\w+(:any)?\}", "x", path)
    for method in ("GET", "POST"):
        if (method, path) == ("POST", "/work/claim"):
            continue  # the one path that is gone for GET alone
        answer = await client.request(method, real)
        assert answer.status_code == 410
        assert answer.json()["code"] == "gone"
        assert len(answer.json()["detail"]) > len(path) + 10


async def test_a_path_that_is_gone_hides_none_that_is_served(client: httpx.AsyncClient) -> None:
    taken = await client.post("/work/claim", json={"peer": "nobody", "claim": "c"})
    assert taken.status_code != 410
    paths = [endpoint.template for group in GROUPS for endpoint in group.endpoints]
    shadows = [re.compile(re.sub(r"\\\{\w+(:any)?\\\}", ".+", re.escape(gone))) for gone in GONE if "{" in gone]
    assert [path for path in paths for shadow in shadows if shadow.fullmatch(path)] == []


async def test_commands_are_proposed_as_bytes(client: httpx.AsyncClient, replica: MemoryReplica) -> None:
    commands = [
        encode_command(AddWork(work="p-1", work_type="export")),
        encode_command(AddWork(work="p-2", work_type="export", template="none")),
    ]
    answer = await client.post("/propose", content=msgspec.msgpack.encode(commands))
    assert answer.headers["content-type"] == "application/msgpack"
    proposed = msgspec.msgpack.decode(answer.content, type=Proposed)
    assert proposed.index == replica.machine.index == int(answer.headers["ringrift-index"])
    added, refused = proposed.results
    results: tuple[Result, ...] = (added, refused)
    assert isinstance(results[0], Done)
    assert isinstance(results[1], Rejected)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "array"),
        (msgspec.msgpack.encode([b""] * 4097), "4096"),
        (msgspec.msgpack.encode(["text"]), "array"),
        (msgspec.msgpack.encode([b"\x80"]), "command 0"),
        (
            msgspec.msgpack.encode([encode_command(PauseCluster(True)), msgspec.msgpack.encode({"kind": "future.9"})]),
            "command 1",
        ),
    ],
)
async def test_what_the_law_could_not_decode_never_reaches_the_log(
    content: bytes, said: str, client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    before = replica.machine.index
    answer = await client.post("/propose", content=content)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid")
    assert said in answer.json()["detail"]
    assert replica.machine.index == before


async def test_a_proposal_without_commands_is_a_barrier(client: httpx.AsyncClient, replica: MemoryReplica) -> None:
    before = replica.machine.index
    answer = await client.post("/propose", content=msgspec.msgpack.encode([]))
    proposed = msgspec.msgpack.decode(answer.content, type=Proposed)
    assert (proposed.index, proposed.results) == (before + 1, ())


async def test_a_dump_is_one_consistent_view_with_its_digest(client: httpx.AsyncClient, replica: MemoryReplica) -> None:
    dump = (await client.get("/state/dump")).json()
    assert (dump["index"], dump["digest"]) == (replica.machine.index, replica.machine.chain.hex())
    assert set(dump["tables"]) == set(replica.machine.state.tables)
    rows = msgspec.json.decode(msgspec.json.encode(replica.machine.state.work))
    assert dump["tables"]["work"] == rows
    one = (await client.get("/state/dump?table=peers")).json()
    assert list(one["tables"]) == ["peers"]
    assert (await client.get("/state/dump?table=none")).status_code == 404


async def test_a_dump_tells_who_may_do_what_and_nothing_of_the_secrets(
    client: httpx.AsyncClient, replica: MemoryReplica
) -> None:
    replica.run(CreateToken("ops", Scope.ADMIN, "ab" * 32))
    answer = await client.get("/state/dump?table=tokens")
    row = answer.json()["tables"]["tokens"]["ops"]
    assert (row["scope"], row["sha256"]) == ("admin", "")
    assert "abab" not in answer.text


async def test_a_large_dump_is_written_in_slices_that_join(client: httpx.AsyncClient, replica: MemoryReplica) -> None:
    replica.run(*(AddWork(work=f"d-{n}", work_type="export") for n in range(600)))
    dump = (await client.get("/state/dump?table=work")).json()
    assert len(dump["tables"]["work"]) == 604


async def test_bodies_and_headers_are_bounded(services: Services) -> None:
    services.limits = ApiLimits(body_bytes=1_000, header_bytes=2_000)
    transport = httpx.ASGITransport(app=create_app(services))

    async def unannounced():  # type: ignore[no-untyped-def]
        for _ in range(100):
            yield b" " * 100

    async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
        for content in (b" " * 1_001, unannounced()):
            answer = await client.post("/work/add", content=content)
            assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        wide = await client.get("/status", headers={"x-padding": "x" * 2_000})
        assert (wide.status_code, wide.json()["code"]) == (431, "headers_too_large")


async def test_a_template_the_executor_could_not_fill_is_refused_at_the_door(client: httpx.AsyncClient) -> None:
    answer = await client.put("/settings/template/broken", json={"value": {"argv": ["python", "{not a name"]}})
    assert answer.status_code == 400
    assert "argv" in answer.json()["detail"]
    slow = {"argv": ["python"], "progress": r"(?P<games>(?:[0-9]+,?)+) games"}
    answer = await client.put("/settings/template/broken", json={"value": slow})
    assert answer.status_code == 400
    assert "goes back and forth" in answer.json()["detail"]
    assert (await client.get("/settings/template/broken")).status_code == 404


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.json")), ids=lambda path: path.stem)
async def test_every_template_that_is_shipped_can_be_set_and_is_shown(client: httpx.AsyncClient, path: Path) -> None:
    name = f"/settings/template/{path.stem}"
    answer = await client.put(name, json={"value": json.loads(path.read_text())})
    assert answer.status_code == 200, answer.text
    shown = (await client.get(name)).json()["value"]
    assert shown["argv"] == json.loads(path.read_text())["argv"]
