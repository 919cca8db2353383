"""One run: a cluster, clients and faults for a time, then quiet, then the checks."""

from __future__ import annotations

import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from ringrift_cluster.raft.messages import Raft
from ringrift_cluster.raft.seams import outside
from tests.simulation.checks import Checks
from tests.simulation.clients import Client
from tests.simulation.network import Network
from tests.simulation.voter import Voter, handshake
from tests.simulation.world import Broken, World

QUIET_S = 6.0
_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    seed: int
    broken: str | None
    story: list[str]
    virtual_s: float
    cpu_s: float
    checks: Checks
    terms: int
    messages: int


class Cluster:
    """The voters, what connects them, and what befalls them."""

    def __init__(self, world: World, size: int, directory: Path) -> None:
        self.world = world
        self.checks = Checks()
        self.network = Network(world, self._deliver)
        names = [f"v{i}" for i in range(1, size + 1)]
        self.voters = [Voter(n, names, world, self.network, directory / n, self.checks.watch) for n in names]
        self._by_name = {v.name: v for v in self.voters}
        self.clients = [Client(i, world, self.voters, self.checks) for i in range(4)]
        self.faults = True

    def _deliver(self, sender: str, receiver: str, message: Raft) -> None:
        self._by_name[receiver].deliver(sender, message)

    def start(self) -> None:
        for voter in self.voters:
            self.world.after(self.world.between(0.0, 0.5), voter.start)
        self._reconnect()
        for client in self.clients:
            client.start()
        self.world.after(1.5, self._strike)

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

    # Faults

    def _strike(self) -> None:
        if not self.faults:
            return
        choice = self.world.rng.choice(
            [
                "crash",
                "crash",
                "crash_leader",
                "crash_all",
                "partition",
                "partition",
                "one_way",
                "pause",
                "pause",
                "slow_disk",
                "break",
                "slow_net",
                "transfer",
                "snapshot",
                "isolate_leader",
            ]
        )
        getattr(self, f"_{choice}")()
        self.world.after(self.world.between(0.2, 1.6), self._strike)

    def _some(self) -> Voter:
        return self.world.rng.choice(self.voters)

    def _leader(self) -> Voter | None:
        leaders = [v for v in self.voters if v.node is not None and v.node.status.role == "leader"]
        return max(leaders, key=lambda v: v.node.status.term if v.node else 0) if leaders else None

    def _crash(self) -> None:
        self._down(self._some())

    def _crash_leader(self) -> None:
        leader = self._leader()
        if leader is not None:
            self._down(leader)

    def _crash_all(self) -> None:
        for voter in self.voters:
            self._down(voter)

    def _down(self, voter: Voter) -> None:
        if voter.alive:
            self.crash(voter)
            self.world.after(self.world.between(0.05, 2.5), lambda: self.restart(voter))

    def _partition(self) -> None:
        names = [v.name for v in self.voters]
        self.world.rng.shuffle(names)
        cut = self.world.rng.randrange(1, len(names))
        left, right = names[:cut], names[cut:]
        self.world.tell(f"partition {sorted(left)} | {sorted(right)}")
        for a in left:
            for b in right:
                self.network.cut(a, b)
                self.network.cut(b, a)
        self.world.after(self.world.between(0.2, 3.0), self.heal)

    def _isolate_leader(self) -> None:
        leader = self._leader()
        if leader is None:
            return
        self.world.tell(f"isolate leader {leader.name}")
        for other in self.voters:
            if other is not leader:
                self.network.cut(leader.name, other.name)
                self.network.cut(other.name, leader.name)
        self.world.after(self.world.between(0.5, 4.0), self.heal)

    def _one_way(self) -> None:
        a, b = self.world.rng.sample(self.voters, 2)
        self.world.tell(f"cut {a.name} -> {b.name}")
        self.network.cut(a.name, b.name)
        self.world.after(self.world.between(0.2, 3.0), self.heal)

    def _pause(self) -> None:
        voter = self._some()
        self.world.tell(f"pause {voter.name}")
        voter.pause()
        self.world.after(self.world.between(0.3, 4.0), voter.resume)

    def _slow_disk(self) -> None:
        voter = self._some()
        self.world.tell(f"slow disk {voter.name}")
        voter.fsync_s = (0.02, 0.3)

        def recover() -> None:
            voter.fsync_s = (0.0002, 0.003)

        self.world.after(self.world.between(0.5, 3.0), recover)

    def _break(self) -> None:
        a, b = self.world.rng.sample(self.voters, 2)
        self.world.tell(f"break {a.name} - {b.name}")
        self.break_connection(a, b)

    def _slow_net(self) -> None:
        self.world.tell("slow network")
        self.network.slowness = self.world.between(5.0, 60.0)
        self.world.after(self.world.between(0.5, 2.0), self.heal)

    def _transfer(self) -> None:
        leader = self._leader()
        if leader is not None:
            self.world.tell(f"transfer from {leader.name}")
            leader.call(lambda node: node.hand_over(None, 3.0, lambda found: None))

    def _snapshot(self) -> None:
        voter = self._some()
        if voter.alive:
            voter.call(lambda node: node.want_snapshot(0, lambda file: None))

    # The end

    def calm(self) -> None:
        """Stop the faults and let everyone in again."""
        self.faults = False
        self.world.tell("calm")
        self.heal()
        for voter in self.voters:
            voter.resume()
            voter.fsync_s = (0.0002, 0.003)
            self.restart(voter)

    def converged(self) -> bool:
        nodes = [v.node for v in self.voters]
        return all(n is not None and n.ready and n.machine.index >= self.checks.acknowledged_to for n in nodes)


def simulate(seed: int, *, virtual_s: float = 20.0, trace: bool = False) -> Outcome:
    """Run one seed. Odd seeds have 3 voters, every fourth has 5."""
    world = World(seed, trace)
    outside.clock, outside.rng = world.clock, random.Random(seed)
    size = 5 if seed % 4 == 0 else 3
    started = time.process_time()
    broken: str | None = None
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as directory:
        cluster = Cluster(world, size, Path(directory))
        try:
            cluster.start()
            world.run_until(1000.0 + virtual_s - QUIET_S)
            cluster.calm()
            end = world.now + QUIET_S
            world.run_until(end - 2.0)
            for client in cluster.clients:
                client.stopped = True
            world.run_until(end)
            patience = world.now + 10.0
            while world.now < patience and not (cluster.converged() and all(c.idle for c in cluster.clients)):
                world.run_until(world.now + 0.1)
            if not cluster.converged():
                states = [v.node.status if v.node else v.name for v in cluster.voters]
                raise Broken(f"not converged after the faults: {states}")
            cluster.checks.finish(cluster.voters)
        except Exception as error:
            if not isinstance(error, Broken):
                world.tell(f"{type(error).__name__}: {error}")
            broken = f"{type(error).__name__}: {error}"
            if trace:
                raise
    return Outcome(
        seed,
        broken,
        world.story,
        world.now - 1000.0,
        time.process_time() - started,
        cluster.checks,
        max(cluster.checks.leaders, default=0),
        cluster.network.messages,
    )
