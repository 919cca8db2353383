"""What befalls a cluster: one fault after the other, some of them aimed."""

from __future__ import annotations

from collections.abc import Callable

from tests.simulation.cluster import FAST_DISK, Cluster
from tests.simulation.voter import Voter

SLOW_DISK = (0.02, 0.3)


class Faults:
    """Strikes at random moments until it is stopped."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._world = cluster.world
        self._stopped = False
        once: list[Callable[[], None]] = [
            self._crash_all,
            self._crash_writing,
            self._break,
            self._slow_net,
            self._flap,
            self._snapshot,
            self._isolate_leader,
        ]
        often = [self._crash, self._crash_leader, self._partition, self._one_way, self._pause, self._slow_disk]
        self._choices = [
            *once,
            *often,
            *often,
            self._transfer,
            self._transfer,
            self._catch_unsynced,
            self._catch_unsynced,
        ]

    def start(self) -> None:
        self._world.after(1.2, self._strike)

    def stop(self) -> None:
        self._stopped = True

    def _strike(self) -> None:
        if self._stopped:
            return
        self._world.rng.choice(self._choices)()
        self._world.after(self._world.between(0.05, 1.2), self._strike)

    def _some(self) -> Voter:
        return self._world.rng.choice(self._cluster.voters)

    def _two(self) -> tuple[Voter, Voter]:
        a, b = self._world.rng.sample(self._cluster.voters, 2)
        return a, b

    def _leader(self) -> Voter | None:
        leaders = [v for v in self._cluster.voters if v.node is not None and v.node.status.role == "leader"]
        return max(leaders, key=lambda v: v.node.status.term if v.node else 0) if leaders else None

    def _down(self, voter: Voter, low: float = 0.01, high: float = 2.5) -> None:
        if voter.alive and not self._stopped:
            self._cluster.crash(voter)
            self._world.after(self._world.between(low, high), lambda: self._cluster.restart(voter))

    def _cut(self, left: list[Voter], right: list[Voter]) -> None:
        for a in left:
            for b in right:
                self._cluster.network.cut(a.name, b.name)
                self._cluster.network.cut(b.name, a.name)

    # Crashes

    def _crash(self) -> None:
        self._down(self._some())

    def _crash_leader(self) -> None:
        leader = self._leader()
        if leader is not None:
            self._down(leader)

    def _crash_all(self) -> None:
        for voter in self._cluster.voters:
            self._down(voter)

    def _crash_writing(self) -> None:
        """A crash in the moment in which a batch is on its way to the disk."""
        voter = self._some()
        self._when_writing(voter, lambda: self._down(voter, 0.01, 0.5), after=0.0)

    def _catch_unsynced(self) -> None:
        """One voter cut off, one with a slow disk, then the two that made the majority lose their power.

        Whatever was acknowledged before it was on two disks is gone when those that come back first decide.
        """
        leader = self._leader()
        others = [v for v in self._cluster.voters if v is not leader and v.alive]
        if leader is None or len(others) < 2:
            return
        self._world.rng.shuffle(others)
        needed = len(self._cluster.voters) // 2
        slow, away = others[:needed], others[needed:]
        names = [v.name for v in slow]
        self._world.tell(f"cut off {[v.name for v in away]}, slow disks {names}, then power off with {leader.name}")
        self._cut(away, [leader, *slow])
        for voter in slow:
            voter.fsync_s = SLOW_DISK

        def off() -> None:
            for voter in slow:
                voter.fsync_s = FAST_DISK
                self._down(voter, 0.01, 0.1)
            self._down(leader, 1.5, 3.0)
            self._cluster.heal()

        self._when_writing(slow[0], off, after=self._world.between(0.05, 0.4))

    def _when_writing(self, voter: Voter, then: Callable[[], None], *, after: float) -> None:
        """Run `then` a while into a batch's way to the disk, or after half a second without one."""

        def look(left: int) -> None:
            if voter.writing or left == 0:
                self._world.after(self._world.between(0.0, 0.02), then)
            else:
                self._world.after(0.002, lambda: look(left - 1))

        self._world.after(after, lambda: look(250))

    # Network

    def _partition(self) -> None:
        voters = list(self._cluster.voters)
        self._world.rng.shuffle(voters)
        cut = self._world.rng.randrange(1, len(voters))
        left, right = voters[:cut], voters[cut:]
        self._world.tell(f"partition {sorted(v.name for v in left)} | {sorted(v.name for v in right)}")
        self._cut(left, right)
        self._world.after(self._world.between(0.2, 3.0), self._cluster.heal)

    def _isolate_leader(self) -> None:
        leader = self._leader()
        if leader is None:
            return
        self._world.tell(f"isolate leader {leader.name}")
        self._cut([leader], [v for v in self._cluster.voters if v is not leader])
        self._world.after(self._world.between(0.5, 4.0), self._cluster.heal)

    def _one_way(self) -> None:
        a, b = self._two()
        self._world.tell(f"cut {a.name} -> {b.name}")
        self._cluster.network.cut(a.name, b.name)
        self._world.after(self._world.between(0.2, 3.0), self._cluster.heal)

    def _break(self) -> None:
        a, b = self._two()
        self._world.tell(f"break {a.name} - {b.name}")
        self._cluster.break_connection(a, b)

    def _flap(self) -> None:
        """A connection that breaks again and again: much is sent twice."""
        a, b = self._two()
        self._world.tell(f"flap {a.name} - {b.name}")
        for i in range(12):
            self._world.after(0.04 * i, lambda: self._cluster.break_connection(a, b))

    def _slow_net(self) -> None:
        self._world.tell("slow network")
        self._cluster.network.slowness = self._world.between(5.0, 60.0)
        self._world.after(self._world.between(0.5, 2.0), self._cluster.heal)

    # Machines

    def _pause(self) -> None:
        voter = self._some()
        self._world.tell(f"pause {voter.name}")
        voter.pause()
        self._world.after(self._world.between(0.3, 4.0), voter.resume)

    def _slow_disk(self) -> None:
        voter = self._some()
        self._world.tell(f"slow disk {voter.name}")
        voter.fsync_s = SLOW_DISK

        def recover() -> None:
            voter.fsync_s = FAST_DISK

        self._world.after(self._world.between(0.5, 3.0), recover)

    # Orders

    def _transfer(self) -> None:
        leader = self._leader()
        if leader is not None:
            self._world.tell(f"transfer from {leader.name}")
            leader.call(lambda node: node.hand_over(None, 3.0, lambda found: None))

    def _snapshot(self) -> None:
        voter = self._some()
        if voter.alive:
            voter.call(lambda node: node.want_snapshot(0, lambda file: None))
