"""The node processes of a development cluster.

This file starts and signals *nodes*, as a service manager would; workloads are started by the nodes themselves. Each
node is told to leave when its parent is gone, so even a `kill -9` of this process leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import psutil

from executors.processes import KEEPER

#: marks a directory as ours to empty
MARKER = "cluster.json"
#: ports a node takes: HTTP and Raft
PORTS_PER_NODE = 2
#: variables by which keepers and workloads are found when nobody remembers them
_MARKS = (KEEPER, "RINGRIFT_JOB_DIR")
#: a node that dies is started again after this, doubling with each death in a row
RESTART_S = 0.5
LONGEST_RESTART_S = 8.0
#: a node that lived this long is not dying in a row
SETTLED_S = 20.0


class DevError(Exception):
    """A sentence for the person at the terminal."""


@dataclass(frozen=True)
class Plan:
    """Who runs where; kept in the data directory, so that a second start resumes the same cluster."""

    base_port: int
    voters: int
    followers: int

    def __str__(self) -> str:
        return f"{self.voters} voters and {self.followers} followers from port {self.base_port}"

    @property
    def names(self) -> list[str]:
        voters = [f"voter-{n + 1}" for n in range(self.voters)]
        return voters + [f"follower-{n + 1}" for n in range(self.followers)]

    def port(self, name: str) -> int:
        return self.base_port + PORTS_PER_NODE * self.names.index(name)

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port(name)}"

    @property
    def cluster(self) -> str:
        return ",".join(f"{name}=127.0.0.1:{self.port(name)}" for name in self.names[: self.voters])


@dataclass
class _Node:
    name: str
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    deaths_in_row: int = 0
    next_start_s: float = 0.0


@dataclass
class Nodes:
    """The processes of a plan."""

    plan: Plan
    folder: Path
    cpu_slots: int
    nodes: dict[str, _Node] = field(default_factory=dict)
    #: sentences about deaths and restarts, newest last
    story: list[str] = field(default_factory=list)

    def start(self) -> None:
        for name in self.plan.names:
            self.nodes[name] = _Node(name)
            self._launch(self.nodes[name])

    def tend(self) -> None:
        """Notice nodes that died and start them again when their pause is over."""
        now = time.monotonic()
        for node in self.nodes.values():
            if node.process is not None:
                code = node.process.poll()
                if code is None:
                    continue
                lived = now - node.started_s
                node.deaths_in_row = 1 if lived > SETTLED_S else node.deaths_in_row + 1
                node.process = None
                pause = min(RESTART_S * 2 ** (node.deaths_in_row - 1), LONGEST_RESTART_S)
                node.next_start_s = now + pause
                cause = f"signal {-code}" if code < 0 else f"exit code {code}"
                self.story.append(f"{node.name} ended with {cause}; it is started again in {pause:g} s")
            elif now >= node.next_start_s:
                self._launch(node)

    def pid(self, name: str) -> int | None:
        process = self.nodes[name].process
        return process.pid if process else None

    def last_words(self, name: str, lines: int = 15) -> str:
        """The end of a node's log, for an error message."""
        path = self.log_file(name)
        if not path.exists():
            return ""
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])

    def log_file(self, name: str) -> Path:
        return self.folder / name / "node.log"

    def stop(self, timeout_s: float = 25.0) -> list[str]:
        """Ask every node to stop its jobs and leave; returns the names of those that had to be killed.

        Followers go first, so that their last reports still find voters.
        """
        killed = []
        for names in (self.plan.names[self.plan.voters :], self.plan.names[: self.plan.voters]):
            running = [n for n in names if n in self.nodes and self.nodes[n].process is not None]
            for name in running:
                process = self.nodes[name].process
                if process is not None:
                    with contextlib.suppress(ProcessLookupError):
                        process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + timeout_s
            for name in running:
                process = self.nodes[name].process
                if process is None:
                    continue
                try:
                    process.wait(max(deadline - time.monotonic(), 0.1))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    killed.append(name)
        return killed

    def end_leftovers(self, grace_s: float = 5.0, vanish_s: float = 5.0) -> int:
        """End the keepers and workloads whose node died before it could; returns how many processes there were.

        To be called when the nodes have stopped. Without it they would live until their leases are over.
        """
        ended: set[int] = set()
        for number, within_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, vanish_s)):
            deadline = time.monotonic() + within_s
            while found := self._leftovers():
                if new := [p for p in found if number == signal.SIGKILL or p.pid not in ended]:
                    _signal(new, number)
                ended |= {process.pid for process in found}
                if time.monotonic() > deadline:
                    break
                time.sleep(0.05)  # most are not our children: there is nothing to wait on
        return len(ended)

    def _leftovers(self) -> list[psutil.Process]:
        """Living processes that carry an attempt's folder of this cluster in their environment."""
        home = self.folder.resolve()
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                environment = process.environ()
                folders = [environment[name] for name in _MARKS if environment.get(name)]
                if any(Path(folder).resolve().is_relative_to(home) for folder in folders):
                    found.append(process)
        return found

    def _launch(self, node: _Node) -> None:
        home = self.folder / node.name
        home.mkdir(parents=True, exist_ok=True)
        votes = node.name in self.plan.names[: self.plan.voters]
        command = [
            *(sys.executable, "-m", "ringrift_cluster", "serve"),
            *("--node-id", node.name, "--cluster", self.plan.cluster),
            *("--role", "voter" if votes else "follower"),
            *("--port", str(self.plan.port(node.name)), "--data-dir", str(home)),
            *("--cpu-slots", "0" if votes else str(self.cpu_slots)),
            *("--progress-every-s", "2", "--stop-jobs", "--exit-with-parent", str(os.getpid())),
        ]
        with self.log_file(node.name).open("ab") as log:
            node.process = self._spawn(command, log)
        node.started_s = time.monotonic()

    def _spawn(self, command: list[str], log: BinaryIO) -> subprocess.Popen[bytes]:
        # Its own session: a Ctrl-C at the terminal reaches this process alone, which then stops the nodes in order.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    """Signal each process, and the group that it leads: a workload's children may have cleared their environment."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)


def prepare(folder: Path, wanted: Plan, fresh: bool) -> Plan:
    """The plan to run in a directory: the one it was made with, or a new one on free ports.

    Raises DevError when the directory is somebody else's or the ports are taken.
    """
    marker = folder / MARKER
    if fresh and folder.exists():
        if any(folder.iterdir()) and not marker.exists():
            raise DevError(
                f"{folder} was not made by this command, so --fresh does not empty it; name another --data-dir"
            )
        shutil.rmtree(folder)
    if marker.exists():
        plan = Plan(**json.loads(marker.read_text()))
        _require_free(plan)
        return plan
    if folder.exists() and any(folder.iterdir()):
        raise DevError(f"{folder} holds other files; name an empty --data-dir")
    free = next((p for p in _candidates(wanted) if not _taken(p)), None)
    if free is None:
        raise DevError(f"no block of free ports was found from {wanted.base_port} on; give --base-port")
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps(asdict(free)) + "\n")
    return free


def _candidates(wanted: Plan) -> Iterator[Plan]:
    for step in range(20):
        base = wanted.base_port + 100 * step
        if base < 65_000:
            yield Plan(base, wanted.voters, wanted.followers)


def _require_free(plan: Plan) -> None:
    """A cluster that resumes keeps its ports; one that is still ending gets a moment."""
    deadline = time.monotonic() + 10.0
    while taken := _taken(plan):
        if time.monotonic() > deadline:
            raise DevError(
                f"port {taken} is in use, perhaps by this cluster itself in another terminal; end that, "
                "or start a second cluster with --data-dir and --base-port"
            )
        time.sleep(0.2)  # polling the kernel for ports: there is nothing to wait on


def _taken(plan: Plan) -> int:
    """The first port of the plan that somebody listens on, or 0."""
    for port in range(plan.base_port, plan.base_port + PORTS_PER_NODE * len(plan.names)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return port
    return 0
