"""The probe of a suspect, as the leader's loop makes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import httpx
import pytest

from ringrift_cluster.controllers import runner
from ringrift_cluster.controllers.runner import Controllers
from statemachine.commands import JoinPeer
from statemachine.rows import PeerStatus
from statemachine.values import PeerFacts
from tests.support.memory_replica import MemoryReplica

pytestmark = pytest.mark.anyio


def suspected() -> MemoryReplica:
    replica = MemoryReplica()
    replica.run(JoinPeer("f", 1, "boot-f", "follower", "http://f", PeerFacts()))
    while replica.machine.state.peers["f"].status is not PeerStatus.SUSPECT:
        replica.tick(2_000)
    replica.tick(replica.machine.state.timing.dead_after_ms // 2)
    assert replica.machine.state.peers["f"].status is PeerStatus.SUSPECT
    return replica


async def probed(replica: MemoryReplica, while_asked: Callable[[], None]) -> None:
    """Let the loop ask the suspect once; `while_asked` happens before that answers."""
    asked = asyncio.Event()

    def answer(request: httpx.Request) -> httpx.Response:
        while_asked()
        asked.set()
        return httpx.Response(200, json={"node_id": "f"})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        controllers = Controllers(cast(Any, replica), http=http, policies={})
        task = asyncio.create_task(controllers.run())
        await asyncio.wait_for(asked.wait(), 10)
        while not controllers.reports["liveness"].rounds:
            await asyncio.sleep(0)
        task.cancel()


@pytest.fixture(autouse=True)
def _in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "IDLE_S", 0.001)


async def test_a_suspect_that_answers_is_vouched_for() -> None:
    replica = suspected()
    await probed(replica, lambda: None)
    assert replica.machine.state.peers["f"].vouched_at_ms > 0


async def test_who_no_longer_leads_when_the_suspect_answers_says_nothing() -> None:
    replica = suspected()
    await probed(replica, lambda: replica.pretend(role="voter", leader_id="b"))
    assert replica.machine.state.peers["f"].vouched_at_ms == 0
