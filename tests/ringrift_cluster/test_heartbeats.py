"""Heartbeats are gathered, proposed together, and acknowledged only once they are applied."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from ringrift_cluster.heartbeats import STALE_S, HeartbeatCollector
from ringrift_cluster.replica import NoLeader
from statemachine.commands import MAX_COMMAND_BYTES, JoinPeer, RecordHeartbeats, decode_command
from statemachine.errors import Code, Refused
from statemachine.values import Beat, Gpu, JobProgress, PeerFacts
from tests.support.memory_replica import MemoryReplica


async def joined(*names: str) -> MemoryReplica:
    replica = MemoryReplica()
    for name in names:
        replica.run(JoinPeer(name, 1, f"boot-{name}", "follower", f"http://{name}", PeerFacts(cpu_slots=1)))
    replica.proposed.clear()
    return replica


@contextlib.asynccontextmanager
async def running(collector: HeartbeatCollector) -> AsyncIterator[None]:
    task = asyncio.create_task(collector.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_beats_that_arrive_together_leave_as_one_command() -> None:
    async def story() -> None:
        replica = await joined("a", "b", "c")
        collector = HeartbeatCollector(replica, every_s=0.0)
        waiting = [asyncio.create_task(collector.record(Beat(name, 1))) for name in "abc"]
        await asyncio.sleep(0)
        async with running(collector):
            indexes = await asyncio.gather(*waiting)
        assert len(set(indexes)) == 1
        (command,) = [decode_command(data) for data in replica.proposed]
        assert isinstance(command, RecordHeartbeats)
        assert sorted(beat.peer for beat in command.beats) == ["a", "b", "c"]

    asyncio.run(story())


def test_a_newer_beat_of_one_peer_replaces_the_one_that_waits_and_answers_both() -> None:
    async def story() -> None:
        replica = await joined("a")
        collector = HeartbeatCollector(replica, every_s=0.0)
        facts = PeerFacts(cpu_slots=3)
        first = asyncio.create_task(collector.record(Beat("a", 1, facts)))
        await asyncio.sleep(0)
        second = asyncio.create_task(collector.record(Beat("a", 1, None, (JobProgress("j", 1, {"games": 5}),))))
        await asyncio.sleep(0)
        async with running(collector):
            assert await first == await second
        (command,) = [decode_command(data) for data in replica.proposed]
        assert isinstance(command, RecordHeartbeats)
        (beat,) = command.beats
        assert beat.facts == facts, "the facts of the older beat are not lost"
        assert beat.progress[0].counts == {"games": 5}

    asyncio.run(story())


@pytest.mark.parametrize(
    "beat",
    [
        Beat("b", 1, PeerFacts(gpus=(Gpu("not a name"),))),
        Beat("b", 1, None, (JobProgress("j", 1, {"games": 2**41}),)),
        Beat("b", 1, None, (JobProgress("j", 1, {"games": 2**65}),)),
        Beat("b", 1, PeerFacts(hostname="\udcff")),
    ],
    ids=["a GPU of no name", "a count that is too large", "a number that no wire has", "text that is no UTF-8"],
)
def test_a_beat_that_cannot_enter_the_log_is_refused_and_takes_no_other_with_it(beat: Beat) -> None:
    async def story() -> None:
        replica = await joined("a", "b")
        collector = HeartbeatCollector(replica, every_s=0.0)
        good = asyncio.create_task(collector.record(Beat("a", 1)))
        bad = asyncio.create_task(collector.record(beat))
        await asyncio.sleep(0)
        async with running(collector):
            assert await good > 0
            with pytest.raises(Refused, match="'b' cannot enter the log") as refused:
                await bad
        assert refused.value.code == Code.INVALID

    asyncio.run(story())


@pytest.mark.parametrize(
    ("beat", "code"), [(Beat("stranger", 1), Code.NOT_FOUND), (Beat("a", 0), Code.STALE_INCARNATION)]
)
def test_a_beat_the_law_does_not_take_is_refused_alone(beat: Beat, code: Code) -> None:
    async def story() -> None:
        replica = await joined("a", "b")
        collector = HeartbeatCollector(replica, every_s=0.0)
        refused = asyncio.create_task(collector.record(beat))
        taken = asyncio.create_task(collector.record(Beat("b", 1)))
        await asyncio.sleep(0)
        async with running(collector):
            await taken
            with pytest.raises(Refused) as caught:
                await refused
        assert caught.value.code == code

    asyncio.run(story())


def test_a_beat_that_waited_too_long_for_its_turn_is_dropped_and_said_so() -> None:
    async def story() -> None:
        now = 0.0
        replica = await joined("a")
        collector = HeartbeatCollector(replica, every_s=0.0, monotonic_s=lambda: now)
        late = asyncio.create_task(collector.record(Beat("a", 1)))
        await asyncio.sleep(0)
        now = STALE_S + 1
        async with running(collector):
            with pytest.raises(NoLeader, match="heartbeat of 'a'"):
                await late
        assert replica.proposed == []

    asyncio.run(story())


def test_without_a_leader_nobody_is_acknowledged() -> None:
    async def story() -> None:
        replica = await joined("a")
        replica.refusing = NoLeader("nobody leads")
        collector = HeartbeatCollector(replica, every_s=0.0)
        async with running(collector):
            with pytest.raises(NoLeader):
                await collector.record(Beat("a", 1))

    asyncio.run(story())


def test_heartbeats_full_of_progress_never_make_a_command_that_is_too_large() -> None:
    async def story() -> None:
        names = [f"n{n}" for n in range(120)]
        replica = await joined(*names)
        collector = HeartbeatCollector(replica, every_s=0.0)
        told = tuple(JobProgress(f"selfplay-hex8_2p-{k}.1", k, {"games": k, "positions": 9 * k}) for k in range(64))
        waiting = [asyncio.create_task(collector.record(Beat(name, 1, None, told))) for name in names]
        await asyncio.sleep(0)
        async with running(collector):
            await asyncio.gather(*waiting)
        assert len(replica.proposed) > 1
        assert all(len(data) < MAX_COMMAND_BYTES for data in replica.proposed)

    asyncio.run(story())
