"""Files between here and a host: inputs over there, logs and outputs back, each whole or not at all.

Pieces go several at a time. What was cut off goes on before the pieces that were under way, and a digest that both
ends make from the bytes says in the end whether all of it arrived.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Executor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

from executors import collect, outcome
from executors.blobs import digest_of
from executors.drivers.link import Declined
from executors.drivers.outpost.frames import MAX_BODY_BYTES
from executors.outcome import decode_result
from executors.pace import Pace
from statemachine.errors import UNDECODABLE

log = logging.getLogger(__name__)
T = TypeVar("T")

CHUNK_BYTES = 256 * 1024
#: pieces of a file under way at a time
WINDOW = 8
#: the far end hashes this many bytes a second or more, or it is broken off
SLOWEST_HASH = 20_000_000
#: and waits so long at most for what else takes its time over there
QUEUE_S = 600.0
#: a file that arrived with other bytes is fetched or sent again so often
TRIES = 3
#: files of an attempt that are brought while it runs
MIRRORED = ("stdout.log", "stderr.log", "shim.log", "progress.jsonl")
#: names that a fetched file may have first
PARTS = ("out", "tree", "home")


class Calls(Protocol):
    """The far end; calls are repeated when a connection is cut. Raises Declined, and Unreachable when it is over."""

    async def __call__(self, op: str, body: bytes = b"", **fields: Any) -> Any: ...


class Carrier:
    """Files of one host. `moving` and `pace` bound what all hosts together take."""

    def __init__(self, calls: Calls, disk: Executor, moving: asyncio.Semaphore, pace: Pace, host: str) -> None:
        self._call = calls
        self._disk = disk
        self._moving = moving
        self._pace = pace
        self._host = host
        self._sending: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def send(self, path: Path) -> None:
        """Bring one file of the store, named by its digest, to the host's. Raises OSError."""
        digest = path.name
        async with self._sending.setdefault(digest, asyncio.Lock()), self._moving:
            for left in reversed(range(TRIES)):
                have = await self._call("have", digest=digest)
                if have["whole"]:
                    return
                size = (await self._on_disk(path.stat)).st_size
                done = surely(have["partial"]) if left == TRIES - 1 else 0
                steps = (partial(self._put, path, offset) for offset in range(done, size, CHUNK_BYTES))
                await _few_at_a_time(steps, WINDOW)
                if not size:
                    await self._call("put", digest=digest, offset=0)
                try:
                    await self._call("seal", digest=digest, size=size, within_s=_hash_s(size))
                except Declined:
                    if not left:
                        raise
                else:
                    return

    async def _put(self, path: Path, offset: int) -> None:
        data = await self._on_disk(partial(_read, path, offset, CHUNK_BYTES))
        await self._pace.take(len(data))
        await self._call("put", data, digest=path.name, offset=offset)

    async def fetch(self, folder: Path, path: str, size: int) -> None:
        """Bring one output; it has its name here when its bytes are those over there. Raises OSError."""
        target = folder / path
        beside = target.with_name(target.name + ".fetched")
        async with self._moving:
            await self._on_disk(partial(target.parent.mkdir, parents=True, exist_ok=True))
            hashing = self._call("hash", name=folder.name, path=path, within_s=_hash_s(size))
            told = asyncio.ensure_future(hashing)
            try:
                for left in reversed(range(TRIES)):
                    done = await self._on_disk(partial(_size, beside)) if left == TRIES - 1 else 0
                    offsets = range(surely(done), size, CHUNK_BYTES)
                    await self._on_disk(beside.touch)
                    await _few_at_a_time((partial(self._get, folder, path, beside, o) for o in offsets), WINDOW)
                    wanted = (await asyncio.shield(told))["sha256"]
                    if await self._on_disk(partial(digest_of, beside)) == wanted:
                        await self._on_disk(partial(beside.replace, target))
                        return
                    await self._on_disk(beside.unlink)
            finally:
                told.cancel()
        raise OSError(f"its output {path!r} arrived {TRIES} times with other bytes than it has on {self._host}")

    async def _get(self, folder: Path, path: str, beside: Path, offset: int) -> None:
        answer = await self._call("get", name=folder.name, path=path, offset=offset, most=CHUNK_BYTES)
        await self._pace.take(len(answer["body"]))
        await self._on_disk(partial(_write, beside, offset, answer["body"]))

    async def whole(self, name: str, path: str, most: int) -> bytes | None:
        """A small file, up to `most` bytes of it; None when there is none."""
        data = b""
        while len(data) < most:
            try:
                part = (await self._call("get", name=name, path=path, offset=len(data), most=MAX_BODY_BYTES))["body"]
            except Declined:
                return None
            if not part:
                break
            data += part
        return data[:most]

    async def brought(self, folder: Path) -> dict[str, int]:
        """How much of an attempt's mirrored files is here."""
        return await self._on_disk(partial(sizes, folder))

    async def mirror(self, folder: Path, body: bytes, files: Mapping[str, Any]) -> bool:
        """Add what a look brought of an attempt's files; returns whether more waits to be brought.

        What finds no room here counts as not brought: the next look asks for it again.
        """
        at, more = 0, False
        for file, (start, count, size) in files.items():
            data, at = body[at : at + count], at + count
            if file in MIRRORED and count:
                try:
                    await self._on_disk(partial(_append, folder / file, start, data))
                except OSError as error:
                    log.warning(
                        "event=not_brought host=%s folder=%s file=%s error=%s", self._host, folder.name, file, error
                    )
                    continue
                more = more or start + count < size
        return more

    async def _on_disk(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, call)


def named_outputs(result: bytes) -> list[str]:
    """The outputs that a result.json names, as patterns that fit them alone; none when it cannot be read."""
    try:
        outputs = decode_result(result).outputs
    except UNDECODABLE:
        return []
    return [f"out/{_literal(output.path)}" for output in outputs if outcome.inside(output.path)]


def _literal(path: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in path)


def found_by(pattern: str) -> str:
    return pattern if pattern.split("/")[0] in collect.CORNERS else f"out/{pattern}"


def checked(path: str) -> str:
    """The path of a file that a host wants to send, when it stays where outputs are. Raises OSError."""
    parts = PurePosixPath(path).parts
    if len(parts) < 2 or parts[0] not in PARTS or ".." in parts or path.startswith("/") or "\0" in path:
        raise OSError(f"the host names the output {path!r}, which is not below out/")
    return path


def surely(size: int) -> int:
    """How much of a broken-off file is there without a gap; a digest tells in the end."""
    return max(size // CHUNK_BYTES - WINDOW, 0) * CHUNK_BYTES


def _hash_s(size: int) -> float:
    return QUEUE_S + size / SLOWEST_HASH


async def _few_at_a_time(steps: Iterable[Callable[[], Awaitable[None]]], most: int) -> None:
    """Take steps in their order, `most` at a time; the first failure ends the others."""
    todo = iter(steps)

    async def worker() -> None:
        for step in todo:
            await step()

    tasks = [asyncio.create_task(worker()) for _ in range(most)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def sizes(folder: Path) -> dict[str, int]:
    return {name: _size(folder / name) for name in MIRRORED}


def _append(path: Path, start: int, data: bytes) -> None:
    """Add what came of a file; one that was begun anew over there is begun anew here."""
    if not start and _size(path):
        if path.suffix == ".log":
            path.replace(path.with_name(path.name + ".1"))
        else:
            path.unlink()
    with path.open("ab") as file:
        if file.tell() == start:  # else it is brought already, by a look that was under way
            file.write(data)


def _read(path: Path, offset: int, most: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(most)


def _write(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
