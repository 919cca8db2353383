"""The real controllers of one simulated voter, watched: they may act only while their node leads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import httpx

from ringrift_cluster.controllers.runner import Controllers
from ringrift_cluster.raft.engine import RaftReplica
from statemachine.commands import Command
from tests.simulation.loop import Clock
from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.voter import Voter

#: a controller reads, decides and proposes within this time of its look whether it leads
LOOK_S = 1.0


class Policies(Controllers):
    """Controllers whose commands are counted against leadership."""

    def __init__(self, voter: Voter, world: World, replica: RaftReplica, http: httpx.AsyncClient, clock: Clock) -> None:
        super().__init__(replica, http=http, monotonic_s=clock, wall_s=clock)
        self._voter = voter
        self._world = world

    async def _propose(self, name: str, commands: Sequence[Command]) -> int:
        led_ago = self._world.now - self._voter.led_at
        if led_ago > LOOK_S:
            self._world.fail(f"the controller {name} of {self._voter.name} acted {led_ago:.1f} s after it had led")
        return await super()._propose(name, commands)
