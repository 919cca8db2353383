"""What the signs of life of 10,000 peers cost three voters, one from each peer every 15 s.

    python -m tests.bench heartbeats

An answer comes once a heartbeat was applied, up to a second later, so many connections wait at any moment.
"""

from __future__ import annotations

import asyncio
import threading

from ringrift_cluster.feed import wire
from statemachine.commands import JoinPeer
from statemachine.values import Beat, PeerFacts
from tests.bench.cluster import take_stalls, voters
from tests.bench.feed import cpu_percent
from tests.bench.sitting import Sitting
from tests.bench.wire import parsed, post

PEERS = 10_000
EVERY_S = 15.0
CONNECTIONS = 1_200


async def beat(ports: list[int], seconds: float, peers: int) -> tuple[int, int]:
    """Send every peer's heartbeats on their schedule; how many were taken, and how many were due."""
    loop = asyncio.get_running_loop()
    per_s = peers / EVERY_S
    began = loop.time() + 0.2
    taken = 0
    numbers = iter(range(int(seconds * per_s)))

    async def sender(port: int) -> None:
        nonlocal taken
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in numbers:
            await asyncio.sleep(max(0.0, began + number / per_s - loop.time()))
            body = wire.encode(Beat(peer=f"peer{number % peers}", incarnation=1))
            writer.write(post(wire.HEARTBEAT, body, wire.MSGPACK))
            buffer = b""
            while (answer := parsed(buffer)) is None:
                chunk = await reader.read(4096)
                assert chunk, "a voter closed a connection"
                buffer += chunk
            assert answer[0] == 200, answer
            taken += 1
        writer.close()

    connections = min(CONNECTIONS, 2 * int(per_s) + 3)
    await asyncio.gather(*(sender(ports[n % len(ports)]) for n in range(connections)))
    return taken, int(seconds * per_s)


def run(sitting: Sitting, seconds: float = 15.0, peers: int = PEERS) -> None:
    with voters() as cluster:
        leader, facts = cluster.leader(), PeerFacts()
        for start in range(0, peers, 250):
            leader.propose(
                *(
                    JoinPeer(peer=f"peer{n}", incarnation=1, boot_id="b", role="follower", address="", facts=facts)
                    for n in range(start, min(start + 250, peers))
                )
            )
        ports = [node.port for node in cluster.living()]
        outcome: list[tuple[int, int]] = []
        load = threading.Thread(target=lambda: outcome.append(asyncio.run(beat(ports, seconds, peers))))
        load.start()
        used = cpu_percent(cluster, seconds)
        load.join()
        assert outcome, "the heartbeats failed"
        sitting.note("heartbeats.cpu_percent", max(used.values()))
        shown = " ".join(f"{name} {percent:.0f}" for name, percent in used.items())
        print(f"heartbeats: {outcome[0][0]} of {outcome[0][1]} taken; per cent of a core: {shown}")
        take_stalls(sitting, cluster)
