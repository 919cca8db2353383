"""One simulated machine: it drives the real `RaftNode` in turns, with a disk that takes its time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ringrift_cluster.raft.conf import Limits, Timing, VoterConfig
from ringrift_cluster.raft.messages import Hello, Message, Raft, Welcome
from ringrift_cluster.raft.node import RaftNode
from ringrift_cluster.raft.snapshots import SnapshotDir
from tests.simulation.disk import Disk
from tests.simulation.network import Network
from tests.simulation.world import World

TICK_S = 0.025
LIMITS = Limits(snapshot_entries=60, tail_entries=25, part_bytes=2_000, in_flight=64, queue=512, window_entries=100_000)


class Voter:
    """A machine that can crash, restart and pause."""

    def __init__(
        self,
        name: str,
        names: list[str],
        world: World,
        network: Network,
        directory: Path,
        watch: Callable[[Voter], None],
    ) -> None:
        self.name = name
        self._names = names
        self._world = world
        self._network = network
        self._directory = directory
        self._watch = watch
        self.disk = Disk(name)
        self.node: RaftNode | None = None
        #: counts lives, so that what belongs to an earlier one is recognised
        self.life = 0
        self.paused = False
        self.fsync_s = (0.0002, 0.003)
        self.seen = 0
        self._calls: list[Callable[[], None]] = []
        self._busy = False
        self._turn_due = False
        self._durable: list[Callable[[], None]] = []

    @property
    def alive(self) -> bool:
        return self.node is not None

    @property
    def writing(self) -> bool:
        """Whether a batch is on its way to the disk."""
        return self._busy

    def start(self) -> None:
        self.life += 1
        self.paused = False
        self._busy = self._turn_due = False
        self._calls, self._durable = [], []
        self._directory.mkdir(exist_ok=True)
        config = VoterConfig(
            node_id=self.name,
            voters=dict.fromkeys(self._names, "sim:1"),
            data_dir=self._directory,
            timing=Timing(),
            limits=LIMITS,
        )
        self.node = RaftNode(
            config,
            self.disk,
            SnapshotDir(self._directory),
            self,
            clock=self._world.clock,
            rng=self._world.rng,
        )
        self.seen = self.node.machine.index
        self.node.begin()
        self._tick(self.life)

    def crash(self) -> None:
        """Lose everything that was not synced; a batch on its way may or may not have made it."""
        node = self.node
        assert node is not None
        if self._busy and self._world.chance(0.5):
            node.sync()
        self.node = None
        self.life += 1

    # The node's links and the network's door

    def send(self, peer: str, message: Message) -> None:
        self._network.send(self.name, peer, message)

    def reach(self, addresses: Mapping[str, str]) -> None:
        """Whoever may greet whom is tried by the cluster."""

    def deliver(self, peer: str, message: Raft) -> None:
        if self.node is not None:
            self.node.deliver(peer, message)
            self.wake()

    def call(self, action: Callable[[RaftNode], None]) -> None:
        """Run `action` at the start of the next turn, as calls of other threads are."""
        life = self.life

        def run() -> None:
            if self.node is not None and self.life == life:
                action(self.node)

        self._calls.append(run)
        self.wake()

    def when_durable(self, then: Callable[[], None]) -> None:
        self._durable.append(then)
        self.wake()

    # Turns

    def _tick(self, life: int) -> None:
        if life != self.life:
            return
        self.wake()
        self._world.after(TICK_S, lambda: self._tick(life))

    def wake(self) -> None:
        if self.node is None or self.paused or self._busy or self._turn_due:
            return
        self._turn_due = True
        life = self.life
        self._world.after(self._world.between(0.00002, 0.0003), lambda: self._turn(life))

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self.wake()

    def _turn(self, life: int) -> None:
        if life != self.life or self.node is None:
            return
        self._turn_due = False
        if self.paused:
            return
        calls, self._calls = self._calls, []
        for call in calls:
            call()
        durable, self._durable = self._durable, []
        dirty = self.node.dirty
        self.node.gather()
        if dirty or self.node.batch_waiting:
            self._busy = True
            self._world.after(self._world.between(*self.fsync_s), lambda: self._synced(life, durable))
        else:
            self._settle(durable)

    def _synced(self, life: int, durable: list[Callable[[], None]]) -> None:
        if life != self.life or self.node is None:
            return
        if self.paused:
            self._world.after(0.01, lambda: self._synced(life, durable))
            return
        self._busy = False
        self.node.sync()
        self._settle(durable)

    def _settle(self, durable: list[Callable[[], None]]) -> None:
        node = self.node
        assert node is not None
        node.settle()
        for then in durable:
            then()
        self._watch(self)
        job = node.take_job()
        if job is not None:
            life = self.life

            def work() -> None:
                if life == self.life:
                    job.run()
                    self.call(lambda _: job.finish())

            self._world.after(self._world.between(0.002, 0.2), work)
        if node.dirty or node.behind or self._calls:
            self.wake()


def handshake(world: World, network: Network, a: Voter, b: Voter) -> None:
    """Greet, record, and connect both once each side's record is durable."""
    lives = (a.life, b.life)

    def same() -> bool:
        return a.alive and b.alive and (a.life, b.life) == lives and network.reachable(a.name, b.name)

    state: dict[str, tuple[Hello, Welcome]] = {}

    def greet() -> None:
        if not same() or a.node is None or b.node is None or network.connection(a.name, b.name):
            return
        hello_a, hello_b = a.node.hello(b""), b.node.hello(b"")
        state["a"] = (hello_a, b.node.judge(hello_a))
        state["b"] = (hello_b, a.node.judge(hello_b))
        a.when_durable(lambda: b.when_durable(lambda: world.after(0.001, finish)))

    def finish() -> None:
        if not same() or a.node is None or b.node is None or network.connection(a.name, b.name):
            return
        a.node.welcomed(state["b"][0], state["a"][1])
        b.node.welcomed(state["a"][0], state["b"][1])
        if state["a"][1].reason or state["b"][1].reason:
            return
        network.open(a.name, b.name)
        a.node.connected(b.name)
        b.node.connected(a.name)
        a.wake()
        b.wake()

    world.after(world.between(0.0005, 0.003), greet)
