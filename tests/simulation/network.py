"""Connections between voters: ordered, delayed, cut in one direction or both, broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ringrift_cluster.raft.messages import Message, Raft, decode, encode
from tests.simulation.world import World


@dataclass(slots=True, eq=False)
class Connection:
    """One TCP connection. What a cut holds back arrives after it, or is lost with the connection."""

    pair: tuple[str, str]
    up: bool = True
    #: delivery time of the last message by sender
    last_at: dict[str, float] = field(default_factory=dict)
    held: dict[str, list[bytes]] = field(default_factory=dict)


class Network:
    """All connections of the cluster."""

    def __init__(self, world: World, deliver: Callable[[str, str, Raft], None]) -> None:
        self._world = world
        self._deliver = deliver
        self.connections: dict[tuple[str, str], Connection] = {}
        #: directions (from, to) that carry nothing now
        self.cuts: set[tuple[str, str]] = set()
        self.slowness = 1.0
        self.messages = 0

    def connection(self, a: str, b: str) -> Connection | None:
        return self.connections.get((min(a, b), max(a, b)))

    def open(self, a: str, b: str) -> None:
        pair = (min(a, b), max(a, b))
        self.connections[pair] = Connection(pair)

    def close(self, a: str, b: str) -> bool:
        """Break the connection; whatever is under way on it is lost."""
        connection = self.connections.pop((min(a, b), max(a, b)), None)
        if connection is None:
            return False
        connection.up = False
        return True

    def reachable(self, a: str, b: str) -> bool:
        return (a, b) not in self.cuts and (b, a) not in self.cuts

    def cut(self, sender: str, receiver: str) -> None:
        self.cuts.add((sender, receiver))

    def heal(self) -> None:
        """Undo all cuts: what they held back arrives now."""
        self.cuts.clear()
        self.slowness = 1.0
        for connection in list(self.connections.values()):
            held, connection.held = connection.held, {}
            for sender, frames in held.items():
                for frame in frames:
                    self._carry(connection, sender, frame)

    def send(self, sender: str, receiver: str, message: Message) -> None:
        connection = self.connection(sender, receiver)
        if connection is None:
            return
        self._carry(connection, sender, encode(message))

    def _carry(self, connection: Connection, sender: str, frame: bytes) -> None:
        receiver = connection.pair[0] if connection.pair[1] == sender else connection.pair[1]
        if (sender, receiver) in self.cuts:
            connection.held.setdefault(sender, []).append(frame)
            return
        world = self._world
        delay = world.between(0.0001, 0.002) * self.slowness
        if world.chance(0.01):
            delay += world.between(0.0, 0.05)
        when = max(world.now + delay, connection.last_at.get(sender, 0.0))
        connection.last_at[sender] = when

        def arrive() -> None:
            if not connection.up:
                return
            if (sender, receiver) in self.cuts:
                connection.held.setdefault(sender, []).append(frame)
                return
            self.messages += 1
            self._deliver(sender, receiver, decode(frame))

        world.at(when, arrive)
