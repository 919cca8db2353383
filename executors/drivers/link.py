"""One SSH connection to a host, with the outpost at its far end.

The host's key must be the one that is pinned, or stand in the known-hosts file; the private key must be readable by
its owner alone. Nothing is asked for: no password, no agent, no configuration of the user's own. The program of the
outpost is sent with every connection, so the host needs an SSH server and Python 3.8, nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors import keepers, shim
from executors.drivers import outpost
from executors.drivers.outpost import frames

if TYPE_CHECKING:
    import asyncssh

log = logging.getLogger(__name__)

CONNECT_S = 20.0
#: an answer that takes longer ends the connection; the longest call bounds itself by less
ANSWER_S = 30.0
#: what a login may say before the outpost speaks
MAX_GREETING_BYTES = 64 * 1024
_ONE_LINE = "import sys;f=sys.stdin.buffer;exec(compile(f.read(int(f.readline())),'outpost','exec'))"
_BOOT = """
import json, os
sent = json.loads(f.read(int(f.readline())))
root = os.path.abspath(os.path.expanduser(sent["root"]))
lib = os.path.join(root, "lib", sent["digest"])
for name, text in sent["files"].items():
    path = os.path.join(lib, name)
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        with open(path + "." + str(os.getpid()), "w") as file:
            file.write(text)
        os.replace(path + "." + str(os.getpid()), path)
sys.path.insert(0, lib)
from executors.drivers.outpost import serving
serving.main(root, f, sys.stdout.buffer)
"""


class Unreachable(OSError):  # noqa: N818
    """The host does not answer, or nobody is there who may be trusted; the sentence says which."""


class Declined(OSError):  # noqa: N818
    """The host answered that it could not; `kind` is the far end's word for why."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Door:
    """How a host is reached. `host_key` is a line of a public key; empty: `known_hosts` must have one."""

    address: str
    port: int
    user: str
    key_file: Path
    host_key: str = ""
    known_hosts: Path | None = None
    #: where everything of this cluster lies on the host
    root: str = "~/.ringrift"
    python: str = "python3"


class Link:
    """Calls the outpost; many calls may be under way. Belongs to the loop that opened it."""

    def __init__(self, connection: asyncssh.SSHClientConnection, process: asyncssh.SSHClientProcess[bytes]) -> None:
        self._connection = connection
        self._process = process
        self._number = 0
        self._waiting: dict[int, asyncio.Future[tuple[dict[str, Any], bytes]]] = {}
        self._writing = asyncio.Lock()
        self._words = b""
        #: why it is over; empty while it is not
        self.broken = ""
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._overhear())]

    @classmethod
    async def open(cls, door: Door) -> Link:
        """Raises Unreachable."""
        connection = await _connect(door)
        try:
            async with asyncio.timeout(CONNECT_S):
                command = f"exec {shlex.quote(door.python)} -I -S -c {shlex.quote(_ONE_LINE)}"
                process = await connection.create_process(command, encoding=None)
                with contextlib.suppress(BrokenPipeError):  # it has ended already, and its last words say why
                    process.stdin.write(_opening(door.root))
                await _greeting(process)
        except BaseException as error:
            connection.abort()
            if isinstance(error, _errors()):
                raise Unreachable(f"{door.user}@{door.address}: {_sentence(error)}") from error
            raise
        return cls(connection, process)

    async def call(self, op: str, body: bytes = b"", *, within_s: float = ANSWER_S, **fields: Any) -> Any:
        """The answer, and its bytes under the key `body`. Raises Unreachable and Declined."""
        if self.broken:
            raise Unreachable(self.broken)
        self._number += 1
        number = self._number
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(within_s):
                async with self._writing:
                    self._process.stdin.write(frames.frame({"id": number, "op": op, **fields}, body))
                    await self._process.stdin.drain()
                header, data = await answer
        except TimeoutError:
            self.break_off(f"it did not answer {op} within {within_s:g} s")
            raise Unreachable(self.broken) from None
        except _errors() as error:
            self.break_off(_sentence(error))
            raise Unreachable(self.broken) from error
        finally:
            self._waiting.pop(number, None)
        if "error" in header:
            raise Declined(str(header["error"]), str(header.get("text", ""))[:4096])
        header["body"] = data
        return header

    def break_off(self, reason: str) -> None:
        """End the connection at once; every call that waits fails."""
        if not self.broken:
            self.broken = reason or "the connection is closed"
        self._connection.abort()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(Unreachable(self.broken))

    async def close(self) -> None:
        self.break_off("it was closed")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(*_errors()):
            await self._connection.wait_closed()

    async def _listen(self) -> None:
        stream, lengths = self._process.stdout, frames.LENGTHS
        try:
            while True:
                header_bytes, body_bytes = lengths.unpack(await stream.readexactly(lengths.size))
                if header_bytes > frames.MAX_HEADER_BYTES or body_bytes > frames.MAX_BODY_BYTES:
                    self.break_off("it sent a frame that is too large")
                    return
                header = json.loads(await stream.readexactly(header_bytes))
                body = await stream.readexactly(body_bytes)
                answer = self._waiting.get(header.pop("id"))
                if answer is not None and not answer.done():
                    answer.set_result((header, body))
        except _errors() as error:
            last = self._words.decode("utf-8", "replace").strip().rpartition("\n")[2]
            self.break_off(f"the connection was lost: {last or _sentence(error)}"[:500])

    async def _overhear(self) -> None:
        """Keep the last words on stderr, which nobody else would read."""
        with contextlib.suppress(*_errors()):
            while said := await self._process.stderr.read(4096):
                self._words = (self._words + said)[-2048:]


def _errors() -> tuple[type[Exception], ...]:
    """What a broken connection or a far end out of order raises. Frames of strangers may hold anything."""
    import asyncssh  # late, since a node without such hosts need not know it

    return (OSError, EOFError, ValueError, LookupError, AttributeError, asyncssh.Error)


async def _connect(door: Door) -> asyncssh.SSHClientConnection:
    import asyncssh

    logging.getLogger("asyncssh").setLevel(logging.WARNING)
    where = f"{door.user}@{door.address}"
    try:
        mode = door.key_file.stat().st_mode
    except OSError as error:
        raise Unreachable(f"{where}: its key file {door.key_file} cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise Unreachable(f"{where}: others can read its key file {door.key_file}; chmod 600 {door.key_file}")
    try:
        known: Any = str(door.known_hosts) if door.known_hosts else ([], [], [])
        if door.host_key:
            known = ([asyncssh.import_public_key(door.host_key)], [], [])
        async with asyncio.timeout(CONNECT_S):
            return await asyncssh.connect(
                door.address,
                door.port,
                username=door.user,
                client_keys=[str(door.key_file)],
                known_hosts=known,
                config=None,
                agent_path=None,
                x509_trusted_certs=None,
                preferred_auth="publickey",
                keepalive_interval=15,
                keepalive_count_max=3,
                compression_algs=None,
            )
    except asyncssh.HostKeyNotVerifiable as error:
        wanted = "the one that is pinned" if door.host_key else f"in {door.known_hosts or 'any known-hosts file'}"
        raise Unreachable(f"{where}: its host key is not {wanted}; look who answers there") from error
    except _errors() as error:
        raise Unreachable(f"{where}: {_sentence(error)}") from error


def _opening(root: str) -> bytes:
    files = programs()
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:32]
    sent = json.dumps({"root": root, "digest": digest, "files": files}).encode()
    boot = _BOOT.encode()
    return b"%d\n%b%d\n%b" % (len(boot), boot, len(sent), sent)


def programs() -> Mapping[str, str]:
    """What is sent to a host: path below its library to the text."""
    files = [Path(str(module.__file__)) for module in (shim, keepers)]
    texts = {f"executors/{file.name}": file.read_text(encoding="utf-8") for file in files}
    for file in sorted(Path(str(outpost.__file__)).parent.glob("*.py")):
        texts[f"executors/drivers/outpost/{file.name}"] = file.read_text(encoding="utf-8")
    return {"executors/__init__.py": "", "executors/drivers/__init__.py": "", **texts}


async def _greeting(process: asyncssh.SSHClientProcess[bytes]) -> None:
    """Pass over what a login prints, until the outpost speaks. Raises Unreachable."""
    heard = b""
    while not heard.endswith(frames.HELLO):
        line = await process.stdout.readline()
        heard += line
        if not line:
            words = (await process.stderr.read(2048)).decode("utf-8", "replace").strip()
            raise Unreachable(f"its Python did not start the outpost: {words.rpartition(chr(10))[2] or 'no words'}")
        if len(heard) > MAX_GREETING_BYTES:
            raise Unreachable("its login prints too much before the outpost speaks")


def _sentence(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__
