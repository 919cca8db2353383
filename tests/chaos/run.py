"""Three voters, followers with agents, many short jobs, and somebody who kills what he finds.

faults   an agent (its node process) is killed or frozen, a keeper, a program or a voter is killed
verdict  every item is counted once, no two processes of one item at one time, nothing of ours runs,
         ledgers and state agree, all nodes show one digest
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from statemachine import settings as st
from statemachine.commands import AddWork, ChangeSetting
from tests.chaos.checks import lives, miscounted, overlaps
from tests.support.cluster import NodeProcess, TestCluster, eventually

PROGRAM = Path(__file__).with_name("program.py")
HABITS = ("plain", "plain", "plain", "deaf", "parent")
TIMING = st.Timing(
    heartbeat_ms=1_000,
    suspect_after_ms=3_000,
    dead_after_ms=6_000,
    lease_ms={"default": 12_000},
    start_within_ms=10_000,
    backoff_ms=100,
    backoff_cap_ms=500,
    grace_ms=500,
)
#: what is killed is started again on its node, once; a wait that is long enough to be killed as well
RESTART = st.Restart(attempts=1, delay_ms=500, cap_ms=500)
#: the killing must not make the cluster hold nodes back, or little would run
LIMITS = st.Limits(failures_before_hold=10_000, flaps_before_hold=10_000, poisoned_after_peers=1_000)


@dataclass
class Story:
    """What was done, for whoever has to understand a failure."""

    began_s: float = field(default_factory=time.monotonic)
    lines: list[str] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)

    def tell(self, kind: str, text: str) -> None:
        self.done[kind] += 1
        self.lines.append(f"{time.monotonic() - self.began_s:8.2f} s  {kind}: {text}")


class Chaos:
    def __init__(self, folder: Path, jobs: int, agents: int, seed: int, every_s: float) -> None:
        """`every_s` is the mean time between two faults."""
        self.cluster = TestCluster(folder, voters=3, followers=agents, cpu_slots=2)
        self.marks = folder / "marks"
        self.story = Story()
        self._rng = random.Random(seed)
        self._every_s = every_s
        self._works = [f"w{number}" for number in range(jobs)]
        #: nodes that are down: when they are started again
        self._down: dict[str, float] = {}
        #: nodes that are frozen: when they go on
        self._frozen: dict[str, float] = {}

    def run(self, within_s: float) -> list[str]:
        """Start, kill until all items have ended, look; returns what is wrong."""
        self.cluster.start()
        self._submit()
        self._rage(within_s)
        for name in list(self._down):
            self.cluster.nodes[name].start()
        self._down.clear()
        for name in list(self._frozen):
            self._thaw(name)
        return self._verdict()

    def _submit(self) -> None:
        argv = ("{python}", "-I", "-S", str(PROGRAM), str(self.marks), "{work}", "{seconds}", "{habit}")
        template = st.Template(argv=argv, require_outputs=("games",), require_counts=("games",), restart=RESTART)
        leader = self.cluster.leader()
        leader.propose(
            ChangeSetting("timing", st.encode(TIMING)),
            ChangeSetting("limits", st.encode(LIMITS)),
            ChangeSetting("template/chaos", st.encode(template)),
        )
        rng = self._rng
        items = [
            AddWork(
                work=work,
                work_type="selfplay",
                config="hex8_2p",
                template="chaos",
                params={"seconds": f"{rng.uniform(0.2, 1.5):.2f}", "habit": rng.choice(HABITS)},
            )
            for work in self._works
        ]
        for at in range(0, len(items), 50):
            leader.propose(*items[at : at + 50])

    # --- faults -------------------------------------------------------------------------------------------------

    def _rage(self, within_s: float) -> None:
        until, ended = time.monotonic() + within_s, 0
        while ended < len(self._works):
            if time.monotonic() > until:
                raise AssertionError(f"{ended} of {len(self._works)} items ended within {within_s:g} s")
            pause = time.monotonic() + self._rng.expovariate(1 / self._every_s)
            while time.monotonic() < pause:
                self._raise_the_dead()
                time.sleep(0.05)
            faults: list[tuple[Callable[[], None], int]] = [
                (self._kill_agent, 3),
                (self._kill_keeper, 3),
                (self._kill_program, 3),
                (self._kill_voter, 1),
                (self._freeze_agent, 1),
            ]
            (fault,) = self._rng.choices([f for f, _ in faults], [weight for _, weight in faults])
            fault()
            ended = self._ended(ended)

    def _ended(self, before: int) -> int:
        for node in self.cluster.living():
            try:
                counts = node.get("/status")["work_queue"]["by_status"]
            except (OSError, ValueError, KeyError):
                continue
            except Exception as error:  # noqa: BLE001 - whatever a node that is being killed makes of a request
                self.story.tell("unanswered", f"{node.name}: {type(error).__name__}")
                continue
            return int(sum(counts.get(word, 0) for word in ("completed", "failed", "cancelled", "expired")))
        return before

    def _raise_the_dead(self) -> None:
        for name, at_s in list(self._down.items()):
            if time.monotonic() >= at_s:
                del self._down[name]
                self.cluster.nodes[name].start()
                self.story.tell("started", name)
        for name, at_s in list(self._frozen.items()):
            if time.monotonic() >= at_s:
                self._thaw(name)

    def _thaw(self, name: str) -> None:
        del self._frozen[name]
        process = self.cluster.nodes[name].process
        assert process is not None
        process.send_signal(signal.SIGCONT)
        self.story.tell("thawed", name)

    def _agents_up(self) -> list[NodeProcess]:
        return [n for n in self.cluster.living() if n.role == "follower" and n.name not in self._frozen]

    def _freeze_agent(self) -> None:
        up = self._agents_up()
        if len(up) > 1:
            # Thawed after its leases are over, it must not go on with what others have now.
            node, away_s = self._rng.choice(up), self._rng.choice((1.0, 5.0, 20.0))
            assert node.process is not None
            node.process.send_signal(signal.SIGSTOP)
            self._frozen[node.name] = time.monotonic() + away_s
            self.story.tell("agent frozen", f"{node.name}, for {away_s:.1f} s")

    def _kill_node(self, kind: str, node: NodeProcess, away_s: float) -> None:
        node.kill()
        self._down[node.name] = time.monotonic() + away_s
        self.story.tell(kind, f"{node.name}, for {away_s:.1f} s")

    def _kill_agent(self) -> None:
        up = self._agents_up()
        if len(up) > 1:
            # Some stay away for longer than a lease: their keepers end the jobs, and others get the items.
            away_s = self._rng.choice((0.0, 0.5, 2.0, 5.0, 15.0))
            self._kill_node("agent killed", self._rng.choice(up), away_s)

    def _kill_voter(self) -> None:
        voters = [n for n in self.cluster.nodes.values() if n.role == "voter"]
        if all(n.alive for n in voters):
            self._kill_node("voter killed", self._rng.choice(voters), self._rng.uniform(0.0, 3.0))

    def _kill_keeper(self) -> None:
        self._kill_one("keeper killed", self.keepers())

    def _kill_program(self) -> None:
        self._kill_one("program killed", self.programs())

    def _kill_one(self, kind: str, among: list[psutil.Process]) -> None:
        if not among:
            return
        victim = self._rng.choice(sorted(among, key=lambda p: p.pid))
        try:
            words = " ".join(victim.cmdline()[-3:])
            os.kill(victim.pid, signal.SIGKILL)
        except (psutil.NoSuchProcess, ProcessLookupError):
            return
        self.story.tell(kind, f"{victim.pid} {words}")

    # --- looking ------------------------------------------------------------------------------------------------

    def keepers(self) -> list[psutil.Process]:
        """Keepers of this cluster's attempts."""
        return [p for p, line in _processes() if any(w.endswith("shim.py") for w in line) and self._is_ours(line)]

    def programs(self) -> list[psutil.Process]:
        """Programs, and what they left behind."""
        return [p for p, line in _processes() if str(self.marks) in line]

    def _is_ours(self, line: list[str]) -> bool:
        return any(word.startswith(str(self.cluster.folder)) for word in line)

    def _verdict(self) -> list[str]:
        cluster, problems = self.cluster, []
        for node in cluster.nodes.values():
            eventually(lambda node=node: node.get("/status")["ready"], f"{node.name} to be ready", 60.0)
        leader = cluster.leader()
        eventually(lambda: leader.get("/jobs")["active_total"] == 0, "all jobs to end", 60.0)
        try:
            eventually(lambda: not self.keepers() and not self.programs(), "all processes to end", 30.0)
        except AssertionError:
            problems += [f"still runs: {p.pid} {' '.join(p.cmdline())}" for p in (*self.keepers(), *self.programs())]
        try:
            eventually(lambda: not self._unsettled(), "all ledgers to be settled", 30.0)
        except AssertionError:
            problems += [f"a ledger still holds {entry}" for entry in self._unsettled()]
        cluster.same_digest()
        tables: dict[str, dict[str, Any]] = leader.get("/state/dump")["tables"]
        found = lives(self.marks.read_text().splitlines())
        problems += overlaps(found)
        problems += miscounted(self._works, tables, found)
        jobs = tables["jobs"].values()
        again = sum("restarts" in job for job in jobs)
        counts = f"{len(found)} starts left marks, {len(jobs)} jobs were granted, {again} started again on their node"
        self.story.tell("attempts", counts)
        return problems

    def _unsettled(self) -> list[str]:
        held = []
        for node in self.cluster.nodes.values():
            path = node.folder / "ledger.sqlite"
            if path.exists():
                database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
                rows = database.execute("select job, fence from attempt").fetchall()
                database.close()
                held += [f"{node.name}: {job} under {fence}" for job, fence in rows]
        return held

    def close(self) -> None:
        self.cluster.stop()
        for process in (*self.keepers(), *self.programs()):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue


def _processes() -> list[tuple[psutil.Process, list[str]]]:
    return [(p, p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]


def run(folder: Path, *, jobs: int, agents: int, seed: int, every_s: float, within_s: float) -> Story:
    """One whole story. Raises AssertionError with what is wrong and everything that was done."""
    chaos = Chaos(folder, jobs, agents, seed, every_s)
    try:
        problems = chaos.run(within_s)
    except AssertionError as error:
        problems = [str(error)]
    finally:
        chaos.close()
    if problems:
        kept = folder / "story.json"
        kept.write_text(json.dumps({"problems": problems, "story": chaos.story.lines}, indent=1))
        story = "\n".join(chaos.story.lines)
        raise AssertionError(
            "\n".join(["", *problems[:20], "", f"what was done (seed {seed}; all of it is in {folder}):", story])
        )
    shutil.rmtree(folder, ignore_errors=True)
    return chaos.story
