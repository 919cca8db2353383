"""Items a second of CPU time of `Machine.apply`: the ordinary life of an item, in batches.

python -m tests.bench.law [--items 20000] [--batch 100]
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from statemachine.commands import (
    AddWork,
    ClaimWork,
    Command,
    CompleteJob,
    RecordHeartbeats,
    RenewJobs,
    ReportJob,
    encode_command,
)
from statemachine.entries import encode_entry
from statemachine.errors import Done
from statemachine.machine import Machine
from statemachine.values import Beat, JobProgress, Output
from tests.support.law import digest_of, node

#: items of one class, so that no queue reaches its bound
CLASS = 500


class Bench:
    """A machine, and the time that its entries took."""

    def __init__(self, items: int, batch: int) -> None:
        self.machine = Machine()
        self.items = items
        self.batch = batch
        self.index = 0

    def run(self, name: str, make: Callable[[int], Command], each: int = 1) -> None:
        """Apply a command for each so many items, a batch of items an entry, and print a row of the table."""
        entries = []
        for start in range(0, self.items, self.batch):
            commands = [encode_command(make(n)) for n in range(start, min(start + self.batch, self.items), each)]
            entries.append(encode_entry(1, self.index + len(entries), commands))
        times = []
        for entry in entries:
            self.index += 1
            at = time.thread_time()
            results = self.machine.apply(self.index, 1, entry)
            times.append(time.thread_time() - at)
            assert all(isinstance(r, Done) for r in results), next(r for r in results if not isinstance(r, Done))
        size = sum(map(len, entries)) / self.items
        rate, middle = self.items / sum(times), self.batch / statistics.median(times)
        best = self.batch / sorted(times)[len(times) // 20]
        print(
            f"{name:<16} {rate:>10,.0f}/s {middle:>10,.0f}/s {best:>10,.0f}/s {1e3 * max(times):>8.2f} ms "
            f"{size:>6.0f} B {yardstick():>6.0f} ns"
        )


def yardstick() -> float:
    """Nanoseconds of one call of an empty Python function: how fast this machine is just now."""
    began = time.thread_time()
    for _ in range(100_000):
        _nothing()
    return 1e4 * (time.thread_time() - began)


def _nothing() -> None:
    return


def processor() -> str:
    try:
        with Path("/proc/cpuinfo").open() as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=100)
    chosen = parser.parse_args()
    print(f"{processor()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, batches of {chosen.batch}")
    print(f"{'command':<16} {'mean':>12} {'median':>12} {'best 5 %':>12} {'slowest':>11} {'size':>8} {'yard':>9}")
    bench = Bench(chosen.items, chosen.batch)
    jobs = bench.machine.state.jobs

    def fence(n: int) -> int:
        return jobs[f"item-{n}.1"].fence

    def result(n: int) -> CompleteJob:
        shard = Output("games.npz", digest_of(str(n)), 81_920, "games", {"games": 50})
        return CompleteJob(f"item-{n}.1", fence(n), {"games": 50, "positions": 1_900}, outputs=(shard,))

    def claim(n: int, limit: int = 1) -> ClaimWork:
        return ClaimWork(f"claim-{n}", f"worker{n % 50}", configs=(f"config{n // CLASS}",), limit=limit)

    def progress(n: int) -> JobProgress:
        return JobProgress(f"item-{n}.1", fence(n), {"games": 10}, {"games": 50})

    many = min(chosen.batch, 100)
    bench.run("AddWork", lambda n: AddWork(f"item-{n}", "selfplay", f"config{n // CLASS}", params={"seed": str(n)}))
    bench.run("ClaimWork", lambda n: claim(n, many), each=many)
    bench.run("ReportJob", lambda n: ReportJob(f"item-{n}.1", fence(n), "running"))
    bench.run("RenewJobs", lambda n: RenewJobs(tuple(progress(n + k) for k in range(many))), each=many)
    bench.run("CompleteJob", result)
    beats = tuple(f"node{n}" for n in range(many))
    bench.machine.apply(
        bench.index + 1, 1, encode_entry(1, bench.index, [encode_command(node(name)) for name in beats])
    )
    bench.index += 1
    bench.run("Heartbeats", lambda n: RecordHeartbeats(tuple(Beat(name, 1) for name in beats)), each=many)
    singles = Bench(chosen.items, chosen.batch)
    print("one item a command")
    singles.run("AddWork", lambda n: AddWork(f"item-{n}", "selfplay", f"config{n // CLASS}"))
    singles.run("ClaimWork", claim)
    jobs = singles.machine.state.jobs
    singles.run("first RenewJobs", lambda n: RenewJobs((progress(n),)))
    singles.run("RenewJobs", lambda n: RenewJobs((progress(n),)))


if __name__ == "__main__":
    main()
