"""What the agent needs from the outside: the cluster and a clock.

    ClusterError
     |- ClusterUnavailable   certainly not done: nobody could take it, try again later
     |- OutcomeUnknown       it may or may not have taken effect: send the same again
     '- HeartbeatRefused     the cluster answered, but does not take this process for the peer

The implementations live with whoever composes a node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from statemachine.commands import Command
from statemachine.errors import Result
from statemachine.state import State
from statemachine.values import Beat

T = TypeVar("T")


class ClusterError(Exception):
    """Base of what the cluster port raises."""


class ClusterUnavailable(ClusterError):  # noqa: N818 - these are answers
    """Certainly not committed."""


class OutcomeUnknown(ClusterError):  # noqa: N818
    """It may have been committed; repeating the same command is safe."""


class HeartbeatRefused(ClusterError):  # noqa: N818
    """The beat was applied and not taken: the peer is unknown, or a newer process has its name. Join again."""


class Cluster(Protocol):
    """The replicated state as one node sees it, and the way to change it."""

    async def read(self, query: Callable[[State], T]) -> tuple[T, int]:
        """A short pure query's value and the applied index it was computed at. Raises ClusterUnavailable."""
        ...

    async def wait_for(self, index: int, timeout_s: float) -> int:
        """Wait until `index` is applied or the time is over; returns the applied index."""
        ...

    async def propose(self, commands: Sequence[Command]) -> list[Result]:
        """Commit commands in order, one result each. Raises ClusterUnavailable or OutcomeUnknown."""
        ...

    async def heartbeat(self, beat: Beat) -> None:
        """Return once the beat is applied. Raises ClusterError when that is not certain."""
        ...

    def unfit(self) -> str:
        """Why a node with this view of the cluster should be given nothing new; empty when it may."""
        ...


class Clock(Protocol):
    def boot_s(self) -> float:
        """Seconds of this boot, counting suspended time; leases are measured with it."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970, for people and for the choice of an incarnation."""
        ...
