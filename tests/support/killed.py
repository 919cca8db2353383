"""Steps of a node's files in processes that are killed: python -m tests.support.killed STEP ROOT

Each step runs in a forked process on a folder of its own, and that process kills itself at its first point, the next
one at its second, and so on, until one comes to the end of the step. Points are: before each call that opens, renames,
links, removes or changes the mode of a file below the folder, before each fsync, and before and after each entry of
the log. Prints how many were killed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgspec

from executors.blobs import Blobs
from statemachine.commands import AddHolder, ForgetArtifact, RegisterArtifact
from statemachine.errors import Result
from statemachine.machine import Machine
from tests.executors.memory import MemoryCluster, eventually
from tests.support.stores import EAGER, Node, Site, looked_after

POINTS = frozenset(("open", "os.rename", "os.link", "os.remove", "os.chmod"))
#: more points than any step has
MOST = 200
DATA = random.Random(7).randbytes(300_000)
DIGEST = hashlib.sha256(DATA).hexdigest()
OTHER = DATA[:-1] + bytes([DATA[-1] ^ 1])


class KeptMachine(Machine):
    """The law with its log in a file, so that a later process goes on from what an earlier one committed."""

    def __init__(self, path: Path, reach: Callable[[], None]) -> None:
        super().__init__()
        for entry in msgspec.msgpack.decode(path.read_bytes(), type=list[bytes]) if path.exists() else ():
            super().apply(self.index + 1, 1, entry)
        self._path, self._reach = path, reach

    def apply(self, index: int, term: int, entry: bytes) -> list[Result]:
        self._reach()
        entries = msgspec.msgpack.decode(self._path.read_bytes(), type=list[bytes]) if self._path.exists() else []
        beside = self._path.with_suffix(".new")
        beside.write_bytes(msgspec.msgpack.encode([*entries, entry]))
        beside.replace(self._path)
        results = super().apply(index, term, entry)
        self._reach()
        return results


class Scene:
    """Two nodes and a storage node on one law, below a folder; what is there already is taken up."""

    def __init__(self, root: Path, pool: ThreadPoolExecutor, reach: Callable[[], None] = lambda: None) -> None:
        self.fresh = not (root / "log").exists()
        root.mkdir(parents=True, exist_ok=True)
        http = httpx.AsyncClient(transport=httpx.ASGITransport(self._answer), timeout=10.0)
        self.site = Site(root, "http://site", http, pool)
        self.site.cluster = MemoryCluster()
        self.site.cluster.machine = KeptMachine(root / "log", reach)
        self.rules('{"copies": {"default": 0}, "collect_ms": 3600000, "scrub_ms": 3600000}')
        options = replace(EAGER, blob_min_age_s=0.0)
        self.a, self.b = self.site.node("a", options=options), self.site.node("b", options=options)
        self.s = self.site.node("s", "storage", options=options)

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        await self.site(scope, receive, send)

    def rules(self, text: str) -> None:
        self.site.rules(text)

    @property
    def holders(self) -> tuple[str, ...]:
        row = self.site.cluster.state.artifacts.get(DIGEST)
        return row.holders if row is not None else ()

    def give(self, *nodes: Node) -> None:
        """Let nodes have the file, and say so."""
        for node in nodes:
            node.blobs.add(DATA)
            self.site.cluster.must(RegisterArtifact(DIGEST, len(DATA), "games", "square8_2p", node.name))


Step = tuple[Callable[[Scene], None], Callable[[Scene], Awaitable[None]]]


def nothing(scene: Scene) -> None:
    pass


async def upload(scene: Scene) -> None:
    answer = await scene.site.http.put(f"http://site/a/artifacts/{DIGEST}?kind=games", content=DATA)
    assert answer.status_code == 201, answer.text


async def pieces(scene: Scene) -> None:
    url = f"http://site/a/artifacts/{DIGEST}"
    at = (await scene.site.http.get(f"{url}/upload")).json()
    while not at["stored"]:
        first = at["received_bytes"]
        piece = DATA[first : first + 100_000]
        part = f"{first}-{first + len(piece) - 1}" if piece else "*"
        headers = {"content-range": f"bytes {part}/{len(DATA)}"}
        answer = await scene.site.http.put(f"{url}?kind=games", content=piece, headers=headers)
        assert answer.status_code in (201, 202), answer.text
        at = (await scene.site.http.get(f"{url}/upload")).json()
    if "a" not in scene.holders:
        await upload(scene)


async def adopt(scene: Scene) -> None:
    """What an attempt made is linked into the store and registered."""
    made = scene.site.root / "out"
    made.write_bytes(DATA)
    digest, size = await asyncio.to_thread(scene.a.blobs.adopt, made)
    await scene.site.cluster.propose([RegisterArtifact(digest, size, "games", "square8_2p", "a")])


async def fetch(scene: Scene) -> None:
    async with looked_after(scene.b):
        await scene.b.fetch(DIGEST)
        await eventually(lambda: "b" in scene.holders)


async def copy(scene: Scene) -> None:
    scene.rules('{"collect_ms": 10, "push_after_ms": 3600000, "scrub_ms": 3600000}')
    async with looked_after(scene.s):
        await eventually(lambda: "s" in scene.holders)


async def send(scene: Scene) -> None:
    scene.rules('{"collect_ms": 10, "push_after_ms": 0, "scrub_ms": 3600000}')
    async with looked_after(scene.a):
        await eventually(lambda: scene.s.blobs.path(DIGEST) is not None)
    # Where it was stored before it was said, its holder finds it at the next look at its directory.
    async with looked_after(scene.s):
        await eventually(lambda: "s" in scene.holders)


async def evict(scene: Scene) -> None:
    scene.b.blobs.quota_bytes = 10
    async with looked_after(scene.b):
        await eventually(lambda: "b" not in scene.holders and scene.b.blobs.path(DIGEST) is None)


def spoiled(scene: Scene) -> None:
    scene.give(scene.a, scene.b)
    path = scene.b.blobs.place(DIGEST)
    path.chmod(0o644)
    path.write_bytes(OTHER)


def bytes_of(path: Path) -> bytes:
    """What is in a file; nothing while it is not there."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


async def scrub(scene: Scene) -> None:
    scene.rules('{"copies": {"default": 0}, "manifest_age_ms": 10, "collect_ms": 3600000, "scrub_ms": 20}')
    place = scene.b.blobs.place(DIGEST)
    async with looked_after(scene.b):
        await eventually(lambda: bytes_of(place) in (DATA, b""))
        # A process that came after the copy was taken out finds it missing, and whoever needs it fetches it.
        await scene.b.fetch(DIGEST)
        await eventually(lambda: "b" in scene.holders)


def forgotten(scene: Scene) -> None:
    scene.give(scene.a)
    scene.site.cluster.must(ForgetArtifact(DIGEST))


async def sweep(scene: Scene) -> None:
    async with looked_after(scene.a):
        await eventually(lambda: scene.a.blobs.path(DIGEST) is None)


def astray(scene: Scene) -> None:
    """`b` says that it has the file and has not, `s` has it and does not say so."""
    scene.give(scene.a)
    scene.site.cluster.must(AddHolder(DIGEST, "b"))
    scene.s.blobs.add(DATA)


async def compare(scene: Scene) -> None:
    async with looked_after(scene.b, scene.s):
        await eventually(lambda: scene.holders == ("a", "s"))


#: name: (what is there before, the step)
STEPS: dict[str, Step] = {
    "upload": (nothing, upload),
    "pieces": (nothing, pieces),
    "adopt": (nothing, adopt),
    "fetch": (lambda scene: scene.give(scene.a), fetch),
    "copy": (lambda scene: scene.give(scene.a), copy),
    "send": (lambda scene: scene.give(scene.a), send),
    "evict": (lambda scene: scene.give(scene.a, scene.b), evict),
    "scrub": (spoiled, scrub),
    "sweep": (forgotten, sweep),
    "compare": (astray, compare),
}


def perform(name: str, root: Path, arm: Callable[[], None] = lambda: None, reach: Callable[[], None] = lambda: None):  # type: ignore[no-untyped-def]
    """Run a step to its end on a folder, new or left by a process that was killed."""
    before, step = STEPS[name]

    async def go() -> None:
        with ThreadPoolExecutor(2) as pool:
            scene = Scene(root, pool, reach)
            if scene.fresh:
                before(scene)
            arm()
            await asyncio.wait_for(step(scene), 30)
            await scene.site.http.aclose()

    asyncio.run(go())


def die_at(number: int, name: str, root: Path) -> None:
    """Perform a step and be killed at one of its points."""
    armed = False
    reached = 0
    below = str(root)

    def reach() -> None:
        nonlocal reached
        if armed:
            reached += 1
            if reached == number:
                os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if armed and event in POINTS and any(below in str(arg) and "log" not in str(arg)[-8:] for arg in args[:2]):
            reach()

    def arm() -> None:
        nonlocal armed
        armed = True

    real = os.fsync

    def fsync(handle: int) -> None:
        reach()
        real(handle)

    os.fsync = fsync
    sys.addaudithook(audit)
    perform(name, root, arm, reach)


def main() -> None:
    name, root = sys.argv[1], Path(sys.argv[2])
    for number in range(1, MOST):
        child = os.fork()
        if not child:
            die_at(number, name, root / str(number))
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if os.WIFEXITED(status):
            if os.WEXITSTATUS(status):
                sys.exit(f"{name} failed before its point {number}")
            print(number - 1)
            return
    sys.exit(f"{name} has more than {MOST} points")


def whole(blobs: Blobs) -> dict[str, str]:
    """Digest of the bytes of each file in a store, by its name."""
    return {d: hashlib.sha256(blobs.place(d).read_bytes()).hexdigest() for d in sorted(blobs.digests())}


if __name__ == "__main__":
    main()
