"""A voter process under kill -9, in the middle of its writes and snapshots."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from ringrift_cluster.raft.conf import Limits, VoterConfig
from ringrift_cluster.raft.engine import RaftReplica
from ringrift_cluster.raft.verify import verify
from ringrift_cluster.replica import Consistency
from tests.ringrift_cluster.raft.loopback import FAST, add, free_ports

LIMITS = Limits(snapshot_entries=15, tail_entries=5)


def config(directory: Path, port: int) -> VoterConfig:
    voters = {"a": f"127.0.0.1:{port}"}
    return VoterConfig(node_id="a", voters=voters, data_dir=directory, timing=FAST, limits=LIMITS)


async def work(directory: Path, port: int, life: int) -> None:
    """Say each command's name once it is acknowledged, for ever."""
    replica = RaftReplica.start(config(directory, port))

    async def client(number: int) -> None:
        for count in range(10**6):
            name = f"w{life}.{number}.{count}"
            await replica.propose([add(name)], timeout_s=30)
            print(name, flush=True)

    await asyncio.gather(*[client(i) for i in range(4)])


def test_what_was_acknowledged_before_a_kill_is_there_after_it(tmp_path):
    port = free_ports(1)[0]
    acknowledged: set[str] = set()
    for life in range(3):
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.ringrift_cluster.raft.test_kill", str(tmp_path), str(port), str(life)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        for _ in range(60):
            acknowledged.add(child.stdout.readline().strip())
        child.kill()
        acknowledged |= {line.strip() for line in child.stdout.read().splitlines(keepends=True) if line.endswith("\n")}
        child.stdout.close()
        child.wait()
        assert not verify(tmp_path).damages

    async def read() -> set[str]:
        replica = RaftReplica.start(config(tmp_path, port))
        seen = await replica.read(lambda state: set(state.work), consistency=Consistency.LINEARIZABLE)
        await replica.stop()
        return seen.value

    assert "" not in acknowledged
    assert len(acknowledged) >= 180
    assert acknowledged <= asyncio.run(read())


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
