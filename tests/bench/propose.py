"""Commands per second and latency of three voter processes on this machine, and failover after kill -9.

    python -m tests.bench.propose [--seconds 3] [--kills 10]

The load is made in the leader's own process, as its HTTP thread would.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from ringrift_cluster import interpreter
from ringrift_cluster.raft.conf import VoterConfig
from ringrift_cluster.raft.engine import RaftReplica
from ringrift_cluster.replica import ReplicaError, ReplicaStatus
from statemachine.commands import AddWork, encode_command
from tests.bench.sitting import Sitting, machine
from tests.ringrift_cluster.raft.loopback import free_ports

IN_FLIGHT = (1, 64, 512)


def command(number: int) -> bytes:
    """About 200 bytes; types vary so that no queue of one class fills up."""
    return encode_command(
        AddWork(work=f"w{number}", work_type=f"kind{number % 500}", params={"model": "x" * 100, "seed": str(number)})
    )


async def load(
    replica: RaftReplica, in_flight: int, batch: int, seconds: float, start: int
) -> tuple[float, list[float]]:
    """Commands per second and every latency in seconds."""
    latencies: list[float] = []
    number = start
    end = time.perf_counter() + seconds

    async def worker() -> None:
        nonlocal number
        while (begun := time.perf_counter()) < end:
            number += batch
            await replica.propose([command(number + i) for i in range(batch)])
            latencies.append(time.perf_counter() - begun)

    begun = time.perf_counter()
    await asyncio.gather(*[worker() for _ in range(in_flight)])
    return len(latencies) * batch / (time.perf_counter() - begun), latencies


def voter(config: VoterConfig, pipe: Connection) -> None:
    """One voter process, driven through a pipe."""

    interpreter.tune()

    async def serve() -> None:
        replica = await asyncio.to_thread(RaftReplica.start, config)
        pipe.send("up")
        start = int(time.time() * 1000) * 1000
        while True:
            match await asyncio.to_thread(pipe.recv):
                case "status":
                    pipe.send(replica.status())
                case "cpu":
                    pipe.send(time.process_time())
                case ("load", in_flight, batch, seconds):
                    start += 10_000_000
                    before = replica.counters.fsyncs, replica.counters.fsync_s
                    figures = await load(replica, in_flight, batch, seconds, start)
                    counters = replica.counters
                    fsyncs = counters.fsyncs - before[0]
                    pipe.send((*figures, fsyncs, (counters.fsync_s - before[1]) / max(fsyncs, 1)))
                case "propose":
                    start += 1
                    try:
                        await replica.propose([command(start)], timeout_s=5.0)
                        pipe.send(True)
                    except ReplicaError:
                        pipe.send(False)
                case "stop":
                    await replica.stop()
                    pipe.send(replica.counters)
                    return

    asyncio.run(serve())


class Load(NamedTuple):
    """What one load showed; the CPU seconds are for one command, the load's own making of it included."""

    rate: float
    latencies: list[float]
    fsyncs_per_s: float
    fsync_s: float
    leader_cpu_s: float
    voter_cpu_s: float

    @property
    def cpu(self) -> str:
        return f"{self.leader_cpu_s * 1e6:.0f}+{self.voter_cpu_s * 1e6:.0f}"


class Cluster:
    def __init__(self, directory: Path) -> None:
        self._context = multiprocessing.get_context("spawn")
        voters = {n: f"127.0.0.1:{p}" for n, p in zip("abc", free_ports(3), strict=True)}
        self.configs = {n: VoterConfig(n, voters, directory / n, secret=b"bench") for n in voters}
        self.processes: dict[str, tuple[multiprocessing.process.BaseProcess, Connection]] = {}

    def start(self, name: str) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=voter, args=(self.configs[name], theirs), daemon=True)
        process.start()
        assert ours.recv() == "up"
        self.processes[name] = process, ours

    def ask(self, name: str, question: object) -> object:
        pipe = self.processes[name][1]
        pipe.send(question)
        return pipe.recv()

    def load(self, in_flight: int, batch: int, seconds: float) -> Load:
        """A closed loop in the leader's process, after a short one to warm up."""
        leader = self.leader()
        self.ask(leader, ("load", in_flight, batch, 0.5))
        before = {name: self.ask(name, "cpu") for name in self.processes}
        rate, latencies, fsyncs, fsync_s = self.ask(leader, ("load", in_flight, batch, seconds))  # type: ignore[misc]
        commands = max(len(latencies) * batch, 1)
        took = {name: (self.ask(name, "cpu") - before[name]) / commands for name in before}  # type: ignore[operator]
        return Load(rate, latencies, fsyncs / seconds, fsync_s, took.pop(leader), max(took.values()))

    def leader(self) -> str:
        """Who leads, once everyone is ready and connected to everyone."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            states = [self.ask(name, "status") for name in self.processes]
            if all(isinstance(s, ReplicaStatus) and s.ready and len(s.voters_heard) == 3 for s in states):
                return next(s.node_id for s in states if isinstance(s, ReplicaStatus) and s.role == "leader")
            time.sleep(0.05)  # between two looks, up to the deadline
        raise TimeoutError("no leader")

    def kill(self, name: str) -> None:
        process, pipe = self.processes.pop(name)
        process.kill()
        process.join()
        pipe.close()


def run(sitting: Sitting, seconds: float = 4.0) -> None:
    """Closed loops of single commands in the leader's process, and of batches."""
    with tempfile.TemporaryDirectory() as directory:
        cluster = Cluster(Path(directory))
        try:
            for name in "abc":
                cluster.start(name)
            for in_flight in IN_FLIGHT:
                seen = cluster.load(in_flight, 1, seconds)
                sitting.load("propose", in_flight, seconds, seen.latencies)
                print(
                    f"  {seen.fsyncs_per_s:.0f} fsyncs/s of {seen.fsync_s * 1000:.2f} ms, "
                    f"CPU {seen.cpu} us each at the leader and at another voter"
                )
        finally:
            for name in list(cluster.processes):
                cluster.kill(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--dir", type=Path, help="where the voters keep their files")
    args = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(dir=args.dir) as directory:
        cluster = Cluster(Path(directory))
        for name in "abc":
            cluster.start(name)
        print(
            f"{'in flight':>9} {'batch':>6} {'commands/s':>11} {'p50 ms':>8} {'p99 ms':>8} "
            f"{'fsyncs/s':>9} {'fsync ms':>9} {'CPU us':>14}"
        )
        for in_flight, batch in [*((n, 1) for n in IN_FLIGHT), (64, 100)]:
            seen = cluster.load(in_flight, batch, args.seconds)
            times = seen.latencies
            cuts = statistics.quantiles(times, n=100) if len(times) > 1 else [0.0] * 99
            print(
                f"{in_flight:>9} {batch:>6} {seen.rate:>11.0f} {cuts[49] * 1000:>8.2f} {cuts[98] * 1000:>8.2f} "
                f"{seen.fsyncs_per_s:>9.0f} {seen.fsync_s * 1000:>9.2f} {seen.cpu:>14}"
            )
        times = []
        for _ in range(args.kills):
            gone = cluster.leader()
            survivor = next(n for n in cluster.processes if n != gone)
            cluster.ask(survivor, "propose")
            cluster.kill(gone)
            begun = time.perf_counter()
            while not cluster.ask(survivor, "propose"):
                pass
            times.append(time.perf_counter() - begun)
            cluster.start(gone)
        if times:
            print(
                f"failover after kill -9, s: median {statistics.median(times):.2f}, "
                f"all {' '.join(f'{t:.2f}' for t in sorted(times))}"
            )
        for name in list(cluster.processes):
            counters = cluster.ask(name, "stop")
            print(
                f"{name}: longest turn {counters.turn_max_s * 1000:.0f} ms, "  # type: ignore[attr-defined]
                f"timer at most {counters.stall_max_s * 1000:.0f} ms late"
            )  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
