"""A face over a replica in memory, on a small cluster that has something of everything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from starlette.responses import Response

from executors.blobs import Blobs
from executors.logs import Logs
from ringrift_cluster.api.app import create_app
from ringrift_cluster.api.examples import BEAT, DIGEST, PEER, RESULT
from ringrift_cluster.api.services import AgentStatus, LoopStatus, Services, ShutdownOrder
from statemachine import settings as st
from statemachine.commands import (
    AddWork,
    ChangeSetting,
    ClaimWork,
    CompleteJob,
    JoinPeer,
    PromoteModel,
    RecordHeartbeats,
    RecordMatch,
    StartGauntlet,
)
from statemachine.errors import Code, Refused
from statemachine.values import Beat, Evidence, Output
from tests.support.memory_replica import MemoryReplica

CHAMPION = "c1" * 32
CONFIG = "hex8_2p"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class DirectHeartbeats:
    """Every beat becomes a command at once."""

    def __init__(self, replica: MemoryReplica) -> None:
        self._replica = replica

    async def record(self, beat: Beat) -> int:
        (refused,) = self._replica.run(RecordHeartbeats(beats=(beat,)))
        assert isinstance(refused, dict)
        if beat.peer in refused:
            raise Refused(Code(refused[beat.peer]), f"peer {beat.peer!r} was not taken")
        return self._replica.machine.index


def stage() -> st.Stage:
    return st.Stage(template="selfplay")


def train(replica: MemoryReplica, number: int, digest: str) -> None:
    """Let a worker train a model."""
    replica.run(AddWork(work=f"t-{number}", work_type="training", config=CONFIG))
    (granted,) = replica.run(ClaimWork(claim=f"ct-{number}", peer="worker", work_types=("training",)))
    assert isinstance(granted, list)
    output = Output(path="model.pt", digest=digest, size_bytes=10, kind="model")
    replica.run(CompleteJob(job=granted[0]["job"], fence=granted[0]["fence"], outputs=(output,)))


def populate(replica: MemoryReplica) -> None:
    """A peer, a champion and a candidate, a gauntlet, a match, a finished and two open items."""
    game = st.GameConfig(
        initial=stage(), selfplay=st.Selfplay(stage()), training=st.Training(stage()), gate=st.Gate(stage())
    )
    replica.run(
        ChangeSetting("template/selfplay", st.encode(st.Template(argv=("python", "-V")))),
        ChangeSetting(f"config/{CONFIG}", st.encode(game)),
        JoinPeer(
            peer="gpu-1",
            incarnation=PEER.incarnation,
            boot_id=PEER.boot_id,
            role="follower",
            address="http://10.0.0.4:8770",
            facts=PEER.facts,
        ),
    )
    train(replica, 0, CHAMPION)
    replica.run(PromoteModel(config=CONFIG, model=CHAMPION, previous="", evidence=Evidence(kind="initial")))
    train(replica, 1, DIGEST)
    replica.run(
        StartGauntlet(gauntlet="g-0", config=CONFIG, candidate=DIGEST, opponent=f"{CHAMPION}@policy-only"),
        RecordMatch(match="m-0", config=CONFIG, result=RESULT),
        AddWork(work="sp-0", work_type="selfplay", config=CONFIG),
        AddWork(work="sp-9", work_type="selfplay", config=CONFIG, template="selfplay", priority=40),
        ClaimWork(claim="c-0", peer="worker", work_types=("selfplay",)),
    )


@pytest.fixture
def replica() -> MemoryReplica:
    made = MemoryReplica()
    populate(made)
    return made


@pytest.fixture
def orders() -> list[ShutdownOrder]:
    return []


async def feed(scope: Any, receive: Any, send: Any) -> None:
    """Stands for the feed's router: a line in the media type of the path."""
    media = "application/msgpack" if scope["path"].endswith("entries") else "application/octet-stream"
    headers = {"ringrift-index": "1"}
    await Response(b"frames", media_type=media, headers=headers)(scope, receive, send)


@pytest.fixture
def services(replica: MemoryReplica, orders: list[ShutdownOrder], tmp_path: Path) -> Services:
    return Services(
        replica=replica,
        heartbeats=DirectHeartbeats(replica),
        blobs=Blobs(tmp_path / "blobs"),
        logs=Logs(tmp_path),
        agent=lambda: AgentStatus(healthy=True, jobs_active=2, last_pass_at_ms=1_700_000_000_000),
        shutdown=orders.append,
        voters={"a": "http://10.0.0.1:8770", "b": "http://10.0.0.2:8770"},
        feed=feed,
        pulse=lambda: {"consensus": 0.01},
        loops=lambda: {"placement": LoopStatus(enabled=True, running=True, last_run=1.7e9)},
        counters=lambda: {"raft_fsyncs_total": 7, "raft_turn_max_seconds": 0.002},
    )


@pytest.fixture
async def client(services: Services) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://node") as made:
        yield made


@pytest.fixture
def beat() -> Beat:
    return msgspec.structs.replace(BEAT, progress=())
