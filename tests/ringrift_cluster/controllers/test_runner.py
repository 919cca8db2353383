"""What the policies decide, on its way into the log."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import httpx
import pytest

from ringrift_cluster.controllers import runner
from ringrift_cluster.controllers.runner import Controllers
from statemachine.commands import AddWork, Command
from statemachine.entries import MAX_ENTRY_BYTES
from statemachine.state import State
from statemachine.values import Input
from tests.support.law import digest_of
from tests.support.memory_replica import MemoryReplica

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "IDLE_S", 0.001)
    monkeypatch.setattr(runner, "BREATH_S", 0.001)


async def proposals(commands: Sequence[Command]) -> tuple[MemoryReplica, Controllers, list[Sequence[bytes]]]:
    """What one look of a policy that wants these commands comes to."""
    replica = MemoryReplica()
    seen: list[Sequence[bytes]] = []
    commit = replica.commit

    def noted(batch: Sequence[bytes]) -> Any:
        seen.append(batch)
        return commit(batch)

    replica.commit = noted  # type: ignore[method-assign]

    def policy(state: State) -> list[Command]:
        return [] if seen else list(commands)

    async with httpx.AsyncClient() as http:
        controllers = Controllers(cast(Any, replica), http=http, policies={"test": (policy, 5.0)})
        task = asyncio.create_task(controllers.run())
        while not controllers.reports["test"].rounds:
            await asyncio.sleep(0)
        task.cancel()
    return replica, controllers, seen


async def test_many_large_commands_of_one_look_are_no_larger_together_than_an_entry() -> None:
    inputs = tuple(Input(f"games-{n:04d}.npz", digest_of(str(n))) for n in range(1_000))
    trainings = [AddWork(f"training-{n}", "training", f"config{n}", inputs=inputs) for n in range(12)]
    replica, _, seen = await proposals(trainings)
    assert list(replica.machine.state.work) == [f"training-{n}" for n in range(12)]
    assert all(sum(map(len, batch)) < MAX_ENTRY_BYTES for batch in seen)


async def test_a_command_that_the_log_could_not_take_holds_up_none_of_the_others() -> None:
    large = {str(n): "x" * 4_000 for n in range(100)}
    wanted = [AddWork("w1", "selfplay"), AddWork("w" * 97, "selfplay"), AddWork("w2", "selfplay", params=large)]
    replica, controllers, _ = await proposals([*wanted, AddWork("w3", "selfplay")])
    assert list(replica.machine.state.work) == ["w1", "w3"]
    assert controllers.refusals == {"unfit": 2}


async def test_what_the_law_refuses_in_earnest_is_not_proposed_again_with_every_entry() -> None:
    replica = MemoryReplica()
    wanted = AddWork("w1", "selfplay", template="nobody-set-it")

    async with httpx.AsyncClient() as http:
        controllers = Controllers(cast(Any, replica), http=http, policies={"test": (lambda state: [wanted], 60.0)})
        task = asyncio.create_task(controllers.run())
        while not controllers.reports["test"].rounds:
            await asyncio.sleep(0)
        for _ in range(20):
            replica.tick(100)
            await asyncio.sleep(0.01)
        task.cancel()
    assert controllers.refusals == {"invalid": 1}
