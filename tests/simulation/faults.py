"""What befalls a cluster: one fault after the other, some of them aimed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from tests.simulation.cluster import Cluster, Machine
from tests.simulation.directed import DIRECTED, Stage
from tests.simulation.disk import FAST_S, SLOW_S
from tests.simulation.plan import Strike
from tests.simulation.voter import Voter
from tests.simulation.world import BEGAN_AT


class Faults:
    """Carries out a plan until it is stopped. Each strike has a random source of its own."""

    def __init__(self, cluster: Cluster, plan: Sequence[Strike]) -> None:
        self._cluster = cluster
        self._world = cluster.world
        self._plan = plan
        self._stopped = False
        self._stage = Stage(cluster.world)

    def start(self) -> None:
        for strike in self._plan:
            self._world.at(BEGAN_AT + strike.at_s, lambda strike=strike: self._strike(strike))  # type: ignore[misc]

    def stop(self) -> None:
        self._stopped = True
        self._stage.stop()

    def _strike(self, strike: Strike) -> None:
        if self._stopped:
            return
        # A strike draws from its own source, so that what is left out changes nothing about the others.
        self._rng = Random(strike.seed)
        self._number = strike.number
        if strike.kind in DIRECTED:
            if not self._stage.busy:
                self._stage.play(DIRECTED[strike.kind](self._cluster, self._rng))
            return
        action: Callable[[], None] = getattr(self, f"_{strike.kind}")
        action()

    def _tell(self, text: str) -> None:
        self._world.tell(f"#{self._number} {text}")

    def _after(self, low: float, high: float, then: Callable[[], None]) -> None:
        self._world.after(self._rng.uniform(low, high), then)

    def _some(self) -> Voter:
        return self._rng.choice(self._cluster.voters)

    def _two(self) -> tuple[Voter, Voter]:
        a, b = self._rng.sample(self._cluster.voters, 2)
        return a, b

    def _others(self, voter: Voter) -> list[Voter]:
        others = [v for v in self._cluster.voters if v is not voter and v.alive]
        self._rng.shuffle(others)
        return others

    def _down(self, machine: Machine, low: float = 0.01, high: float = 2.5) -> None:
        if machine.alive and not self._stopped:
            self._cluster.crash(machine)
            self._after(low, high, lambda: self._cluster.restart(machine))

    def _cut(self, left: Sequence[Machine], right: Sequence[Machine]) -> None:
        for a in left:
            for b in right:
                self._cluster.network.cut(a.name, b.name)
                self._cluster.network.cut(b.name, a.name)

    # Crashes

    def _crash(self) -> None:
        self._down(self._some())

    def _crash_leader(self) -> None:
        leader = self._cluster.leader()
        if leader is not None:
            self._down(leader)

    def _crash_all(self) -> None:
        for voter in self._cluster.voters:
            self._down(voter)

    def _wipe(self) -> None:
        voter = self._some()
        if self._cluster.membership.may_wipe(voter):
            self._cluster.wipe(voter, self._rng.uniform(0.01, 1.0), self._rng.uniform(0.5, 3.0))

    def _crash_follower(self) -> None:
        self._down(self._rng.choice(self._cluster.followers))

    def _crash_writing(self) -> None:
        """A crash in the moment in which a batch is on its way to the disk."""
        voter = self._some()
        self._when_writing(voter, lambda: self._down(voter, 0.01, 0.5), after=0.0)

    def _catch_unsynced(self) -> None:
        """One voter cut off, one with a slow disk, then the two that made the majority lose their power.

        Whatever was acknowledged before it was on two disks is gone when those that come back first decide.
        """
        leader = self._cluster.leader()
        others = self._others(leader) if leader is not None else []
        if leader is None or len(others) < 2:
            return
        needed = len(self._cluster.voters) // 2
        slow, away = others[:needed], others[needed:]
        names = [v.name for v in slow]
        self._tell(f"cut off {[v.name for v in away]}, slow disks {names}, then power off with {leader.name}")
        self._cut(away, [leader, *slow])
        for voter in slow:
            voter.disk.fsync_s = SLOW_S

        def off() -> None:
            for voter in slow:
                voter.disk.fsync_s = FAST_S
                self._down(voter, 0.01, 0.1)
            self._down(leader, 1.5, 3.0)
            self._cluster.heal()

        self._when_writing(slow[0], off, after=self._rng.uniform(0.05, 0.4))

    def _when_writing(self, voter: Voter, then: Callable[[], None], *, after: float) -> None:
        """Run `then` a while into a batch's way to the disk, or after half a second without one."""
        delay = self._rng.uniform(0.0, 0.02)

        def look(left: int) -> None:
            if voter.writing or left == 0:
                self._world.after(delay, then)
            else:
                self._world.after(0.002, lambda: look(left - 1))

        self._world.after(after, lambda: look(250))

    # Network

    def _partition(self) -> None:
        machines: list[Machine] = [*self._cluster.voters, *self._cluster.followers]
        self._rng.shuffle(machines)
        cut = self._rng.randrange(1, len(machines))
        left, right = machines[:cut], machines[cut:]
        self._tell(f"partition {sorted(v.name for v in left)} | {sorted(v.name for v in right)}")
        self._cut(left, right)
        self._after(0.2, 3.0, self._cluster.heal)

    def _bridge(self) -> None:
        """One voter sees both sides, which do not see each other."""
        bridge = self._some()
        others = self._others(bridge)
        half = len(others) // 2
        left, right = others[:half], others[half:]
        self._tell(f"bridge {sorted(v.name for v in left)} | {bridge.name} | {sorted(v.name for v in right)}")
        self._cut(left, right)
        self._after(0.5, 4.0, self._cluster.heal)

    def _isolate_leader(self) -> None:
        leader = self._cluster.leader()
        if leader is None:
            return
        self._tell(f"isolate leader {leader.name}")
        self._cut([leader], [v for v in self._cluster.voters if v is not leader])
        self._after(0.5, 4.0, self._cluster.heal)

    def _return_late(self) -> None:
        """A voter is cut off, with its connections up, until its election is long due; then it comes back."""
        leader = self._cluster.leader()
        others = self._others(leader) if leader is not None else []
        if not others or self._cluster.network.cuts:
            return
        self._tell(f"{others[0].name} falls silent and returns")
        self._cut([others[0]], [v for v in self._cluster.voters if v is not others[0]])
        self._after(1.5, 3.5, lambda: self._cluster.heal(keep_connections=True))

    def _one_way(self) -> None:
        a, b = self._two()
        self._tell(f"cut {a.name} -> {b.name}")
        self._cluster.network.cut(a.name, b.name)
        self._after(0.2, 3.0, self._cluster.heal)

    def _cut_follower(self) -> None:
        follower = self._rng.choice(self._cluster.followers)
        voters = self._cluster.voters
        seen = self._rng.sample(voters, self._rng.randrange(len(voters)))
        self._tell(f"{follower.name} sees only {sorted(v.name for v in seen)}")
        self._cut([follower], [v for v in voters if v not in seen])
        self._after(0.5, 4.0, self._cluster.heal)

    def _break(self) -> None:
        a, b = self._two()
        self._tell(f"break {a.name} - {b.name}")
        self._cluster.break_connection(a, b)

    def _flap(self) -> None:
        """A connection that breaks again and again: much is sent twice."""
        a, b = self._two()
        self._tell(f"flap {a.name} - {b.name}")
        for i in range(12):
            self._world.after(0.04 * i, lambda: self._cluster.break_connection(a, b))

    def _slow_network(self) -> None:
        slowness = self._rng.uniform(5.0, 60.0)
        self._tell(f"network {slowness:.0f} times slower")
        self._cluster.slow_down(slowness)
        self._after(0.5, 2.0, self._cluster.heal)

    # Machines

    def _pause(self) -> None:
        self._stop_for(self._some(), 0.3, 4.0)

    def _pause_follower(self) -> None:
        self._stop_for(self._rng.choice(self._cluster.followers), 0.3, 5.0)

    def _stop_for(self, machine: Machine, low: float, high: float) -> None:
        span = self._rng.uniform(low, high)
        self._tell(f"pause {machine.name} for {span:.1f} s")
        self._cluster.pause(machine)
        self._world.after(span, machine.resume)

    def _slow_disk(self) -> None:
        voter = self._some()
        self._tell(f"slow disk {voter.name}")
        voter.disk.fsync_s = SLOW_S

        def recover() -> None:
            voter.disk.fsync_s = FAST_S

        self._after(0.5, 3.0, recover)

    def _full_disk(self) -> None:
        """Free space goes below the floor, sometimes to nothing; then somebody makes room."""
        voter = self._cluster.leader() if self._rng.random() < 0.5 else self._some()
        if voter is None:
            return
        self._tell(f"disk of {voter.name} is nearly full")
        voter.disk.low = True
        span = self._rng.uniform(1.5, 4.0)
        if self._rng.random() < 0.4:

            def fill() -> None:
                if voter.disk.low:
                    voter.disk.full = True

            self._world.after(span / 2, fill)

        def recover() -> None:
            voter.disk.low = voter.disk.full = False
            self._cluster.restart(voter)

        self._world.after(span, recover)

    # Orders

    def _transfer(self) -> None:
        self._tell("transfer")
        self._cluster.hand_over(None)

    def _snapshot(self) -> None:
        voter = self._some()
        if voter.alive:
            voter.call(lambda node: node.want_snapshot(0, lambda file: None))

    def _voters(self) -> None:
        self._cluster.membership.change(self._rng)

    def _operator(self) -> None:
        self._cluster.operator.act(self._rng)
