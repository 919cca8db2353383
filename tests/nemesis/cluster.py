"""The cluster under test: each node a real process at its own place in the network."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from statemachine import settings as st
from statemachine.commands import ChangeSetting
from tests.nemesis.locks import Locks
from tests.nemesis.network import Network, mounted, unmount
from tests.support.cluster import NodeProcess, TestCluster, eventually

HTTP_PORT, RAFT_PORT = 8770, 8771
#: a lease is over this long after its last renewal: the shortest that the settings allow, so that claims that are
#: abandoned come back while a scenario lasts
LEASE_S = 5.2
#: a voter hands its leadership over with less than 64 MiB left, so the mount holds a little more than that
DISK_BYTES = 128 << 20
WALL_CLOCK = Path(__file__).with_name("wall_clock.c")


@dataclass
class Places:
    """What a scenario asks of its nodes' surroundings."""

    small_disks: bool = False
    own_clocks: bool = False
    snapshot_every_entries: int = 300
    flags: tuple[str, ...] = ()


@dataclass
class NemesisCluster(TestCluster):
    """Voters and followers in the namespaces of a network; names are known before anything runs."""

    __test__ = False

    followers: int = 4
    cpu_slots: int = 0
    network: Network | None = None
    places: Places = field(default_factory=Places)
    #: TLS and tokens; None: everything is open
    locks: Locks | None = None
    #: names of those that vote now
    voting: list[str] = field(default_factory=list)
    #: followers that may become voters
    spares: tuple[str, ...] = ("f1", "f2")

    @staticmethod
    def names(voters: int, followers: int) -> list[str]:
        return [*(f"v{n + 1}" for n in range(voters)), *(f"f{n + 1}" for n in range(followers))]

    def lay_out(self) -> None:
        network = self.network
        assert network is not None
        secret = self.folder / "secret"
        secret.touch(mode=0o600)
        secret.write_text(secrets.token_hex(16))
        locks = self.locks
        voters = self.names(self.voters, 0)
        self.voting = list(voters)
        members = ",".join(f"{v}={network.address(v)}:{HTTP_PORT}/{RAFT_PORT}" for v in voters)
        for name in self.names(self.voters, self.followers):
            folder = self.folder / name
            voter = name in voters
            if voter and self.places.small_disks:
                mounted(folder, DISK_BYTES)
            host = network.address(name)
            flags = (
                locks.flags(name, host, votes=voter or name in self.spares)
                if locks
                else ("--insecure", "--cluster-secret-file", str(secret))
            )
            every = ("--snapshot-every-entries", str(self.places.snapshot_every_entries))
            self.nodes[name] = NodeProcess(
                name,
                members,
                HTTP_PORT,
                folder,
                "voter" if voter else "follower",
                self.cpu_slots,
                ("--bind", host, *flags, *every, *self.places.flags),
                host=host,
                launcher=network.launcher(name),
                environment=self._clock(name),
                log_file=self.folder / f"{name}.log",
                token=locks.token if locks else "",
                trust=locks.context if locks else None,
            )

    def start(self) -> None:
        """The voters first: what lets a follower in is made by them."""
        self.lay_out()
        for node in self.voter_nodes:
            node.start()
        leader = self.leader()
        if self.locks:
            self.locks.let_in(leader)
        for node in self.nodes.values():
            if not node.alive:
                node.start()
            node.token = self.locks.token if self.locks else ""
            eventually(lambda node=node: node.get("/status")["ready"], f"{node.name} to be ready", 60.0)

    def _clock(self, name: str) -> Mapping[str, str]:
        if not self.places.own_clocks:
            return {}
        library = self.folder / "wall_clock.so"
        if not library.exists():
            subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(WALL_CLOCK)], check=True)
        self.set_clock(name, 0.0)
        return {"LD_PRELOAD": str(library), "WALL_CLOCK": str(self._clock_file(name))}

    def _clock_file(self, name: str) -> Path:
        return self.folder / f"{name}.clock"

    def set_clock(self, name: str, ahead_s: float) -> None:
        """Let a node's wall clock show that much more than the machine's, from now on."""
        # Opened without truncation: the running process has it mapped.
        with self._clock_file(name).open("r+b" if self._clock_file(name).exists() else "wb") as file:
            file.write(struct.pack("=q", round(ahead_s * 1000)))

    @property
    def voter_nodes(self) -> list[NodeProcess]:
        return [self.nodes[name] for name in self.voting]

    def signal(self, node: NodeProcess, number: signal.Signals) -> None:
        if node.alive:
            assert node.process is not None
            os.kill(node.process.pid, number)

    def seed(self) -> None:
        timing = st.Timing(
            heartbeat_ms=1_500,
            suspect_after_ms=6_000,
            dead_after_ms=20_000,
            lease_ms={"default": round(LEASE_S * 1000)},
            grace_ms=100,
        )
        self.leader().propose(ChangeSetting("timing", st.encode(timing)))

    def stop(self) -> None:
        for node in self.nodes.values():
            with contextlib.suppress(ProcessLookupError):
                self.signal(node, signal.SIGCONT)
        super().stop()
        if self.places.small_disks:
            for node in (self.nodes[name] for name in self.names(self.voters, 0)):
                unmount(node.folder)
