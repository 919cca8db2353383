"""A cluster of simulated machines: what connects them, and how it is brought to rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ringrift_cluster.raft.messages import Raft
from tests.simulation.checks import Checks
from tests.simulation.clients import Client
from tests.simulation.disk import FAST_S
from tests.simulation.follower import Follower
from tests.simulation.http import Serve
from tests.simulation.ledger import Ledger
from tests.simulation.membership import Membership
from tests.simulation.network import Network
from tests.simulation.operator import Operator
from tests.simulation.progress import Progress
from tests.simulation.voter import Voter, handshake
from tests.simulation.world import Broken, World

Machine = Voter | Follower
#: entries sent against entries that had to be sent
MOST_REPEATS = 1.2


class Cluster:
    """The voters, the followers, their clients and what connects them."""

    def __init__(self, world: World, size: int, directory: Path, followers: int = 2) -> None:
        self.world = world
        self.network = Network(world, self._deliver)
        ledger = Ledger(world)
        self.voters: list[Voter] = []
        self.checks = checks = Checks(world, ledger, self.voters)
        names = [f"v{i}" for i in range(1, size + 1)]
        servers: dict[str, Callable[[], Serve | None]] = {}
        machines: dict[str, Voter] = {}
        made: Counter[str] = Counter()

        def make(name: str, joins: bool) -> Voter:
            made[name] += 1
            home = directory / f"{name}.{made[name]}"
            voter = Voter(name, names, world, self.network, servers, home, checks.watch, joins)
            voter.on_end = lambda sentence: self._ended(voter, sentence)
            voter.on_removed = lambda: self._removed(voter)
            voter.disk.committed = checks.committed
            machines[name] = voter
            return voter

        self._machines = machines
        self.voters += [make(name, False) for name in names]
        self.membership = Membership(self, size, make)
        hosts = [*names, f"v{size + 1}"]

        def server(name: str) -> Callable[[], Serve | None]:
            return lambda: machines[name].serve() if name in machines else None

        servers |= {name: server(name) for name in hosts}
        self.followers = [
            Follower(f"f{i}", hosts, world, self.network, servers, directory / f"f{i}", ledger, checks.watch_follower)
            for i in range(1, followers + 1)
        ]
        servers |= {f.name: f.serve for f in self.followers}
        self.clients = [Client(i, world, self.voters, checks) for i in range(5)]
        self.operator = Operator(world, self.voters, ledger)
        self.progress = Progress(world, self.network, self.voters, self.leader)

    def _deliver(self, sender: str, receiver: str, message: Raft) -> None:
        self._machines[receiver].deliver(sender, message)

    def start(self) -> None:
        for machine in (*self.voters, *self.followers):
            self.world.after(self.world.between(0.0, 0.5), machine.start)
        self._reconnect()
        self.operator.start()
        self.progress.start()
        for client in self.clients:
            client.start()

    def end(self) -> None:
        """The run is over, well or not: what its machines were about to do is forgotten."""
        for machine in (*self.voters, *self.followers):
            machine.end()

    def _reconnect(self) -> None:
        """Each pair tries again, as the transports do."""
        for i, a in enumerate(self.voters):
            for b in self.voters[i + 1 :]:
                awake = a.alive and b.alive and not (a.paused or b.paused)
                apart = self.network.connection(a.name, b.name) is None
                if awake and apart and _dials(a, b) and self.network.reachable(a.name, b.name):
                    handshake(self.world, self.network, a, b)
        self.world.after(self.world.between(0.1, 0.3), self._reconnect)

    def leader(self) -> Voter | None:
        """Who leads the newest term that somebody leads."""
        leaders = [v for v in self.voters if v.node is not None and v.node.status.role == "leader"]
        return max(leaders, key=lambda v: v.node.status.term if v.node else 0) if leaders else None

    def disturb(self) -> None:
        self.checks.disturbed_at = self.world.now

    def break_connection(self, a: Voter, b: Voter) -> None:
        self.disturb()
        if self.network.close(a.name, b.name):
            for end, other in ((a, b), (b, a)):
                if end.node is not None:
                    end.node.disconnected(other.name)
                    end.wake()

    def crash(self, machine: Machine) -> None:
        if isinstance(machine, Follower):
            self.world.tell(f"crash {machine.name} at {machine.seen}")
            machine.crash()
            return
        node = machine.node
        assert node is not None
        self.world.tell(f"crash {machine.name} at {node.inside.applied}, commit {node.inside.commit}, {machine.role}")
        machine.crash()
        self._gone(machine)

    def _gone(self, voter: Voter) -> None:
        self.disturb()
        for other in self.voters:
            if other is not voter:
                self.break_connection(voter, other)

    def _ended(self, voter: Voter, sentence: str) -> None:
        """The process of a voter ended by itself; the machine goes on and starts it again when it can."""
        self.world.tell(f"{voter.name} ended: {sentence}")
        self._gone(voter)

    def _removed(self, voter: Voter) -> None:
        self.world.tell(f"{voter.name} is no voter any more")
        self._gone(voter)
        self.membership.left(voter)

    def restart(self, machine: Machine) -> None:
        gone = isinstance(machine, Voter) and machine not in self.voters
        if not machine.alive and not gone:
            self.world.tell(f"restart {machine.name}")
            if isinstance(machine, Voter):
                self.disturb()
            machine.start()

    def wipe(self, voter: Voter, back_s: float, noticed_s: float) -> None:
        """A voter loses its disk and comes back as it was started first, under its old name."""
        if voter.alive:
            self.crash(voter)
        self.world.tell(f"{voter.name} lost its disk")
        voter.wipe()
        self.membership.wiped(voter, noticed_s)
        self.world.after(back_s, lambda: self.restart(voter))

    def pause(self, machine: Machine) -> None:
        if machine is self.leader():
            self.disturb()
        machine.pause()

    def slow_down(self, slowness: float) -> None:
        self.disturb()
        self.network.slowness = slowness

    def hand_over(self, target: str | None) -> None:
        leader = self.leader()
        if leader is not None and leader.name != target:
            self.disturb()
            leader.call(lambda node: node.hand_over(target, 3.0, lambda found: None))

    def heal(self, *, keep_connections: bool = False) -> None:
        self.world.tell("heal")
        if self.network.slowness > 1.0:
            self.disturb()
        for a, b in sorted(self.network.cuts):
            # A long cut breaks the connection with all it held back; a short one only delays.
            if not keep_connections and self.world.chance(0.5) and a in self._machines and b in self._machines:
                self.break_connection(self._machines[a], self._machines[b])
        self.network.heal()

    # The end

    def calm(self) -> None:
        """Stop the faults and let everyone in again."""
        self.world.tell("calm")
        self.heal()
        self.disturb()
        self.operator.calm()
        for voter in self.voters:
            voter.resume()
            voter.disk.fsync_s = FAST_S
            voter.disk.low = voter.disk.full = False
            self.restart(voter)
        for follower in self.followers:
            follower.resume()
            self.restart(follower)

    def hand_over_busy(self) -> None:
        """With everybody up and clients at work, leadership moves when it is asked to.

        One that was made a voter this moment lets the order pass until it is connected to the others.
        """
        leader = self.leader()
        if leader is None or not self.membership.at_rest:
            return

        def done(found: str | None) -> None:
            if found is None or found == leader.name:
                raise Broken(f"{leader.name} could not hand over in a calm cluster; {found or 'nobody'} leads")

        self._busy_for(leader, 0.3)
        self.world.tell(f"{leader.name} is asked to hand over")
        self.disturb()
        self.world.after(0.1, lambda: leader.call(lambda node: node.hand_over(None, 1.5, done)))

    def send_much(self) -> None:
        """With everybody up and nothing lost, entries are sent to each voter once.

        To one that joins meanwhile, more than the new ones are sent.
        """
        leader = self.leader()
        if leader is None or leader.node is None or not self.membership.at_rest:
            return
        sent, last, orders = self.network.entries_sent, leader.node.journal.last_index, self.membership.orders
        self._busy_for(leader, 0.5)

        def count() -> None:
            if self.leader() is not leader or leader.node is None or self.membership.orders != orders:
                return
            new = (leader.node.journal.last_index - last) * (len(self.voters) - 1)
            carried = self.network.entries_sent - sent
            if carried > MOST_REPEATS * new:
                raise Broken(f"{leader.name} sent {carried} entries in a calm cluster where {new} were to be sent")

        self.world.after(1.0, count)

    def _busy_for(self, leader: Voter, seconds: float) -> None:
        for i in range(int(seconds / 0.005)):
            self.world.after(0.005 * i, lambda: self.operator.burst(leader))

    def converged(self) -> bool:
        goal = self.checks.acknowledged_to
        names = self.membership.names()
        nodes = [v.node for v in self.voters if v.name in names]
        voters = all(n is not None and n.outlook.ready and n.machine.index >= goal for n in nodes)
        return voters and all(f.replica is not None and f.replica.status().applied >= goal for f in self.followers)

    def unfinished(self) -> str | None:
        """Who is not where everybody should be, or None."""
        if self.converged():
            return None
        states = [v.node.status if v.node else v.name for v in self.voters]
        return f"{states} {[f.replica.status() if f.replica else f.name for f in self.followers]}"


def _dials(a: Voter, b: Voter) -> bool:
    """Whether one of them was told the other's address."""
    assert a.node is not None
    assert b.node is not None
    return b.name in a.node.roster.addresses or a.name in b.node.roster.addresses
