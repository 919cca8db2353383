"""What goes wrong, one function a fault. Each does it, waits, and puts it right again.

A node that one fault has in hand is left alone by the others, so that they can run side by side.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.nemesis.cluster import NemesisCluster
from tests.nemesis.links import CUT, Rule, between, towards
from tests.nemesis.network import CLIENTS, Network
from tests.support.cluster import NodeProcess

BACK_S = 20.0


@dataclass(slots=True)
class Mark:
    """One fault that was made: when, which, and what exactly."""

    fault: str
    detail: str
    began_at: float
    ended_at: float = 0.0


@dataclass
class Stage:
    """What a fault has to work with."""

    cluster: NemesisCluster
    network: Network
    rng: random.Random
    http: httpx.AsyncClient
    #: faults that must not happen, found by the faults themselves
    broken: list[str] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    _taken: set[str] = field(default_factory=set)

    @contextlib.contextmanager
    def mark(self, fault: str, detail: str) -> Iterator[Mark]:
        made = Mark(fault, detail, time.monotonic())
        self.marks.append(made)
        try:
            yield made
        finally:
            made.ended_at = time.monotonic()

    @contextlib.contextmanager
    def take(self, *nodes: NodeProcess) -> Iterator[None]:
        names = {n.name for n in nodes}
        self._taken |= names
        try:
            yield
        finally:
            self._taken -= names

    def free(self, nodes: Sequence[NodeProcess]) -> list[NodeProcess]:
        return [n for n in nodes if n.name not in self._taken and n.alive]

    @property
    def voters(self) -> list[NodeProcess]:
        return self.cluster.voter_nodes

    @property
    def everybody(self) -> set[str]:
        return {*self.cluster.nodes, CLIENTS}

    async def leader(self, *, free_only: bool = True) -> NodeProcess | None:
        """Who says that it leads, in the highest term; None when nobody does or another fault has it."""

        async def term(node: NodeProcess) -> int:
            try:
                answer = await self.http.get(f"{node.url}/raft/state", timeout=0.5)
            except httpx.HTTPError:
                return -1
            if not answer.is_success:
                return -1
            seen = answer.json()
            return int(seen["term"]) if seen["role"] == "leader" else -1

        asked = self.free(self.voters) if free_only else [n for n in self.voters if n.alive]
        terms = await asyncio.gather(*map(term, asked))
        best = max(terms, default=-1)
        return asked[terms.index(best)] if best >= 0 else None

    async def victim(self, *, leader: bool) -> NodeProcess | None:
        """A free voter, or the leader if it is free."""
        if leader:
            return await self.leader()
        free = self.free(self.voters)
        return self.rng.choice(free) if free else None

    async def back(self, *nodes: NodeProcess) -> None:
        """Wait until started nodes take part again, so that the next fault does not meet a crippled cluster.

        Without a majority (another fault's doing) nobody does, so this ends some time.
        """
        deadline = time.monotonic() + BACK_S
        for node in nodes:
            while not await self.takes_part(node) and time.monotonic() < deadline:
                await asyncio.sleep(0.1)

    async def takes_part(self, node: NodeProcess) -> bool:
        try:
            answer = await self.http.get(f"{node.url}/raft/state", timeout=1.0)
        except httpx.HTTPError:
            return False
        return answer.is_success and bool(answer.json()["ready"])

    async def pause(self, low_s: float, high_s: float) -> None:
        await asyncio.sleep(self.rng.uniform(low_s, high_s))


Fault = Callable[[Stage], Awaitable[None]]


# --- processes -----------------------------------------------------------------------------------


async def kill_one(stage: Stage) -> None:
    """SIGKILL of any node, voter or follower."""
    free = stage.free(list(stage.cluster.nodes.values()))
    if free:
        await _kill(stage, "kill-one", stage.rng.choice(free))


async def kill_leader(stage: Stage) -> None:
    leader = await stage.leader()
    if leader is not None:
        await _kill(stage, "kill-leader", leader)


async def _kill(stage: Stage, fault: str, node: NodeProcess) -> None:
    with stage.take(node):
        with stage.mark(fault, node.name):
            node.kill()
            await stage.pause(0.5, 4.0)
            node.start()
        await stage.back(node)


async def kill_all(stage: Stage) -> None:
    """SIGKILL of every voter at one moment; they come back in any order."""
    voters = stage.free(stage.voters)
    with stage.take(*voters):
        with stage.mark("kill-all", f"{len(voters)} voters"):
            for voter in voters:
                stage.cluster.signal(voter, signal.SIGKILL)
            for voter in stage.rng.sample(voters, len(voters)):
                voter.kill()
                await stage.pause(0.0, 0.5)
                voter.start()
        await stage.back(*voters)


async def kill_in_snapshot(stage: Stage) -> None:
    """SIGKILL while a snapshot is written, renamed, or the log behind it is dropped."""
    node = await stage.victim(leader=stage.rng.random() < 0.3)
    if node is None:
        return
    with stage.take(node):
        delay_s = stage.rng.choice((0.0, 0.0, stage.rng.uniform(0.0, 0.03)))
        if await asyncio.to_thread(_snapshot_begins, node.folder / "raft" / "snapshots", 6.0):
            with stage.mark("kill-in-snapshot", f"{node.name} after {delay_s * 1000:.0f} ms"):
                time.sleep(delay_s)
                node.kill()
                await stage.pause(0.2, 2.0)
                node.start()
            await stage.back(node)


def _snapshot_begins(folder: Path, patience_s: float) -> bool:
    """Wait for an unfinished snapshot file. Polled, since it is there for milliseconds only."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            if any(entry.name.endswith(".tmp") for entry in os.scandir(folder)):
                return True
        time.sleep(0.0005)
    return False


async def pause_leader(stage: Stage) -> None:
    leader = await stage.leader()
    if leader is not None:
        await _stop(stage, "pause-leader", [leader])


async def pause_some(stage: Stage) -> None:
    """SIGSTOP of any nodes, perhaps of a majority."""
    free = stage.free(list(stage.cluster.nodes.values()))
    if free:
        await _stop(stage, "pause-some", stage.rng.sample(free, stage.rng.randint(1, (len(free) + 1) // 2)))


async def _stop(stage: Stage, fault: str, nodes: list[NodeProcess]) -> None:
    with stage.take(*nodes), stage.mark(fault, ", ".join(n.name for n in nodes)):
        for node in nodes:
            stage.cluster.signal(node, signal.SIGSTOP)
        # 1 to 20 s, the long ones rarely.
        await asyncio.sleep(min(1.0 + stage.rng.expovariate(1 / 4.0), 20.0))
        for node in nodes:
            stage.cluster.signal(node, signal.SIGCONT)


# --- network -------------------------------------------------------------------------------------


async def isolate_leader(stage: Stage) -> None:
    """The leader hears nobody and nobody hears it."""
    leader = await stage.leader()
    if leader is not None:
        with stage.network.rules(between([leader.name], stage.everybody)), stage.mark("isolate-leader", leader.name):
            await stage.pause(2.0, 6.0)


async def partition(stage: Stage) -> None:
    """Two halves of everything, drawn at random; clients are on one side."""
    names = sorted(stage.everybody)
    left = set(stage.rng.sample(names, stage.rng.randint(1, len(names) - 1)))
    with stage.network.rules(between(left, set(names) - left)), stage.mark("partition", " ".join(sorted(left))):
        await stage.pause(2.0, 6.0)


async def one_way(stage: Stage) -> None:
    """A voter that is heard but hears no other voter, or the other way round."""
    node = await stage.victim(leader=stage.rng.random() < 0.6)
    if node is None:
        return
    others = [v.name for v in stage.voters if v is not node]
    deaf = stage.rng.random() < 0.5
    rules = towards(others, [node.name]) if deaf else towards([node.name], others)
    with stage.network.rules(rules), stage.mark("one-way", f"{node.name} {'deaf' if deaf else 'mute'}"):
        await stage.pause(2.0, 6.0)


async def bridge(stage: Stage) -> None:
    """Two groups of voters that only one voter sees both of."""
    names = [v.name for v in stage.voters]
    stage.rng.shuffle(names)
    middle, rest = names[0], names[1:]
    left, right = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    with stage.network.rules(between(left, right)), stage.mark("bridge", f"{left} {middle} {right}"):
        await stage.pause(3.0, 7.0)


async def lossy(stage: Stage) -> None:
    """Frames get lost everywhere."""
    loss = stage.rng.choice((0.02, 0.1, 0.25))
    names = stage.everybody
    with stage.network.rules(between(names, names, Rule(loss=loss))), stage.mark("lossy", f"{loss:.0%}"):
        await stage.pause(3.0, 7.0)


async def slow(stage: Stage) -> None:
    """Frames are late and overtake each other."""
    delay_ms = stage.rng.choice((10.0, 50.0, 150.0))
    names = set(stage.cluster.nodes)
    rule = Rule(delay_ms=delay_ms, jitter_ms=delay_ms / 2)
    with stage.network.rules(between(names, names, rule)), stage.mark("slow", f"{delay_ms:.0f} ms"):
        await stage.pause(3.0, 7.0)


async def flapping(stage: Stage) -> None:
    """One pair of voters loses and finds each other many times."""
    pair = stage.rng.sample([v.name for v in stage.voters], 2)
    with stage.mark("flapping", " ".join(pair)):
        for _ in range(8):
            with stage.network.rules(between(pair[:1], pair[1:], CUT)):
                await stage.pause(0.1, 0.8)
            await stage.pause(0.1, 0.8)


# --- disks and clocks ----------------------------------------------------------------------------


async def full_disk(stage: Stage) -> None:
    """A voter's disk fills up: to below its reserve, or to the last byte. Then there is room again."""
    node = await stage.victim(leader=stage.rng.random() < 0.6)
    if node is None:
        return
    left = stage.rng.choice((0, 0, 40 << 20))
    filler = node.folder / "filler"
    with stage.take(node), stage.mark("full-disk", f"{node.name}, {left >> 20} MiB left"):
        await asyncio.to_thread(_fill, filler, left)
        await stage.pause(2.0, 6.0)
        filler.unlink()
        await stage.pause(0.2, 1.0)
        if not node.alive:
            node.start()
        await stage.back(node)


def _fill(path: Path, left: int) -> None:
    """Fill the disk, whatever the node writes or removes meanwhile, until so many bytes are left."""
    chunk = bytes(1 << 20)
    with path.open("wb", buffering=0) as out:
        while shutil.disk_usage(path.parent).free > left:
            try:
                out.write(chunk)
            except OSError:
                if len(chunk) == 1:
                    return
                chunk = chunk[: len(chunk) // 2]


async def clock_jump(stage: Stage) -> None:
    """Wall clocks of some nodes jump by seconds, hours or years, forwards or back."""
    nodes = list(stage.cluster.nodes)
    jumped = stage.rng.sample(nodes, stage.rng.randint(1, len(nodes)))
    with stage.mark("clock-jump", " ".join(jumped)):
        for name in jumped:
            jump_s = stage.rng.choice((3.0, 60.0, 3_600.0, 86_400.0 * 400)) * stage.rng.choice((-1, 1))
            stage.cluster.set_clock(name, jump_s)
        await stage.pause(1.0, 3.0)


async def wiped_disk(stage: Stage) -> None:
    """A voter comes back without its disk. It must not make a majority; then its disk is found again."""
    node = await stage.victim(leader=stage.rng.random() < 0.5)
    if node is None:
        return
    aside = node.folder.with_suffix(".aside")
    with stage.take(node), stage.mark("wiped-disk", node.name) as mark:
        node.kill()
        node.folder.rename(aside)
        node.start()
        await stage.pause(4.0, 6.0)
        if await stage.takes_part(node):
            stage.broken.append(f"{node.name} takes part again although its disk was wiped")
        others = stage.free(stage.voters)
        down = others[: len(stage.voters) // 2]
        with stage.take(*down):
            for other in down:
                other.kill()
            mark.detail += f" with {' '.join(o.name for o in down)} down"
            # Requests that were on their way when the majority was lost may still be answered by it.
            await asyncio.sleep(1.0)
            before = await _commits(stage)
            await stage.pause(4.0, 5.0)
            after = await _commits(stage)
            if after > before:
                stage.broken.append(
                    f"the log went from {before} to {after} without a majority: wiped was {mark.detail}"
                )
            for other in down:
                other.start()
        await stage.back(*down)
        node.kill()
        shutil.rmtree(node.folder)
        aside.rename(node.folder)
        node.start()
        await stage.back(node)


async def _commits(stage: Stage) -> int:
    """The highest commit index that a node tells."""

    async def commit(node: NodeProcess) -> int:
        try:
            answer = await stage.http.get(f"{node.url}/raft/state", timeout=1.0)
        except httpx.HTTPError:
            return 0
        return int(answer.json()["commit"]) if answer.is_success else 0

    return max(await asyncio.gather(*(commit(v) for v in stage.voters if v.alive)))
