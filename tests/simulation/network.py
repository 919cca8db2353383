"""Connections between voters: ordered, delayed, cut in one direction or both, broken."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ringrift_cluster.raft.messages import AppendEntries, Message, Raft, decode, encode
from tests.simulation.world import World


@dataclass(slots=True, eq=False)
class Connection:
    """One TCP connection. What a cut holds back arrives after it, in order, or is lost with the connection."""

    pair: tuple[str, str]
    up: bool = True
    #: frames under way by sender; an arrival takes the oldest
    under_way: dict[str, deque[bytes]] = field(default_factory=lambda: defaultdict(deque))
    #: arrivals by sender that a cut prevented
    stalled: Counter[str] = field(default_factory=Counter)
    #: delivery time of the last frame by sender
    last_at: dict[str, float] = field(default_factory=dict)


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
        #: log entries that appends carried, repeats included
        self.entries_sent = 0

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
        self.carry_on()

    def carry_on(self) -> None:
        """What cuts held back sets out again; where there still is one it waits on."""
        for connection in list(self.connections.values()):
            stalled, connection.stalled = connection.stalled, Counter()
            for sender, count in stalled.items():
                for _ in range(count):
                    self._carry(connection, sender)

    def delay(self) -> float:
        """Seconds that the next message takes."""
        delay = (0.0001 + 0.0019 * self._world.rng.random()) * self.slowness
        if self._world.rng.random() < 0.01:
            delay += 0.05 * self._world.rng.random()
        return delay

    def send(self, sender: str, receiver: str, message: Message) -> None:
        connection = self.connection(sender, receiver)
        if connection is not None:
            if isinstance(message, AppendEntries):
                self.entries_sent += len(message.entries)
            connection.under_way[sender].append(encode(message))
            self._carry(connection, sender)

    def _carry(self, connection: Connection, sender: str) -> None:
        receiver = connection.pair[0] if connection.pair[1] == sender else connection.pair[1]
        world = self._world
        when = max(world.now + self.delay(), connection.last_at.get(sender, 0.0))
        connection.last_at[sender] = when

        def arrive() -> None:
            if not connection.up:
                return
            if (sender, receiver) in self.cuts:
                connection.stalled[sender] += 1
                return
            self.messages += 1
            self._deliver(sender, receiver, decode(connection.under_way[sender].popleft()))

        world.at(when, arrive)
