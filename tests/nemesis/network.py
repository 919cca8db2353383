"""One network namespace for each node and one for the clients, plugged into a switch of our own.

Everything is named after this process (`rrn-PID-...`), so what a crashed run left is known and swept at the next start.
The machine's own network is not touched: interfaces are made inside the namespaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.nemesis.links import Rules, encode, merged

PREFIX = "rrn"
NETNS = Path("/run/netns")
SUBNET = "10.203.0"
CLIENTS = "clients"
CLONE_NEWNET = 0x40000000
ROOT = Path(__file__).resolve().parents[2]


def missing() -> str:
    """Why this machine cannot run it; empty when it can."""
    if os.geteuid() != 0:
        return "it needs root, for network namespaces"
    for tool in ("ip", "nsenter", "mount"):
        if shutil.which(tool) is None:
            return f"the command {tool} is missing (Debian packages iproute2, util-linux, mount)"
    probe = f"{PREFIX}-{os.getpid()}-probe"
    tried = _run("ip", "netns", "add", probe, check=False)
    if tried.returncode:
        return f"network namespaces cannot be made here ({tried.stderr.strip()})"
    try:
        tried = _run("ip", "-n", probe, "link", "add", "one", "type", "veth", "peer", "name", "two", check=False)
        return f"pairs of interfaces cannot be made here ({tried.stderr.strip()})" if tried.returncode else ""
    finally:
        _run("ip", "netns", "del", probe)


def sweep() -> None:
    """Take away what runs that are over left behind: processes in their namespaces, namespaces, mounts."""
    for name in sorted(p.name for p in NETNS.iterdir()) if NETNS.is_dir() else []:
        if (found := re.match(rf"^{PREFIX}-(\d+)-", name)) and not _alive(int(found[1])):
            _remove(name)
    for line in Path("/proc/mounts").read_text().splitlines():
        source, target, *_ = line.split()
        if (found := re.match(rf"^{PREFIX}-(\d+)$", source)) and not _alive(int(found[1])):
            _run("umount", "--lazy", target.replace("\\040", " "), check=False)


def _alive(pid: int) -> bool:
    """Whether that process is (still) a run of ours."""
    if pid == os.getpid():
        return False
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        return any(ours in command for ours in (b"tests.nemesis", b"pytest", b"execnet"))
    return False


def _remove(namespace: str) -> None:
    for pid in _run("ip", "netns", "pids", namespace, check=False).stdout.split():
        # The clients' namespace holds this very process.
        if int(pid) != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    _run("ip", "netns", "del", namespace, check=False)


def _run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=check)


class Network:
    """The wires of one scenario; use it as a context.

    The thread that enters it moves into the clients' namespace for good, and what it starts later with it.
    """

    def __init__(self, names: Sequence[str], seed: int) -> None:
        self._numbers = {name: n for n, name in enumerate([CLIENTS, *names], 1)}
        self._seed = seed
        self._layers: dict[int, Rules] = {}
        self._next = 0
        self._switch: subprocess.Popen[bytes] | None = None

    def address(self, name: str) -> str:
        return f"{SUBNET}.{self._numbers[name]}"

    def launcher(self, name: str) -> tuple[str, ...]:
        """What stands before a command that is to run at a node's place."""
        return ("nsenter", f"--net={NETNS / _namespace(name)}")

    def __enter__(self) -> Self:
        try:
            self._wire()
        except BaseException:
            self._take_down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._take_down()

    @contextlib.contextmanager
    def rules(self, rules: Rules) -> Iterator[None]:
        """These rules on top of those of other faults, for the time of the context."""
        self._next += 1
        key = self._next
        self._layers[key] = rules
        self._tell()
        try:
            yield
        finally:
            del self._layers[key]
            self._tell()

    def _tell(self) -> None:
        switch = self._switch
        assert switch is not None
        assert switch.stdin is not None
        assert switch.stdout is not None
        switch.stdin.write(encode(merged(self._layers.values())).encode() + b"\n")
        switch.stdin.flush()
        if switch.stdout.readline() != b"ok\n":
            raise RuntimeError(f"the switch ended with {switch.poll()}")

    def _wire(self) -> None:
        middle = _namespace("switch")
        for name in ("switch", *self._numbers):
            _run("ip", "netns", "add", _namespace(name))
        for name in self._numbers:
            own = _namespace(name)
            _run("ip", "-n", middle, "link", "add", f"p-{name}", "type", "veth", "peer", "name", "eth0", "netns", own)
            _run("ip", "-n", middle, "link", "set", f"p-{name}", "up")
            lines = [
                "link set lo up",
                f"link set eth0 address {self._mac(name)}",
                f"address add {self.address(name)}/24 dev eth0",
                "link set eth0 up",
                # A partition loses frames and nothing else: without these, whoever asks for an address that does not
                # answer is told so at once.
                *(
                    f"neigh replace {self.address(o)} lladdr {self._mac(o)} dev eth0"
                    for o in self._numbers
                    if o != name
                ),
            ]
            subprocess.run(["ip", "-n", own, "-batch", "-"], input="\n".join(lines).encode(), check=True)
        ports = [f"{name}=p-{name}={self._mac(name)}" for name in self._numbers]
        command = [*self.launcher("switch"), sys.executable, "-m", "tests.nemesis.switch", str(self._seed), *ports]
        self._switch = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True
        )
        assert self._switch.stdout is not None
        if self._switch.stdout.readline() != b"ready\n":
            raise RuntimeError("the switch does not start")
        enter(NETNS / _namespace(CLIENTS))

    def _mac(self, name: str) -> str:
        return f"02:00:00:00:cb:{self._numbers[name]:02x}"

    def _take_down(self) -> None:
        if self._switch is not None:
            assert self._switch.stdin is not None
            self._switch.stdin.close()
            self._switch.wait(10)
            assert self._switch.stdout is not None
            self._switch.stdout.close()
        for name in ("switch", *self._numbers):
            _remove(_namespace(name))


def enter(namespace: Path) -> None:
    """Move this thread, and those it starts, into a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with namespace.open() as handle:
        if libc.setns(handle.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(namespace))


def _namespace(name: str) -> str:
    return f"{PREFIX}-{os.getpid()}-{name}"


def mounted(folder: Path, size_bytes: int) -> None:
    """A small file system of its own in memory, until `unmount`."""
    folder.mkdir(parents=True)
    source = f"{PREFIX}-{os.getpid()}"
    _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=700", source, str(folder))


def unmount(folder: Path) -> None:
    deadline = time.monotonic() + 5.0
    while _run("umount", str(folder), check=False).returncode and time.monotonic() < deadline:
        time.sleep(0.1)  # a process that was killed a moment ago still holds it
    _run("umount", "--lazy", str(folder), check=False)
