"""One simulated machine with a voter: it drives the real `RaftNode` in turns, with a disk that takes its time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import cast

import httpx

from ringrift_cluster.controllers.runner import Controllers
from ringrift_cluster.raft.conf import Limits, Timing, VoterConfig
from ringrift_cluster.raft.configuration import Configuration
from ringrift_cluster.raft.engine import RaftReplica
from ringrift_cluster.raft.errors import DiskFailed, DiskLost, Removed
from ringrift_cluster.raft.messages import Hello, Message, Raft, Welcome
from ringrift_cluster.raft.node import RaftNode
from ringrift_cluster.raft.seams import outside
from ringrift_cluster.raft.snapshots import SnapshotDir
from ringrift_cluster.raft.thread import ConsensusThread
from tests.simulation.disk import Disk
from tests.simulation.http import Http, Serve
from tests.simulation.loop import Clock, VirtualLoop
from tests.simulation.network import Network
from tests.simulation.policies import Policies
from tests.simulation.site import Site
from tests.simulation.thread import VirtualThread
from tests.simulation.world import World

TICK_S = 0.04
#: how often a turn is held up, where turns are
HELD_UP = 0.3
SPACE_CHECK_S = 1.0
LIMITS = Limits(
    snapshot_entries=60,
    tail_entries=25,
    part_bytes=2_000,
    in_flight=64,
    queue=512,
    window_entries=300,
    commands_per_entry=4,
)


@dataclass(slots=True)
class Life:
    """What a machine holds from its start to its crash."""

    node: RaftNode
    loop: VirtualLoop
    site: Site
    controllers: Controllers


class Voter:
    """A machine that can crash, restart and pause. `watch` is told after each turn."""

    def __init__(
        self,
        name: str,
        names: list[str],
        world: World,
        network: Network,
        servers: Mapping[str, Callable[[], Serve | None]],
        directory: Path,
        watch: Callable[[Voter], None],
        joins: bool = False,
    ) -> None:
        """`names` are the voters that the cluster begins with; one that joins comes with an empty disk."""
        self.name = name
        self._bootstrap = {} if joins else {n: f"{n}:1" for n in names}
        self._world = world
        self._network = network
        self._servers = servers
        self.directory = directory
        self._watch = watch
        # Clocks run up to a twentieth apart, and no two show the same time.
        self._rate = Random(f"clock {name} {world.seed}").uniform(0.95, 1.05)
        # Drawn apart: with and without them a seed tells one story.
        self._delays = Random(f"delays {name} {world.seed}")
        self.disk = Disk(name)
        #: what it held before its disk was lost
        self.lost: Disk | None = None
        self.node: RaftNode | None = None
        self._life: Life | None = None
        #: counts lives, so that what belongs to an earlier one is recognised
        self.life = 0
        self.paused = False
        #: the last index that was compared with the log, and the furthest that was ever applied in this life
        self.seen = 0
        self.furthest = 0
        #: when it last led, in virtual seconds
        self.led_at = -1.0
        self.role = ""
        self.commit_seen = 0
        #: the list of voters that it went by when it was last looked at
        self.list_seen: Configuration | None = None
        #: when it last led without a quorum that answers
        self.unhealthy_at = 0.0
        self.resumed_at = 0.0
        self._calls: list[Callable[[], None]] = []
        self._busy = False
        self._turn_due = False
        #: messages came since the last turn began
        self._heard = False
        self._durable: list[Callable[[], None]] = []
        self._working = False
        #: called when the process ended by itself
        self.on_end: Callable[[str], None] = lambda sentence: None
        #: called when it learned that it is no voter any more
        self.on_removed: Callable[[], None] = lambda: None

    @property
    def alive(self) -> bool:
        return self.node is not None

    @property
    def writing(self) -> bool:
        """Whether a batch is on its way to the disk."""
        return self._busy

    def start(self) -> None:
        world = self._world
        self.life += 1
        self.paused = False
        self._busy = self._turn_due = self._working = self._heard = False
        self._calls, self._durable = [], []
        self.directory.mkdir(exist_ok=True)
        config = VoterConfig(
            node_id=self.name,
            voters=self._bootstrap,
            bind=f"{self.name}:1",
            data_dir=self.directory,
            timing=Timing(),
            limits=LIMITS,
        )
        clock = self.clock = Clock(world, self._rate, world.between(1.0, 1000.0))
        outside.clock = clock
        self.node = RaftNode(config, self.disk, SnapshotDir(self.directory), self, clock=clock, rng=world.rng)
        loop = VirtualLoop(world, clock)
        loop.enter()
        replica = RaftReplica(cast(ConsensusThread, VirtualThread(self, self.node, config)))
        site = Site(loop, clock, replica)
        http = Http(world, self._network, self.name, self._servers)
        controllers = Policies(self, world, replica, cast(httpx.AsyncClient, http), clock)
        self._life = Life(self.node, loop, site, controllers)
        loop.create_task(site.beats.run())
        loop.create_task(controllers.run())
        self.seen = self.furthest = self.node.machine.index
        by = self.node.membership.configuration.index
        # A list in the log below the snapshot went with what the snapshot took the place of.
        if self.node.machine.index < (self.disk.list_at or 0) > by:
            world.fail(
                f"{self.name} starts with the list of voters of entry {by}, its log has one at {self.disk.list_at}"
            )
        try:
            self.node.begin()
        except Removed:
            # It crashed between learning that and leaving.
            self._leave()
            return
        except DiskFailed as error:
            self._end()
            self.on_end(str(error))
            return
        self._tick(self.life)
        self._check_space(self.life)

    def crash(self) -> None:
        """Lose everything that was not synced; a batch on its way may or may not have made it."""
        node = self.node
        assert node is not None
        if self._busy and not self.disk.full and self._world.chance(0.5):
            node.sync()
        if self._working:
            self._tear()
        self._end()

    def end(self) -> None:
        """Forget what it was about to do."""
        if self._life is not None:
            self._life.site.reset()
            self._life.loop.kill()

    def wipe(self) -> None:
        """While it is down, an empty disk takes the place of its disk."""
        self.lost, self.disk = self.disk, Disk(self.name)
        self.disk.committed = self.lost.committed
        shutil.rmtree(self.directory)

    def holds(self, index: int, term: int) -> bool:
        """Whether an entry is on its disk, or was until that was lost: a lost log never counts again."""
        return self.disk.holds(index, term) or (self.lost is not None and self.lost.holds(index, term))

    def welcomed(self, hello: Hello, answer: Welcome) -> bool:
        """Take a peer's answer; returns whether both go on."""
        assert self.node is not None
        try:
            self.node.welcomed(hello, answer)
        except DiskLost as error:
            self._end()
            self.on_end(str(error))
        return not answer.reason

    def _leave(self) -> None:
        self._end()
        self.on_removed()

    def _end(self) -> None:
        life = self._life
        assert life is not None
        self.node = self._life = None
        self.life += 1
        self.role = ""
        self.commit_seen = 0
        self.list_seen = None
        life.site.reset()
        life.loop.kill()
        for report in life.controllers.reports.values():
            if report.failures:
                self._world.fail(f"{self.name}: the controller {report.name} failed: {report.last_error}")

    def _tear(self) -> None:
        """What another thread was writing is there in part."""
        for draft in (*self.directory.glob("*.tmp"), *self.directory.glob("*.part")):
            with draft.open("r+b") as out:
                out.truncate(draft.stat().st_size // 2)

    def serve(self) -> Serve | None:
        return self._life.site.serve if self._life is not None else None

    # The node's links and the network's door

    def send(self, peer: str, message: Message) -> None:
        self._network.send(self.name, peer, message)

    def reach(self, addresses: Mapping[str, str]) -> None:
        """Whoever may greet whom is tried by the cluster."""

    def deliver(self, peer: str, message: Raft) -> None:
        if self.node is not None:
            self.node.deliver(peer, message)
            self._heard = True
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

    def _check_space(self, life: int) -> None:
        if life != self.life or self.node is None:
            return
        low = f"{self.name} has too little free space" if self.disk.low else None
        self.call(lambda node: node.close_door(low))
        self._world.after(SPACE_CHECK_S, lambda: self._check_space(life))

    def wake(self) -> None:
        if self.node is None or self.paused or self._busy or self._turn_due:
            return
        self._turn_due = True
        life = self.life
        self._world.after(0.00002 + 0.00028 * self._world.rng.random(), lambda: self._turn(life))

    def pause(self) -> None:
        self.paused = True
        if self._life is not None:
            self._life.loop.pause()

    def resume(self) -> None:
        self.paused = False
        self.resumed_at = self._world.now
        self.unhealthy_at = self._world.now
        if self._life is not None:
            self._life.loop.resume()
        if self.role == "leader":
            # It believes so until its next turn.
            self.led_at = self._world.now
        self.wake()

    def enter(self) -> None:
        """What runs next runs on this machine."""
        outside.clock = self._library_clock()
        if self._life is not None:
            self._life.loop.enter()

    def _library_clock(self) -> Callable[[], float]:
        """What the library sees in a turn: on a busy machine it reads the clock later than whoever called it."""
        clock, most_s = self.clock, self._world.held_up_s
        if not most_s or self._delays.random() > HELD_UP:
            return clock
        late_s = self._delays.uniform(0.0, most_s)
        return lambda: clock() + late_s

    def _turn(self, life: int) -> None:
        if life != self.life or self.node is None:
            return
        self._turn_due = False
        if self.paused or self._busy:
            return
        self._heard = False
        self.enter()
        calls, self._calls = self._calls, []
        for call in calls:
            call()
        durable, self._durable = self._durable, []
        dirty = self.node.dirty
        try:
            settled = self.node.gather()
        except Removed:
            self._leave()
            return
        if settled:
            # A leader may commit and apply what it was told, before its next write.
            self._watch(self)
        if dirty or self.node.batch_waiting:
            self._busy = True
            self._world.after(self._world.between(*self.disk.fsync_s), lambda: self._synced(life, durable))
        else:
            self._settle(durable, settled=settled)

    def _synced(self, life: int, durable: list[Callable[[], None]]) -> None:
        if life != self.life or self.node is None:
            return
        if self.paused:
            self._world.after(0.01, lambda: self._synced(life, durable))
            return
        self.enter()
        self._busy = False
        try:
            self.node.sync()
        except DiskFailed as error:
            self._end()
            self.on_end(str(error))
            return
        self._settle(durable)

    def _settle(self, durable: list[Callable[[], None]], *, settled: bool = False) -> None:
        node = self.node
        assert node is not None
        try:
            if not settled:
                node.settle()
        except Removed:
            self._leave()
            return
        for then in durable:
            then()
        self._watch(self)
        job = node.take_job()
        if job is not None:
            life = self.life
            self._working = True

            def work() -> None:
                if life != self.life:
                    return
                self.enter()
                self._working = False
                job.run()
                self.call(lambda _: job.finish())

            self._world.after(self._world.between(0.002, 0.2), work)
        if node.dirty or node.behind or self._heard or self._calls or self._durable:
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
        let_in = [a.welcomed(state["b"][0], state["a"][1]), b.welcomed(state["a"][0], state["b"][1])]
        if not all(let_in) or a.node is None or b.node is None:
            return
        network.open(a.name, b.name)
        a.node.connected(b.name)
        b.node.connected(a.name)
        a.wake()
        b.wake()

    world.after(world.between(0.0005, 0.003), greet)
