"""Serving one connection: requests are answered on threads, and one that fails ends nothing else."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from executors import keepers, shim
from executors.drivers.outpost import checkpoints
from executors.drivers.outpost.attempts import Attempts
from executors.drivers.outpost.frames import HELLO, frame, read_frame
from executors.drivers.outpost.inputs import Inputs, WrongDigest
from executors.drivers.outpost.root import Root, Superseded

#: it ends by itself when nothing was asked for this long: a connection can die without anybody being told
IDLE_S = 120
#: what may take minutes, so many of them at a time
SLOW = ("furnish", "pack", "drop", "ask", "hash", "seal", "tidy")
SLOW_THREADS = 4
THREADS = 16
#: failures that the near end tells apart
SAID = (Superseded, WrongDigest, keepers.NoTree, keepers.Unanswered)
FAILURES = (OSError, ValueError, TypeError, AttributeError, LookupError, EOFError, tarfile.TarError, *SAID)


class Outpost:
    """Answers requests; each method of it and its parts that begins with `do_` is one, on a thread of its own."""

    def __init__(self, root: str, out: BinaryIO) -> None:
        self.root = Root(root)
        self._boot_id = _boot_id()
        self.inputs = Inputs(self.root)
        self.attempts = Attempts(self.root, self._boot_id)
        parts = (self, self.inputs, self.attempts)
        self._answers = {name: getattr(part, name) for part in parts for name in dir(part) if name.startswith("do_")}
        self._out = out
        self._writing = threading.Lock()

    def serve(self, stream: BinaryIO) -> None:
        """Until the stream ends. A look waits for nothing else: leases depend on it."""
        looks, slow, rest = ThreadPoolExecutor(1), ThreadPoolExecutor(SLOW_THREADS), ThreadPoolExecutor(THREADS)
        with looks, slow, rest:
            while True:
                signal.alarm(IDLE_S)
                request = read_frame(stream)
                if request is None:
                    return
                op = request[0].get("op")
                threads = looks if op == "look" else slow if op in SLOW else rest
                threads.submit(self._answer, *request)

    def _answer(self, request: dict[str, Any], body: bytes) -> None:
        number, made = request.pop("id"), b""
        try:
            answer = self._answers[f"do_{request.pop('op')}"](body=body, **request)
            answer, made = answer if isinstance(answer, tuple) else (answer, b"")
        except FAILURES as error:
            kind = type(error).__name__ if isinstance(error, SAID) else "OSError"
            answer = {"error": kind, "text": str(error)}
        with self._writing:
            self._out.write(frame({"id": number, **answer}, made))
            self._out.flush()

    def do_hello(self, body: bytes) -> dict[str, Any]:
        ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        secret = ("SSH_", "RINGRIFT_")
        return {
            "boot_id": self._boot_id,
            "boot_s": shim.boot_s(),
            "root": str(self.root.path),
            "python": sys.executable,
            "version": platform.python_version(),
            "hostname": platform.node(),
            "platform": f"{sys.platform}-{platform.machine()}",
            "cores": len(os.sched_getaffinity(0)),
            "ram_bytes": ram,
            "disk": self.root.disk(),
            "environ": {k: v for k, v in os.environ.items() if not k.startswith(secret)},
            "gpus": self.do_gpus(b"")["gpus"],
        }

    def do_gpus(self, body: bytes) -> dict[str, Any]:
        """What nvidia-smi says of every device; an empty text where there is none."""
        fields = "uuid,name,memory.total,memory.used,utilization.gpu,temperature.gpu,driver_version"
        try:
            said = subprocess.run(
                ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=20,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return {"gpus": ""}
        return {"gpus": said.stdout.decode("utf-8", "replace")}

    def do_claim(self, body: bytes, incarnation: int, held: list[str] | None) -> dict[str, Any]:
        """Be the one that starts here. With `held`, end and drop every attempt that is not named there."""
        self.root.claim(incarnation)
        strangers = [] if held is None else [one for one in self.root.jobs.iterdir() if one.name not in held]
        for folder in strangers:
            self.attempts.do_drop(b"", folder.name)
        return {"dropped": len(strangers)}

    def do_tidy(self, body: bytes, files_bytes: int, checkpoints_s: float) -> dict[str, Any]:
        """Drop inputs that no attempt uses, used longest ago first, and old checkpoints."""
        left = self.inputs.tidy(files_bytes, checkpoints_s)
        checkpoints.tidy(self.root, checkpoints_s)
        return {"files_bytes": left}


def _boot_id() -> str:
    """What changes with every boot; empty on a machine that is no Linux."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def main(root: str, stream: BinaryIO, out: BinaryIO) -> None:
    """Serve one connection."""
    out.write(HELLO)
    out.flush()
    Outpost(root, out).serve(stream)
