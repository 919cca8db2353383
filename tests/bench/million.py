"""A state with a million work items: freeze, snapshot, load, restart, memory, and `/status` under half load.

    python -m tests.bench.million [--items 1000000] [--ended 0.5] [--seconds 10] [--every 500]

The rows are made by hand, since it would take the law minutes to make them. The first part runs in a process of its
own; the second in a voter as `ringrift-node serve` starts it, on the snapshot that a voter in this process wrote.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import io
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
from msgspec.structs import replace

from ringrift_cluster.raft.conf import VoterConfig
from ringrift_cluster.raft.engine import RaftReplica
from statemachine import settings as st
from statemachine import snapshot
from statemachine.commands import AddWork, ChangeSetting, encode_command
from statemachine.entries import encode_entry
from statemachine.machine import Machine
from statemachine.rows import Actual, Artifact, Desired, Job, Row, Work, WorkStatus
from statemachine.values import Needs
from tests.bench.api_requests import one_connection
from tests.bench.law import processor
from tests.support.cluster import NodeProcess, eventually, free_ports
from tests.support.law import digest_of

Tables = dict[str, list[Row]]
NAME = "v1"
#: the most this bench waits for a voter to be ready
PATIENCE_S = 240.0


def rows(items: int, ended: float) -> Tables:
    """Work items, oldest first: those that are completed, each with its job and its file, then those that wait."""
    work: list[Row] = []
    jobs: list[Row] = []
    artifacts: list[Row] = []
    configs = [f"hex8_{n}p" for n in range(12)]
    peers = [f"node-{n}" for n in range(64)]
    for n in range(items):
        name, config, peer = f"selfplay-{n:08}", configs[n % 12], peers[n % 64]
        spec = AddWork(name, "selfplay", config, template="selfplay", params={"games": "50", "seed": str(n)})
        if n >= items * ended:
            work.append(Work(spec, WorkStatus.PENDING, 2 * n + 1, n, n))
            continue
        job, digest, counts = f"{name}.1", digest_of(name), {"games": 50, "positions": 2_000}
        done = Work(
            spec, WorkStatus.COMPLETED, 2 * n + 1, n, n, attempts=1, grants=1, job=job, finished_at_ms=n, counts=counts
        )
        work.append(done)
        row = Job(
            job=job,
            work=name,
            work_type="selfplay",
            config=config,
            peer=peer,
            incarnation=1,
            fence=n + 1,
            desired=Desired.STOP,
            actual=Actual.SUCCEEDED,
            granted_at_ms=n,
            lease_ms=60_000,
            renewed_at_ms=n,
            needs=spec.needs or Needs(),
            timeout_ms=3_600_000,
            finished_at_ms=n,
            counts=counts,
        )
        jobs.append(row)
        file = Artifact(digest, 81_920, "games", config, 2 * n + 2, n, {"games": 50}, (peer,), job, n + 1, "games.npz")
        artifacts.append(file)
    limits = st.Limits(pending_per_class=10**9)
    made = Machine()
    made.apply(1, 1, encode_entry(1, 0, [encode_command(ChangeSetting("limits", st.encode(limits)))]))
    return {
        "cluster": [replace(made.state.cluster, clock_ms=items, seq=2 * items + 2, fence=items + 1)],
        "settings": list(made.state.settings.values()),
        "work": work,
        "jobs": jobs,
        "artifacts": artifacts,
    }


def resident() -> float:
    return psutil.Process().memory_info().rss / 1e6


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    took, used = time.perf_counter() - wall, time.process_time() - cpu
    print(f"  {what:<42} {1e3 * took:>10.1f} ms {1e3 * used:>10.1f} ms CPU {resident():>8.0f} MB", flush=True)


def in_process(items: int, ended: float) -> None:
    machine = Machine()
    with timed("rows made"):
        tables = rows(items, ended)
    with timed("loaded"):
        machine.state.load(tables)
    del tables
    with timed("a full garbage collection"):
        gc.collect()
    for _ in range(3):
        with timed("freeze"):
            frozen = snapshot.freeze(machine)
        frozen.release()
    file = io.BytesIO()
    with timed("snapshot written"):
        snapshot.write(frozen, snapshot.header(frozen, "bench", (NAME,), index=1, term=1), file)
    print(f"  the snapshot has {file.tell() / 1e6:.0f} MB")
    del frozen, machine
    gc.collect()
    file.seek(0)
    with timed("snapshot read"):
        snapshot.read(file)


async def written(folder: Path, members: str, items: int, ended: float) -> None:
    """A voter's directory whose snapshot holds the rows."""
    raft = f"127.0.0.1:{members.partition('/')[2]}"
    replica = RaftReplica.start(VoterConfig(node_id=NAME, voters={NAME: raft}, data_dir=folder))
    try:
        while not replica.status().ready:
            await asyncio.sleep(0.05)
        await replica.propose([])
        await replica.read(lambda state: state.load(rows(items, ended)))
        await replica.propose([encode_command(ChangeSetting("limits", st.encode(st.Limits(pending_per_class=10**9))))])
        await replica.snapshot_file(0)
    finally:
        await replica.stop()


def metrics(node: NodeProcess) -> dict[str, float]:
    text = httpx.get(f"{node.url}/metrics", timeout=10.0).text
    found = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if name and not line.startswith("#"):
            found[name] = float(value)
    return found


def p(times: list[float], share: float) -> float:
    return 1e3 * sorted(times)[min(int(len(times) * share), len(times) - 1)]


class Adds:
    """Single adds, paced or as fast as they are answered."""

    def __init__(self) -> None:
        self.number = 0

    def body(self, _: int) -> bytes:
        self.number += 1
        return json.dumps({"work_id": f"b{self.number}", "work_type": "bench", "params": {"n": self.number}}).encode()


async def half_load(node: NodeProcess, seconds: float) -> None:
    adds = Adds()
    times: list[float] = []
    await asyncio.gather(
        *(one_connection(node.port, time.perf_counter() + 3.0, "/work/add", adds.body, times) for _ in range(64))
    )
    full = len(times) / 3.0
    print(f"  adds at full load: {full:.0f}/s, p99 {p(times, 0.99):.1f} ms")
    deadline = time.perf_counter() + seconds
    asked: list[float] = []
    late: list[float] = []

    offered = full / 2

    async def paced(every: float, request: Callable[[], bytes], times: list[float]) -> None:
        """Requests at even distances; one that is behind does not catch up, since that would be more than asked for."""
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        at = time.perf_counter()
        while time.perf_counter() < deadline:
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            sent = time.perf_counter()
            writer.write(request())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            times.append(time.perf_counter() - sent)
            at = max(at + every, time.perf_counter() - every)
        writer.close()

    def add() -> bytes:
        body = adds.body(0)
        head = f"POST /work/add HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        return head.encode() + b"\r\n\r\n" + body

    def status() -> bytes:
        return b"GET /status HTTP/1.1\r\nhost: x\r\n\r\n"

    await asyncio.gather(*(paced(16 / offered, add, late) for _ in range(16)), paced(0.02, status, asked))
    print(
        f"  {offered:.0f} adds/s offered, {len(late) / seconds:.0f}/s answered, add p99 {p(late, 0.99):.1f} ms; "
        f"/status {len(asked)} times: p50 {1e3 * statistics.median(asked):.1f} ms, p99 {p(asked, 0.99):.1f} ms, "
        f"worst {1e3 * max(asked):.1f} ms"
    )


def as_a_voter(items: int, ended: float, seconds: float, every: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        port, raft = free_ports(2)
        members = f"{NAME}=127.0.0.1:{port}/{raft}"
        asyncio.run(written(Path(folder), members, items, ended))
        size = sum(f.stat().st_size for f in Path(folder).rglob("*.snap")) / 1e6
        flags = ("--snapshot-every-entries", str(every)) if every else ()
        node = NodeProcess(NAME, members, port, Path(folder), "voter", 0, flags)
        began = time.perf_counter()
        node.start()
        assert node.process is not None
        try:
            eventually(lambda: node.get("/status")["ready"], "the voter to be ready", PATIENCE_S)
            took = time.perf_counter() - began
            process = psutil.Process(node.process.pid)
            cpu = process.cpu_times()
            status = node.get("/status")
            assert status["work_queue"]["total"] >= items, status["work_queue"]
            print(f"  restart to ready: {took:.1f} s ({cpu.user + cpu.system:.1f} s CPU), snapshot {size:.0f} MB")
            print(f"  RSS {process.memory_info().rss / 1e6:.0f} MB")
            asyncio.run(half_load(node, seconds))
            seen = metrics(node)
            shown = ("stall", "turn_max", "snapshot", "rss", "resident")
            for name in sorted(seen):
                if any(part in name for part in shown) and "bucket" not in name:
                    print(f"  {name} {seen[name]:g}")
            print(f"  RSS {process.memory_info().rss / 1e6:.0f} MB after snapshots under load")
        finally:
            node.process.kill()
            node.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--ended", type=float, default=0.5, help="share of the items that are completed")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--every", type=int, default=500, help="entries between snapshots; 0: the usual number")
    parser.add_argument("--part", choices=("process", "voter"))
    chosen = parser.parse_args()
    print(
        f"{processor()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; {chosen.items:,} items, "
        f"{chosen.ended:.0%} of them completed",
        flush=True,
    )
    for part, run in (
        ("process", lambda: in_process(chosen.items, chosen.ended)),
        ("voter", lambda: as_a_voter(chosen.items, chosen.ended, chosen.seconds, chosen.every)),
    ):
        if chosen.part in (None, part):
            print(f"in a {part}", flush=True)
            _apart(run)


def _apart(run: Callable[[], None]) -> None:
    """Run in a forked process, so that its memory is its own."""
    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit("a part of the bench failed")


if __name__ == "__main__":
    main()
