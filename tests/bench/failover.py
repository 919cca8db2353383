"""Seconds without a successful write after the leader is killed, or only falls silent; ours and etcd's.

    python -m tests.bench failover

After the signal a write is tried at the survivors every 20 ms, each on a connection of its own, whatever the earlier
ones do; what is told is when the first one succeeded. Both run with their default times.
"""

from __future__ import annotations

import asyncio
import signal
import statistics
from collections.abc import Callable

import msgspec

from tests.bench import etcd
from tests.bench.cluster import item, voters
from tests.bench.sitting import Sitting
from tests.bench.wire import first_success, post
from tests.support.cluster import TestCluster, eventually

KILLS = 20
SILENCES = 5


def add_request() -> bytes:
    return post("/work/add", msgspec.json.encode(item()))


def _told(sitting: Sitting, name: str, times: list[float]) -> None:
    sitting.note(f"{name}.median_s", statistics.median(times))
    sitting.note(f"{name}.worst_s", max(times))
    shown = " ".join(f"{t:.2f}" for t in sorted(times))
    print(f"{name}: median {statistics.median(times):.2f} s, all {shown}", flush=True)


def _ours(cluster: TestCluster, number: signal.Signals) -> float:
    """One trial: signal the leader, wait for a write, heal."""
    for node in cluster.living():
        eventually(lambda node=node: node.get("/status")["ready"], f"{node.name} to be ready", 60.0)
    leader = cluster.leader()
    eventually(lambda: len(leader.get("/raft/state")["voters_heard"]) == 3, "all voters to be heard")
    ports = [n.port for n in cluster.living() if n is not leader]
    assert leader.process is not None
    leader.process.send_signal(number)
    took = asyncio.run(first_success(ports, add_request))
    if number is signal.SIGKILL:
        leader.process.wait()
        leader.start()
    else:
        leader.process.send_signal(signal.SIGCONT)
    return took


def _etcds(servers: etcd.EtcdCluster, number: signal.Signals) -> float:
    name = servers.leader()
    leader = servers.processes[name]
    ports = [port for n, port in servers.ports.items() if n != name]
    leader.send_signal(number)
    took = asyncio.run(first_success(ports, etcd.put_request))
    if number is signal.SIGKILL:
        leader.wait()
        servers.start(name)
    else:
        leader.send_signal(signal.SIGCONT)
    return took


def _trials(sitting: Sitting, system: str, kills: int, silences: int, trial: Callable[[signal.Signals], float]) -> None:
    _told(sitting, f"{system}.kill", [trial(signal.SIGKILL) for _ in range(kills)])
    _told(sitting, f"{system}.silent", [trial(signal.SIGSTOP) for _ in range(silences)])


def run(sitting: Sitting, kills: int = KILLS, silences: int = SILENCES) -> None:
    etcd.with_servers(sitting, lambda s: _trials(sitting, "etcd", kills, silences, lambda n: _etcds(s, n)))
    with voters() as cluster:
        _trials(sitting, "failover", kills, silences, lambda n: _ours(cluster, n))
