"""Real node processes on kernel-assigned ports, for tests that kill them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec

from ringrift_cluster.feed.wire import Placed
from statemachine import settings as st
from statemachine.commands import ChangeSetting, Command, encode_command
from statemachine.errors import Rejected

T = TypeVar("T")
WORKLOAD = Path(__file__).with_name("workload.py")
#: reading the bundle of authorities takes longer than a request
_NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
#: a slow or busy machine may stretch every wait
PATIENCE = float(os.environ.get("RINGRIFT_TEST_PATIENCE", "1"))


def eventually(look: Callable[[], T | None], what: str, timeout_s: float = 30.0) -> T:
    """The first truthy value of `look`; fails with `what` was waited for."""
    deadline = time.monotonic() + timeout_s * PATIENCE
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = look()
        except (httpx.HTTPError, KeyError) as error:
            last = error
        else:
            if last:
                return last  # type: ignore[return-value]
        time.sleep(0.05)
    raise AssertionError(f"waited {timeout_s:g} s for {what}; last seen: {last!r}")


def free_ports(count: int) -> list[int]:
    """Ports the kernel had free a moment ago."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@dataclass
class NodeProcess:
    """One node, started, killed and started again on the same data."""

    name: str
    cluster: str
    port: int
    folder: Path
    role: str
    cpu_slots: int
    flags: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    host: str = "127.0.0.1"
    #: a command that starts the node's, such as one that moves it into a network namespace
    launcher: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    #: where what it prints goes; None: into its data directory
    log_file: Path | None = None
    token: str = ""
    #: what its certificate is checked with; None: it speaks plain HTTP
    trust: ssl.SSLContext | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"} if self.token else {}

    @property
    def url(self) -> str:
        return f"{'https' if self.trust else 'http'}://{self.host}:{self.port}"

    @property
    def _verify(self) -> ssl.SSLContext:
        return self.trust or _NO_AUTHORITIES

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def log_path(self) -> Path:
        return self.log_file or self.folder / "node.log"

    @property
    def log(self) -> str:
        path = self.log_path
        return path.read_text(errors="replace") if path.exists() else ""

    def command(self) -> list[str]:
        return [
            *self.launcher,
            *(sys.executable, "-m", "ringrift_cluster", "serve", "--node-id", self.name, "--role", self.role),
            *("--cluster", self.cluster, "--port", str(self.port), "--data-dir", str(self.folder)),
            *("--cpu-slots", str(self.cpu_slots), "--progress-every-s", "0.5", *self.flags),
        ]

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **self.environment},
            )

    def kill(self) -> None:
        """SIGKILL of the node process alone: its jobs live on under their shims."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def terminate(self, timeout_s: float = 15.0) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s * PATIENCE)

    def get(self, path: str) -> Any:
        answer = httpx.get(f"{self.url}{path}", headers=self.headers, timeout=5.0, verify=self._verify)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, body: Any, timeout_s: float = 15.0) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, headers=self.headers, timeout=timeout_s, verify=self._verify)

    def propose(self, *commands: Command) -> None:
        body = msgspec.msgpack.encode([encode_command(c) for c in commands])
        headers = {"content-type": "application/msgpack", **self.headers}
        answer = httpx.post(f"{self.url}/propose", content=body, headers=headers, timeout=15.0, verify=self._verify)
        answer.raise_for_status()
        refused = [r for r in msgspec.msgpack.decode(answer.content, type=Placed).results if isinstance(r, Rejected)]
        assert not refused, refused


@dataclass
class TestCluster:
    """Voters and followers in one folder; everything started here is ended here."""

    __test__ = False

    folder: Path
    voters: int = 3
    followers: int = 1
    cpu_slots: int = 2
    #: every node's auth token, when there is to be one
    token: str = ""
    nodes: dict[str, NodeProcess] = field(default_factory=dict)

    def lay_out(self) -> None:
        """Decide which nodes there are and where; nothing runs yet."""
        ports = free_ports(2 * self.voters + self.followers)
        names = [f"v{n + 1}" for n in range(self.voters)]
        http = dict(zip(names, ports[: self.voters], strict=True))
        raft = dict(zip(names, ports[self.voters : 2 * self.voters], strict=True))
        flags: tuple[str, ...] = ()
        if self.token:
            secret = self.folder / "token"
            secret.write_text(self.token)
            secret.chmod(0o600)
            flags = ("--auth-token-file", str(secret))
        members = ",".join(f"{n}=127.0.0.1:{http[n]}/{raft[n]}" for n in names)
        for name in names:
            self.nodes[name] = NodeProcess(
                name, members, http[name], self.folder / name, "voter", 0, flags, token=self.token
            )
        for n, port in enumerate(ports[2 * self.voters :]):
            name = f"f{n + 1}"
            self.nodes[name] = NodeProcess(
                name, members, port, self.folder / name, "follower", self.cpu_slots, flags, token=self.token
            )

    def start(self) -> None:
        self.lay_out()
        for node in self.nodes.values():
            node.start()
        self.leader()
        for node in self.nodes.values():
            eventually(lambda node=node: node.get("/status")["ready"], f"{node.name} to be ready", 60.0)

    def stop(self) -> None:
        for node in self.nodes.values():
            if node.alive:
                node.kill()
        for path in self.folder.glob("*/jobs/*/"):
            _end_job(path)

    def leader(self, besides: str = "", timeout_s: float = 60.0) -> NodeProcess:
        """The node that leads, as it says itself."""

        def look() -> NodeProcess | None:
            for node in self.nodes.values():
                if node.name == besides or not node.alive:
                    continue
                with contextlib.suppress(httpx.HTTPError):
                    status = node.get("/status")
                    if status["is_leader"] and status["ready"]:
                        return node
            return None

        return eventually(look, "a leader", timeout_s)

    def living(self) -> list[NodeProcess]:
        return [n for n in self.nodes.values() if n.alive]

    def same_digest(self, timeout_s: float = 30.0) -> dict[int, str]:
        """Wait until all living nodes have shown one digest at one index; returns it by index.

        The log of an idle cluster goes on, so what each node showed at each index is collected.
        """
        shown: dict[int, dict[str, str]] = {}

        def look() -> dict[int, str] | None:
            living = self.living()
            for node in living:
                place = node.get("/raft/state")
                shown.setdefault(place["applied"], {})[node.name] = place["chain"]
            for index, chains in shown.items():
                assert len(set(chains.values())) == 1, f"nodes differ at index {index}: {chains}"
            return next(({i: min(c.values())} for i, c in shown.items() if len(c) == len(living)), None)

        return eventually(look, "all nodes to show the same digest", timeout_s)

    def seed(self) -> None:
        """Short times and the stand-in workload as template `stand-in`."""
        timing = st.Timing(
            heartbeat_ms=1_000,
            suspect_after_ms=4_000,
            dead_after_ms=20_000,
            lease_ms={"default": 30_000},
            start_within_ms=10_000,
            backoff_ms=200,
            backoff_cap_ms=1_000,
            grace_ms=2_000,
        )
        template = st.Template(
            argv=("{python}", str(WORKLOAD), "--games", "{games}", "--seconds", "{seconds}", "--name", "{work}"),
            require_outputs=("games",),
            require_counts=("games",),
        )
        self.leader().propose(
            ChangeSetting("timing", st.encode(timing)), ChangeSetting("template/stand-in", st.encode(template))
        )


def _end_job(path: Path) -> None:
    """Kill what a test's own job left, by the process group its keeper wrote down."""
    for line in _pids_of(path):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(line, signal.SIGKILL)


def _pids_of(path: Path) -> Iterator[int]:
    import psutil

    for process in psutil.process_iter(["pid", "environ"]):
        environ = process.info["environ"] or {}
        if environ.get("RINGRIFT_JOB_DIR", "").startswith(str(path).rstrip("/")):
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                yield os.getpgid(process.info["pid"])
