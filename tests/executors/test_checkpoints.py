"""Checkpoints on their way from attempt to attempt: on one node, and from one to another."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from executors.blobs import Blobs
from executors.checkpoints import BadCheckpoint, Checkpoint
from statemachine import settings
from statemachine.commands import ChangeSetting, DrainPeer, StopJob
from statemachine.rows import Actual, WorkStatus
from tests.executors.agents import Node, node, program, run
from tests.executors.memory import QUICK, MemoryCluster, eventually

#: counts further on from its checkpoint, and keeps one when it is told to stop
COUNTS = """
import json, os, signal, sys, time
path = "checkpoint/count"
count = int(open(path).read()) if os.path.exists(path) else 0
def end(*_):
    open(path, "w").write(str(count + 1))
    sys.exit(0)
signal.signal(15, end)
print("up", flush=True)
if count == 2:
    open("result.json", "w").write(json.dumps({"metrics": {"count": count}}))
    sys.exit(0)
time.sleep(600)
"""


def blobs_of(root: Path) -> Blobs:
    return Blobs(root / "artifacts")


def made(root: Path, **files: str) -> Checkpoint:
    found = Checkpoint(root, "w", blobs_of(root))
    for name, text in files.items():
        path = found.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return found


def test_what_is_packed_on_one_node_is_unpacked_on_another_with_its_times(tmp_path: Path) -> None:
    here = made(tmp_path / "a", net="weights", **{"deep/log": "lines"})
    os.utime(here.path / "net", (1_000_000, 1_000_000))
    packed = here.pack()
    assert packed is not None
    digest, size = packed
    file = blobs_of(tmp_path / "a").path(digest)
    assert file is not None
    assert file.stat().st_size == size
    there = made(tmp_path / "b", old="of an earlier attempt")
    assert not there.goes_on_from(digest)
    there.unpack(file, digest)
    assert there.goes_on_from(digest)
    assert sorted(p.name for p in there.path.rglob("*") if p.is_file()) == [".saved", "log", "net"]
    assert (there.path / "net").stat().st_mtime == 1_000_000
    assert there.pack() == packed, "the same content is the same file"


def test_an_empty_checkpoint_is_none_and_two_items_never_share_one(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path, "w", blobs_of(tmp_path)).pack() is None
    one, other = made(tmp_path, net="weights"), Checkpoint(tmp_path, "v", blobs_of(tmp_path))
    other.path.mkdir(parents=True)
    (other.path / "net").write_text("weights")
    os.utime(other.path / "net", (1_000_000, 1_000_000))
    os.utime(one.path / "net", (1_000_000, 1_000_000))
    assert one.pack() != other.pack()


@pytest.mark.parametrize("name", ["../out", "/etc/out", "link"])
def test_an_archive_that_reaches_out_of_its_folder_is_refused_and_changes_nothing(tmp_path: Path, name: str) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        info = tarfile.TarInfo(name)
        if name == "link":
            info.type, info.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(info, io.BytesIO())
    bad = tmp_path / "bad"
    bad.write_bytes(data.getvalue())
    here = made(tmp_path / "a", net="weights")
    with pytest.raises(BadCheckpoint, match="no file below it"):
        here.unpack(bad, "d")
    bad.write_bytes(b"no archive")
    with pytest.raises(BadCheckpoint):
        here.unpack(bad, "d")
    assert (here.path / "net").read_text() == "weights"


async def two_nodes(tmp_path: Path, test: Callable[[MemoryCluster, Node, Node], Awaitable[None]]) -> None:
    """Nodes n1 and n2 that fetch each other's files."""
    stores = {"n1": blobs_of(tmp_path / "n1"), "n2": blobs_of(tmp_path / "n2")}

    def serve(request: httpx.Request) -> httpx.Response:
        path = stores[request.url.host].path(request.url.path.rpartition("/")[2])
        return httpx.Response(200, stream=httpx.ByteStream(path.read_bytes())) if path else httpx.Response(404)

    async with httpx.AsyncClient(transport=httpx.MockTransport(serve)) as http, node(tmp_path / "n1", http=http) as one:
        other = Node(one.cluster, tmp_path / "n2", peer="n2", address="http://n2:1", http=http)
        await other.joined()
        try:
            await test(one.cluster, one, other)
        finally:
            await other.agent.stop(stop_jobs=True)


def ready(cluster: MemoryCluster) -> bool:
    cluster.apply(ChangeSetting("timing", settings.encode(QUICK)))  # moves the clock
    return cluster.work("w").ready_at_ms <= cluster.state.now_ms


def test_work_goes_on_elsewhere_from_where_it_was_stopped(tmp_path: Path) -> None:
    async def go(cluster: MemoryCluster, one: Node, other: Node) -> None:
        cluster.setting("template/t", program(COUNTS))
        cluster.add("w", "t")
        for peer, at in (("n1", one), ("n2", other)):
            job = cluster.place("w", peer)
            await at.says(job.job, "up")
            await eventually(lambda job=job: cluster.state.jobs[job.job].actual is Actual.RUNNING)
            cluster.must(StopJob(job.job, job.fence, "a test"))
            await eventually(lambda: cluster.work("w").status is WorkStatus.PENDING)
            await eventually(lambda: ready(cluster))
        # The first node has a directory of its own, which is older than what the other one made of it.
        cluster.place("w", "n1")
        await eventually(lambda: cluster.work("w").status is WorkStatus.COMPLETED)
        assert cluster.work("w").metrics == {"count": "2"}
        assert not [row for row in cluster.state.artifacts.values() if row.kind == "checkpoint"]

    run(lambda: two_nodes(tmp_path, go))


def test_a_node_whose_drain_is_over_gives_its_work_back_with_what_it_has(tmp_path: Path) -> None:
    async def go(cluster: MemoryCluster, one: Node, _: Node) -> None:
        cluster.setting("template/t", program(COUNTS))
        cluster.add("w", "t")
        job = cluster.place("w", "n1")
        await one.says(job.job, "up")
        cluster.must(DrainPeer("n1", True, "a test", deadline_ms=1))
        await eventually(lambda: ready(cluster) and cluster.work("w").status is WorkStatus.PENDING)
        (file,) = [row for row in cluster.state.artifacts.values() if row.kind == "checkpoint"]
        assert (file.job, file.holders) == (job.job, ("n1",))

    run(lambda: two_nodes(tmp_path, go))


def test_a_checkpoint_that_nobody_can_give_holds_nothing_up(tmp_path: Path) -> None:
    async def go(cluster: MemoryCluster, one: Node, other: Node) -> None:
        cluster.setting("template/t", program(COUNTS))
        cluster.add("w", "t")
        job = cluster.place("w", "n1")
        await one.says(job.job, "up")
        await eventually(lambda: cluster.state.jobs[job.job].actual is Actual.RUNNING)
        cluster.must(StopJob(job.job, job.fence, "a test"))
        await eventually(lambda: cluster.work("w").status is WorkStatus.PENDING)
        (digest,) = cluster.state.artifacts
        one.agent.bench.blobs.place(digest).unlink()
        await eventually(lambda: ready(cluster))
        job = cluster.place("w", "n2")
        await other.says(job.job, "up")

    run(lambda: two_nodes(tmp_path, go))


def test_a_checkpoint_is_there_for_the_next_attempt_and_goes_when_the_item_is_done(tmp_path: Path) -> None:
    code = """
import json, os, sys
if not os.path.exists("checkpoint/half"):
    open("checkpoint/half", "w").write("half")
    sys.exit(1)
open("result.json", "w").write(json.dumps({"metrics": {"found": open("checkpoint/half").read()}}))
"""

    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/t", program(code))
            one.cluster.add("w", "t")
            first = one.cluster.place("w", "n1")
            await eventually(lambda: one.cluster.state.jobs[first.job].actual is Actual.FAILED)

            def ready() -> bool:
                one.cluster.apply(ChangeSetting("timing", settings.encode(QUICK)))  # moves the clock
                return one.cluster.work("w").ready_at_ms <= one.cluster.state.now_ms

            await eventually(ready)
            one.cluster.place("w", "n1")
            await eventually(lambda: one.cluster.work("w").status is WorkStatus.COMPLETED)
            assert one.cluster.work("w").metrics == {"found": "half"}
            await eventually(lambda: not one.agent.attempts)
            assert not list((tmp_path / "checkpoints").iterdir())

    run(go)
