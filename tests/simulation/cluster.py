"""A cluster of simulated voters: what connects them, and how it is brought to rest."""

from __future__ import annotations

from pathlib import Path

from ringrift_cluster.raft.messages import Raft
from tests.simulation.checks import Checks
from tests.simulation.clients import Client
from tests.simulation.network import Network
from tests.simulation.voter import Voter, handshake
from tests.simulation.world import World

FAST_DISK = (0.0002, 0.003)


class Cluster:
    """The voters, their clients and what connects them."""

    def __init__(self, world: World, size: int, directory: Path) -> None:
        self.world = world
        self.checks = Checks()
        self.network = Network(world, self._deliver)
        names = [f"v{i}" for i in range(1, size + 1)]
        self.voters = [Voter(n, names, world, self.network, directory / n, self.checks.watch) for n in names]
        self._by_name = {v.name: v for v in self.voters}
        self.clients = [Client(i, world, self.voters, self.checks) for i in range(6)]

    def _deliver(self, sender: str, receiver: str, message: Raft) -> None:
        self._by_name[receiver].deliver(sender, message)

    def start(self) -> None:
        for voter in self.voters:
            self.world.after(self.world.between(0.0, 0.5), voter.start)
        self._reconnect()
        for client in self.clients:
            client.start()

    def _reconnect(self) -> None:
        """Each pair tries again, as the transports do."""
        for i, a in enumerate(self.voters):
            for b in self.voters[i + 1 :]:
                awake = a.alive and b.alive and not (a.paused or b.paused)
                apart = self.network.connection(a.name, b.name) is None
                if awake and apart and self.network.reachable(a.name, b.name):
                    handshake(self.world, self.network, a, b)
        self.world.after(self.world.between(0.1, 0.3), self._reconnect)

    def break_connection(self, a: Voter, b: Voter) -> None:
        if self.network.close(a.name, b.name):
            for end, other in ((a, b), (b, a)):
                if end.node is not None:
                    end.node.disconnected(other.name)
                    end.wake()

    def crash(self, voter: Voter) -> None:
        self.world.tell(f"crash {voter.name}")
        voter.crash()
        for other in self.voters:
            if other is not voter:
                self.break_connection(voter, other)

    def restart(self, voter: Voter) -> None:
        if not voter.alive:
            self.world.tell(f"restart {voter.name}")
            voter.start()

    def heal(self) -> None:
        self.world.tell("heal")
        for a, b in sorted(self.network.cuts):
            # A long cut breaks the connection with all it held back; a short one only delays.
            if self.world.chance(0.5):
                self.break_connection(self._by_name[a], self._by_name[b])
        self.network.heal()

    # The end

    def calm(self) -> None:
        """Stop the faults and let everyone in again."""
        self.world.tell("calm")
        self.heal()
        for voter in self.voters:
            voter.resume()
            voter.fsync_s = FAST_DISK
            self.restart(voter)

    def converged(self) -> bool:
        nodes = [v.node for v in self.voters]
        return all(n is not None and n.ready and n.machine.index >= self.checks.acknowledged_to for n in nodes)
