from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ringrift_cluster.feed import broadcast as module
from ringrift_cluster.feed import wire
from tests.support.desk import Desk, Words
from tests.support.following import eventually, run

BEAT_S = 0.02
#: no beat comes between
NEVER_S = 60.0


async def crowd(stack: AsyncExitStack, desk: Desk, count: int) -> list[Words]:
    """So many followers that have everything and stand together."""
    made = [await stack.enter_async_context(desk.listening()) for _ in range(count)]
    for words in made:
        await words.next()
    await eventually(lambda: len(desk.router._broadcast._together) == count)
    return made


def test_a_stream_begins_with_what_is_there_and_goes_on_with_what_comes(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path, beat_s=NEVER_S)
        desk.commit("w1", "w2")
        async with desk.listening() as words:
            first = await words.next()
            assert [f.index for f in first.frames] == [1, 2]
            desk.commit("w3")
            second = await words.next()
            assert [f.index for f in second.frames] == [3]
            assert second.standing.chain == desk.voter.machine.chain
            assert second.standing.clock_ms >= first.standing.clock_ms

    run(scenario())


def test_a_position_reads_the_same_alone_and_together(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        desk.commit(*(f"w{n}" for n in range(30)))
        async with desk.listening() as early, desk.listening(20, desk.chain_at(20)) as late:
            desk.commit(*(f"x{n}" for n in range(30)))
            assert await early.entries(60) == list(range(1, 61))
            assert await late.entries(40) == list(range(21, 61))

    run(scenario())


def test_a_burst_reaches_a_crowd_as_one_message_that_was_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path, beat_s=NEVER_S, each_s=0.01, moment_s=0.2)
        async with AsyncExitStack() as stack:
            followers = await crowd(stack, desk, 20)
            made: list[wire.Batch] = []

            def counting(batch: wire.Batch) -> bytes:
                made.append(batch)
                return message(batch)

            message = wire.message
            monkeypatch.setattr(wire, "message", counting)
            desk.commit("w1", "w2", "w3")
            assert {tuple(await words.entries(3)) for words in followers} == {(1, 2, 3)}
            assert len(made) <= 2

    run(scenario())


def test_few_are_told_at_once_and_a_crowd_after_its_moment(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path, beat_s=NEVER_S, each_s=0.001, moment_s=0.03)
        async with AsyncExitStack() as stack:
            await crowd(stack, desk, 3)
            desk.commit("w1")
            await eventually(lambda: desk.router._broadcast._index == 1)
            assert desk.router._broadcast._pause_s < 0.03
            await crowd(stack, desk, 60)
            desk.commit("w2")
            await eventually(lambda: desk.router._broadcast._index == 2)
            assert desk.router._broadcast._pause_s >= 0.03

    # The second crowd joins the first: both are counted.
    async def crowd(stack: AsyncExitStack, desk: Desk, count: int) -> None:
        for _ in range(count):
            await stack.enter_async_context(desk.listening(*_newest(desk)))
        at_least = desk.router.streams
        await eventually(lambda: len(desk.router._broadcast._together) == at_least)

    run(scenario())


def _newest(desk: Desk) -> tuple[int, str]:
    index = desk.voter.machine.index
    return (index, desk.chain_at(index)) if index else (0, "00" * 32)


def test_a_quiet_voter_says_every_beat_where_it_stands(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path, beat_s=BEAT_S)
        desk.commit("w1")
        async with desk.listening() as words:
            await words.next()
            desk.voter.pretend(contact_age_ms=2_500)
            told = await words.until(lambda batch: batch.standing.contact_age_ms == 2_500)
            assert (told.frames, told.standing.index, told.standing.commit) == ([], 1, 1)
            assert told.standing.chain == desk.voter.machine.chain

    run(scenario())


def test_an_index_without_an_entry_is_told_before_the_next_beat(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path, beat_s=NEVER_S)
        desk.commit("w1")
        async with AsyncExitStack() as stack:
            (words,) = await crowd(stack, desk, 1)
            status = desk.voter.status()
            desk.voter.status = lambda: replace(status, applied=2, commit=2)  # type: ignore[method-assign]
            desk.voter.window.wake()
            told = await words.next()
            assert (told.frames, told.standing.through) == ([], 2)

    run(scenario())


def test_a_follower_that_is_ahead_of_its_voter_is_told_so_until_the_voter_has_come_there(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk, other = Desk(tmp_path, beat_s=BEAT_S), Desk(tmp_path)
        for one in (desk, other):
            one.commit("w1")
        other.commit("w2", "w3")
        async with desk.listening(3, other.chain_at(3)) as words:
            for _ in range(3):
                told = await words.next()
                assert (told.frames, told.standing.index, told.standing.through, told.standing.commit) == ([], 3, 3, 1)
            desk.commit("w2", "w3", "w4")
            assert await words.entries(1) == [4]
        async with desk.listening(9, "11" * 32) as words:
            await words.next()
            # The others are not kept from anything by one that is ahead.
            async with desk.listening(4, desk.chain_at(4)) as others:
                await others.next()
                desk.commit("w5")
                assert await others.entries(1) == [5]

    run(scenario())


def test_one_that_is_ahead_and_of_another_history_is_let_go(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path, beat_s=BEAT_S)
        desk.commit("w1")
        async with desk.listening(2, "11" * 32) as words:
            await words.next()
            desk.commit("w2", "w3")
            assert all(not batch.frames for batch in await words.rest())

    run(scenario())


def test_a_slow_reader_goes_on_alone_and_gets_everything_while_nothing_piles_up_for_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path, keep=20_000)
        async with AsyncExitStack() as stack:
            slow, quick = await crowd(stack, desk, 2)
            count = 0
            while not slow.pipe.full:
                desk.commit(*(f"w{n}" for n in range(count, count + 500)))
                assert await quick.entries(500) == list(range(count + 1, count + 501))
                count += 500
            held = slow.pipe._unread
            desk.commit(*(f"x{n}" for n in range(1000)))
            assert len(await quick.entries(1000)) == 1000
            assert slow.pipe._unread <= held + 2 * wire.PIECE_BYTES
            assert await slow.entries(count + 1000) == list(range(1, count + 1001))
            # Having everything, it stands with the others again.
            await eventually(lambda: len(desk.router._broadcast._together) == 2)

    run(scenario())


def test_a_slow_reader_that_fell_out_of_the_window_is_ended(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path, keep=50)
        async with AsyncExitStack() as stack:
            slow, quick = await crowd(stack, desk, 2)
            count = 0
            while not slow.pipe.full:
                desk.commit(*(f"w{n}" for n in range(count, count + 50)))
                await quick.entries(50)
                count += 50
            for start in range(count, count + 500, 50):
                desk.commit(*(f"w{n}" for n in range(start, start + 50)))
                await quick.entries(50)
            got = [frame.index for batch in await slow.rest() for frame in batch.frames]
            assert got == list(range(1, len(got) + 1))
            assert len(got) < count + 500

    run(scenario())


@pytest.mark.parametrize("what", ["token", "time", "halted", "cluster", "history"])
def test_a_stream_ends_when_its_reason_to_go_on_is_over(tmp_path: Path, what: str) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path, beat_s=BEAT_S)
        desk.commit("w1")
        async with AsyncExitStack() as stack:
            chain = desk.chain_at(1)
            seconds = 0.1 if what == "time" else 60.0
            words = await stack.enter_async_context(_named(desk, chain, seconds))
            await words.next()
            match what:
                case "token":
                    desk.good = False
                case "halted":
                    desk.voter.pretend(halted="the disk is full")
                case "cluster":
                    desk.voter.pretend(cluster_id="newer")
                case "history":
                    # A snapshot took the place of what was there.
                    desk.voter.window.restart(500)
            assert all(not batch.frames for batch in await words.rest())
            await eventually(lambda: desk.router.streams == 0)
            assert not desk.router._broadcast._together

    run(scenario())


def _named(desk: Desk, chain: str, seconds: float) -> Any:
    desk.voter.pretend(cluster_id="memory")
    return desk.listening(1, chain, seconds, cluster="memory")


def test_one_that_hangs_up_is_forgotten(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path, beat_s=BEAT_S)
        async with desk.listening() as words:
            await words.next()
            async with desk.listening() as other:
                await other.next()
            await eventually(lambda: desk.router.streams == 1)
            desk.commit("w1")
            assert await words.entries(1) == [1]
        await eventually(lambda: desk.router.streams == 0 and not desk.router._broadcast._together)

    run(scenario())


def test_a_crowd_is_written_to_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(module, "_SLICE", 5)
        desk = Desk(tmp_path, beat_s=NEVER_S)
        async with AsyncExitStack() as stack:
            followers = await crowd(stack, desk, 23)
            desk.commit("w1")
            seen = set()
            while len(seen) < 3:
                seen.add(sum(bool(words.pipe._parts) for words in followers))
                await asyncio.sleep(0)
            assert {tuple(await words.entries(1)) for words in followers} == {(1,)}

    run(scenario())


def test_a_fault_of_the_writer_ends_the_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path, beat_s=BEAT_S)
        async with AsyncExitStack() as stack:
            (words,) = await crowd(stack, desk, 1)

            def fails(index: int, limit: int = 1000) -> Any:
                raise ZeroDivisionError

            monkeypatch.setattr(desk.voter, "feed_since", fails)
            assert all(not batch.frames for batch in await words.rest())

    run(scenario())
