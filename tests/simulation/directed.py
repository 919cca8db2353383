"""Faults that are aimed: each builds the one situation in which a correction of the guard matters, step by step.

A script yields what it waits for: seconds, or a predicate (which is given some seconds; the script gets its value).
When it ends, or is ended because the faults are over, everything it cut is healed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from random import Random

from tests.simulation.cluster import Cluster
from tests.simulation.disk import FAST_S, SLOW_S
from tests.simulation.voter import Voter
from tests.simulation.world import World

Step = float | Callable[[], bool]
Script = Generator[Step, bool, None]

#: the longest wait for a predicate, and how often it is looked at
PATIENCE_S = 4.0
LOOK_S = 0.004


class Stage:
    """Plays one script at a time."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._script: Script | None = None
        #: scripts that reached their end
        self.played = 0

    @property
    def busy(self) -> bool:
        return self._script is not None

    def play(self, script: Script) -> None:
        self._script = script
        self._resume(script, None)

    def stop(self) -> None:
        """End what is under way."""
        script, self._script = self._script, None
        if script is not None:
            script.close()

    def _resume(self, script: Script, found: bool | None) -> None:
        if script is not self._script:
            return
        try:
            step = next(script) if found is None else script.send(found)
        except StopIteration:
            self._script = None
            return
        if callable(step):
            self._look(script, step, self._world.now + PATIENCE_S)
        else:
            self._world.after(step, lambda: self._resume(script, True))

    def _look(self, script: Script, wanted: Callable[[], bool], until: float) -> None:
        if script is not self._script:
            return
        found = wanted()
        if found or self._world.now > until:
            self._resume(script, found)
        else:
            self._world.after(LOOK_S, lambda: self._look(script, wanted, until))


def _cut(cluster: Cluster, left: list[Voter], right: list[Voter]) -> None:
    for a in left:
        for b in right:
            cluster.network.cut(a.name, b.name)
            cluster.network.cut(b.name, a.name)


def _last(voter: Voter) -> int:
    """The end of its log; 0 when it is down."""
    return voter.node.journal.last_index if voter.node is not None else 0


def _leads(voter: Voter) -> bool:
    return voter.node is not None and voter.node.status.role == "leader"


def _burst(cluster: Cluster, voter: Voter, count: int, every_s: float) -> None:
    for i in range(count):
        cluster.world.after(every_s * i, lambda: cluster.operator.burst(voter))


def _cast(cluster: Cluster, rng: Random, others: int) -> list[Voter]:
    """The leader and the other voters that are up, in any order; empty when there are too few of them."""
    leader = cluster.leader()
    if leader is None or cluster.network.cuts:
        return []
    rest = [v for v in cluster.voters if v is not leader and v.alive and not v.paused]
    rng.shuffle(rest)
    return [leader, *rest] if len(rest) >= others else []


def succession(cluster: Cluster, rng: Random) -> Script:
    """A busy leader on a slow network dies; its heir has more than another voter, which has more than it knows.

    The heir sends that one what it may hold already, in several messages, each with the time for a sync between.
    """
    cast = _cast(cluster, rng, 2)
    if not cast:
        return
    first, third, *heirs = cast
    cluster.world.tell(f"{first.name} writes much over a slow network, then not to {third.name}, then loses its power")
    try:
        cluster.slow_down(rng.uniform(30.0, 60.0))
        _burst(cluster, first, 90, 0.006)
        yield rng.uniform(0.3, 0.45)
        cluster.network.cut(first.name, third.name)
        yield rng.uniform(0.05, 0.15)
        if not first.alive:
            return
        cluster.crash(first)
        cluster.world.after(rng.uniform(2.0, 3.0), lambda: cluster.restart(first))
        if (yield lambda: any(map(_leads, heirs))):
            yield 0.8
    finally:
        cluster.heal(keep_connections=True)


def stale_reply(cluster: Cluster, rng: Random) -> Script:
    """Acknowledgements of one term reach their leader when it leads again, two terms later.

    The leader writes to one voter alone, whose answers are held back. The others choose another leader, whose log
    takes the place of what those answers are about. Then the first one leads again, reaches one other voter, and
    hears the old answers. Needs five voters: with three nobody else could be chosen.
    """
    cast = _cast(cluster, rng, 4)
    if not cast:
        return
    network = cluster.network
    first, reached, *rest = cast
    cluster.world.tell(f"{first.name} reaches {reached.name} alone; its answers arrive when it leads again")
    begun = _last(first)
    try:
        _cut(cluster, [first, reached], rest)
        network.cut(reached.name, first.name)
        # As many as the window of unacknowledged entries takes: the old answers must reach beyond the next terms.
        _burst(cluster, first, 80, 0.004)
        if not (yield lambda: any(map(_leads, rest))) or _last(reached) < begun + 40:
            return
        cluster.heal(keep_connections=True)
        _cut(cluster, [first], [reached])
        second = next(v for v in rest if _leads(v))
        if not (yield lambda: _last(second) > 0 and _last(first) == _last(second)):
            return
        second.call(lambda node: node.hand_over(first.name, 2.0, lambda found: None))
        cluster.disturb()
        if not (yield lambda: _leads(first) and first.node is not None and first.node.outlook.ready):
            return
        _cut(cluster, [first], [v for v in rest if v is not second])
        network.cuts.discard((reached.name, first.name))
        network.carry_on()
        _burst(cluster, first, 20, 0.01)
        yield 0.6
    finally:
        cluster.heal(keep_connections=True)


def diverge(cluster: Cluster, rng: Random) -> Script:
    """A leader that nobody hears fills its log; another one is chosen and stays busy when the first comes back.

    What the first one has to give up is long, and what it has to take instead comes in many pieces.
    """
    cast = _cast(cluster, rng, 2)
    if not cast:
        return
    first, *rest = cast
    cluster.world.tell(f"{first.name} writes alone, and comes back to a busy leader")
    begun = _last(first)
    try:
        _cut(cluster, [first], rest)
        _burst(cluster, first, 80, 0.004)
        if not (yield lambda: any(map(_leads, rest))) or _last(first) < begun + 40:
            return
        second = next(v for v in rest if _leads(v))
        _burst(cluster, second, 330, 0.01)
        yield rng.uniform(0.2, 0.5)
        # Or what the second one sent all the while would arrive first, in order.
        cluster.break_connection(first, second)
        cluster.heal(keep_connections=True)
        yield 3.0
    finally:
        cluster.heal(keep_connections=True)


def stale_snapshot(cluster: Cluster, rng: Random) -> Script:
    """A voter that was away fetches a snapshot slowly while the next leader, which kept its log, sends it all entries.

    When the file is there, the voter is long past it.
    """
    cast = _cast(cluster, rng, 2)
    if not cast:
        return
    first, away, heir, *_ = cast
    cluster.world.tell(f"{away.name} will fetch a snapshot of {first.name} while {heir.name} sends it what it lacks")
    done: list[bool] = []

    def compacts(voter: Voter) -> Callable[[], bool]:
        done.clear()
        voter.call(lambda node: node.want_snapshot(0, lambda file: done.append(True)))
        return lambda: bool(done)

    try:
        # The heir's next snapshot is far away from now on.
        if not (yield compacts(heir)):
            return
        others = [v for v in cluster.voters if v is not away]
        _cut(cluster, [away], others)
        for other in others:
            # Or what is under way would arrive after the cut.
            cluster.break_connection(away, other)
        left_at = _last(away)
        _burst(cluster, first, 40, 0.006)
        if not (yield lambda: _last(heir) >= left_at + 32) or not (yield compacts(first)):
            return
        if not _behind(first, left_at) or _behind(heir, left_at):
            return
        cluster.heal(keep_connections=True)
        cluster.slow_down(6.0)
        if not (yield lambda: bool(list(away.directory.glob("*.part")))):
            return
        first.call(lambda node: node.hand_over(heir.name, 2.0, lambda found: None))
        cluster.disturb()
        yield lambda: _last(away) >= _last(first)
        yield 1.0
    finally:
        cluster.heal(keep_connections=True)


def crash_installing(cluster: Cluster, rng: Random) -> Script:
    """A voter loses its power when it has taken a snapshot in place of its log, and its journal does not say so yet."""
    cast = _cast(cluster, rng, 2)
    if not cast:
        return
    first, away, *_ = cast
    others = [v for v in cluster.voters if v is not away]
    cluster.world.tell(f"{away.name} misses much, and loses its power while it installs a snapshot of {first.name}")
    try:
        _cut(cluster, [away], others)
        for other in others:
            cluster.break_connection(away, other)
        left_at = _last(away)
        _burst(cluster, first, 90, 0.006)
        if not (yield lambda: _last(first) >= left_at + 60):
            return
        written: list[bool] = []
        for other in others:
            other.call(lambda node: node.want_snapshot(0, lambda file: written.append(True)))
        if not (yield lambda: len(written) >= len(others)) or not _behind(first, left_at):
            return
        away.disk.fsync_s = SLOW_S
        cluster.heal(keep_connections=True)
        if not (yield lambda: _behind(away, left_at) and away.disk.base <= left_at and away.writing):
            return
        cluster.crash(away)
        away.disk.fsync_s = FAST_S
        yield rng.uniform(0.05, 0.5)
        cluster.restart(away)
        yield 0.8
    finally:
        away.disk.fsync_s = FAST_S
        cluster.heal(keep_connections=True)


def crash_compacting(cluster: Cluster, rng: Random) -> Script:
    """A voter loses its power when its snapshot is there and its journal still holds what lies behind it."""
    cast = _cast(cluster, rng, 1)
    if not cast:
        return
    first = cast[0]
    chosen = rng.choice(cast)
    cluster.world.tell(f"{chosen.name} loses its power while it drops what lies behind its snapshot")
    try:
        _burst(cluster, first, 60, 0.006)
        yield 0.4
        if chosen.node is None:
            return
        began_at = chosen.node.journal.first_index
        chosen.disk.fsync_s = SLOW_S
        chosen.call(lambda node: node.want_snapshot(0, lambda file: None))
        if not (yield lambda: _behind(chosen, began_at) and chosen.writing):
            return
        cluster.crash(chosen)
        chosen.disk.fsync_s = FAST_S
        yield rng.uniform(0.05, 1.5)
        cluster.restart(chosen)
        yield 0.5
    finally:
        chosen.disk.fsync_s = FAST_S


def return_empty(cluster: Cluster, rng: Random) -> Script:
    """Of the two voters that hold what was acknowledged, one loses its disk and the other its power.

    Were the empty one to vote under its old name, it would make the third one, which knows nothing of it, the leader.
    """
    cast = _cast(cluster, rng, 2)
    if not cast:
        return
    first, *rest = cast
    # Together with the leader they are just enough; the others are away.
    needed = len(cluster.voters) // 2
    wiped, away = rest[0], rest[needed:]
    if not cluster.membership.may_wipe(wiped) or not away:
        return
    cluster.world.tell(f"{wiped.name} and {first.name} hold what {[v.name for v in away]} will not know")
    begun = cluster.checks.acknowledged_to
    try:
        _cut(cluster, away, [v for v in cluster.voters if v not in away])
        _burst(cluster, first, 30, 0.005)
        if not (yield lambda: cluster.checks.acknowledged_to > begun + 20) or not _leads(first):
            return
        cluster.wipe(wiped, 0.05, 4.0)
        down = [v for v in cluster.voters if v is not wiped and v not in away and v.alive]
        for voter in down:
            cluster.crash(voter)
            cluster.world.after(rng.uniform(2.0, 2.5), lambda voter=voter: cluster.restart(voter))  # type: ignore[misc]
        for voter in away:
            for other in (wiped, *down):
                # Or what was on its way to the one that is away would arrive.
                cluster.break_connection(voter, other)
        cluster.heal(keep_connections=True)
        yield 2.5
    finally:
        cluster.heal(keep_connections=True)


def two_changes(cluster: Cluster, rng: Random) -> Script:
    """A leader that reaches one of four others is told to remove two of those that it does not reach.

    Were it to do both at once, the two would be a majority of three, and those that it does not reach are one of five.
    """
    cast = _cast(cluster, rng, 4)
    if not cast or not cluster.membership.at_rest:
        return
    first, kept, gone, also, *left = cast
    cluster.world.tell(f"{first.name} reaches {kept.name} alone and is to remove {gone.name} and {also.name}")
    try:
        _cut(cluster, [first, kept], [gone, also, *left])
        cluster.membership.order_removal(first, gone.name)
        cluster.membership.order_removal(first, also.name)
        yield lambda: any(map(_leads, (gone, also, *left)))
        yield 0.8
    finally:
        cluster.heal()


def return_unapplied(cluster: Cluster, rng: Random) -> Script:
    """A voter loses its power with a list of voters in its log that it has not applied."""
    cast = _cast(cluster, rng, 2)
    if not cast or not cluster.membership.at_rest:
        return
    first, crashes, leaves, *_ = cast
    if first.node is None:
        return
    before = first.node.membership.configuration.index
    cluster.world.tell(f"{crashes.name} gets the list without {leaves.name}, its answer is lost, then its power")
    try:
        for other in cast[1:]:
            cluster.network.cut(other.name, first.name)
        cluster.membership.order_removal(first, leaves.name)
        if not (yield lambda: (crashes.disk.list_at or 0) > before) or not crashes.alive:
            return
        cluster.crash(crashes)
        yield 0.05
        cluster.restart(crashes)
        yield 0.3
    finally:
        cluster.heal()


def _behind(voter: Voter, index: int) -> bool:
    """Whether it has compacted the entry after `index`."""
    return voter.node is not None and voter.node.journal.first_index > index


DIRECTED: dict[str, Callable[[Cluster, Random], Script]] = {
    "succession": succession,
    "stale_reply": stale_reply,
    "diverge": diverge,
    "stale_snapshot": stale_snapshot,
    "crash_installing": crash_installing,
    "crash_compacting": crash_compacting,
    "return_empty": return_empty,
    "two_changes": two_changes,
    "return_unapplied": return_unapplied,
}
