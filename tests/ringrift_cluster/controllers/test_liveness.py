"""The probe of a suspect, as the leader's loop makes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import httpx
import pytest

from ringrift_cluster.controllers import liveness, runner
from ringrift_cluster.controllers.runner import Controllers
from statemachine.commands import JoinPeer, VouchForPeer
from statemachine.rows import PeerStatus
from statemachine.values import PeerFacts
from tests.support.memory_replica import MemoryReplica

pytestmark = pytest.mark.anyio


def suspected(*helpers: str) -> MemoryReplica:
    replica = MemoryReplica()
    replica.run(JoinPeer("f", 1, "boot-f", "follower", "http://f", PeerFacts()))
    while replica.machine.state.peers["f"].status is not PeerStatus.SUSPECT:
        replica.tick(2_000)
    replica.tick(replica.machine.state.timing.dead_after_ms // 2)
    assert replica.machine.state.peers["f"].status is PeerStatus.SUSPECT
    for name in helpers:
        replica.run(JoinPeer(name, 1, f"boot-{name}", "follower", f"http://{name}", PeerFacts()))
    return replica


async def probed(replica: MemoryReplica, while_asked: Callable[[], None], cut: str = "", deaf: str = "") -> list[str]:
    """Let the loop look after the suspect once; `while_asked` happens before anybody answers.

    The suspect is `cut` off from that node, and answers the others. `deaf` is a helper that answers nobody. Returns
    the hosts that the leader has asked.
    """
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        while_asked()
        if request.url.host == "f":
            if cut == "leader":
                raise httpx.ConnectError("cut")
            return httpx.Response(200, json={"node_id": "f"})
        assert request.url.path == "/probes/f"
        if request.url.host == deaf:
            raise httpx.ReadTimeout("deaf")
        return httpx.Response(200, json={"peer": "f", "answers": request.url.host == "b"})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        controllers = Controllers(cast(Any, replica), http=http, policies={})
        task = asyncio.create_task(controllers.run())
        while not (controllers.reports["liveness"].rounds and asked):
            await asyncio.sleep(0)
        task.cancel()
    return asked


@pytest.fixture(autouse=True)
def _in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "IDLE_S", 0.001)


async def test_a_suspect_that_answers_is_vouched_for() -> None:
    replica = suspected("b")
    assert "b" not in await probed(replica, lambda: None)
    assert replica.machine.state.peers["f"].vouched_at_ms > 0


async def test_who_no_longer_leads_when_the_suspect_answers_says_nothing() -> None:
    replica = suspected()
    await probed(replica, lambda: replica.pretend(role="voter", leader_id="b"))
    assert replica.machine.state.peers["f"].vouched_at_ms == 0


async def test_a_suspect_that_the_leader_cannot_reach_is_vouched_for_by_a_peer_that_can() -> None:
    replica = suspected("b", "c", "d")
    asked = await probed(replica, lambda: None, cut="leader", deaf="c")
    assert {"f", "b", "c", "d"} <= set(asked)
    assert replica.machine.state.peers["f"].vouched_at_ms > 0


async def test_a_suspect_that_answers_nobody_is_not_vouched_for() -> None:
    replica = suspected("c", "d")
    await probed(replica, lambda: None, cut="leader")
    assert replica.machine.state.peers["f"].vouched_at_ms == 0


def test_other_peers_are_asked_each_time_and_neither_the_leader_nor_the_suspect() -> None:
    replica = suspected(*(f"n{number}" for number in range(9)))
    seen = set()
    for _ in range(20):
        (suspect,) = liveness.suspects(replica.machine.state, leader="n0")
        assert len(suspect.helpers) == liveness.HELPERS
        seen |= {name for name, _ in suspect.helpers}
        replica.tick(1)
    assert seen == {f"n{number}" for number in range(1, 9)}


def test_the_vouching_names_the_node_that_heard_it() -> None:
    assert liveness.vouch({("f", 1): "b"}) == [VouchForPeer("f", 1, "b")]


def test_a_host_without_an_agent_is_not_probed_where_only_its_gateway_answers() -> None:
    replica = suspected("b")
    replica.run(JoinPeer("h1", 1, "boot-h1", "ssh", "http://b", PeerFacts()))
    (suspect,) = liveness.suspects(replica.machine.state, leader="n0")
    assert suspect.helpers == (("b", "http://b"),)
    while replica.machine.state.peers["h1"].status is not PeerStatus.DEAD:
        replica.tick(2_000)
        assert "h1" not in {one.peer for one in liveness.suspects(replica.machine.state, leader="n0")}
