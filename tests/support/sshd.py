"""SSH servers on loopback for tests, without root: OpenSSH's where it is installed, asyncssh's everywhere.

Each is a process of its own, so that it can be killed, and what it started survives it or does not as in life.
`Proxy` stands between client and server and cuts.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import asyncssh
import psutil

KINDS = ("asyncssh", "openssh")


def missing(kind: str) -> str:
    """Why this kind of server cannot be had here; empty when it can."""
    if kind == "asyncssh":
        return ""
    if _sshd() is None:
        return "no sshd is installed (Debian: openssh-server)"
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd wants it only of root
    return ""


def _sshd() -> str | None:
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


class Sshd:
    """One server with a key of its own, and one user's key that it takes."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.user = getpass.getuser()
        self.directory = directory
        directory.mkdir(parents=True)
        host_key, user_key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
        self.host_key = host_key.export_public_key().decode().strip()
        self.key_file = directory / "id"
        for key, path in ((host_key, directory / "host"), (user_key, self.key_file)):
            key.write_private_key(path)
            path.chmod(0o600)
        user_key.write_public_key(directory / "authorized")
        with socket.create_server(("127.0.0.1", 0)) as one:
            self.port = one.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with (self.directory / "log").open("ab") as words:
            self.process = subprocess.Popen(self._command(), stdout=words, stderr=words, start_new_session=True)
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert time.monotonic() < deadline, (self.directory / "log").read_text()
            time.sleep(0.05)

    def _command(self) -> list[str]:
        if self.kind == "asyncssh":
            return [sys.executable, "-m", "tests.support.sshd", str(self.directory), str(self.port)]
        config = self.directory / "config"
        config.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.directory}/host\nPidFile none\n"
            f"AuthorizedKeysFile {self.directory}/authorized\nUsePAM no\nStrictModes no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nMaxStartups 100\n"
        )
        return [str(_sshd()), "-D", "-e", "-f", str(config)]

    def kill(self) -> None:
        """End the server and the sessions it serves, and nothing that a session has left to itself."""
        if self.process is None:
            return
        mine = psutil.Process(self.process.pid)
        for one in (*mine.children(recursive=True), mine):
            with contextlib.suppress(psutil.NoSuchProcess):
                if one.pid == mine.pid or one.name().startswith("sshd"):
                    one.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = None


class Proxy:
    """Passes a TCP port on. `cut` ends what there is; while `closed`, new connections end at once."""

    def __init__(self, target: int) -> None:
        self.closed = False
        #: after so many more bytes up or down everything is cut, once; None: never
        self.cut_after_up: int | None = None
        self.cut_after_down: int | None = None
        self.cuts = 0
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        self.cuts += 1
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        far = None
        try:
            if self.closed:
                return
            far_reader, far = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers |= {writer, far}
            await asyncio.gather(self._pass_on(reader, far, "up"), self._pass_on(far_reader, writer, "down"))
        except OSError:
            return
        finally:
            self._tasks.discard(task)
            for one in (writer, far):
                if one is not None:
                    self._writers.discard(one)
                    one.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        name = f"cut_after_{way}"
        while data := await reader.read(65536):
            left = getattr(self, name)
            if left is not None:
                setattr(self, name, left - len(data) if left > len(data) else None)
                if left <= len(data):
                    self.cut()
                    return
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError


async def _session(process: asyncssh.SSHServerProcess[bytes]) -> None:
    shell = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", process.command or "exit 1", stdin=-1, stdout=-1, stderr=-1, start_new_session=True
    )
    assert shell.stdin
    assert shell.stdout
    assert shell.stderr

    async def pump(source: asyncio.StreamReader | asyncssh.SSHReader[bytes], sink: object) -> None:
        with contextlib.suppress(OSError, asyncssh.Error):
            while data := await source.read(65536):
                sink.write(data)  # type: ignore[attr-defined]
                await sink.drain()  # type: ignore[attr-defined]

    async def fill() -> None:
        await pump(process.stdin, shell.stdin)
        shell.stdin.close()

    filling = asyncio.create_task(fill())
    await asyncio.gather(pump(shell.stdout, process.stdout), pump(shell.stderr, process.stderr), shell.wait())
    filling.cancel()  # a client that has nothing more to say and waits for the end says nothing of that
    process.exit(shell.returncode or 0)


async def _serve(directory: Path, port: int) -> None:
    await asyncssh.listen(
        "127.0.0.1",
        port,
        server_host_keys=[str(directory / "host")],
        authorized_client_keys=str(directory / "authorized"),
        process_factory=_session,
        encoding=None,
        reuse_address=True,
    )
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), int(sys.argv[2])))
