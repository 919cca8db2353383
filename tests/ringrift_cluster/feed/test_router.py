from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest

from ringrift_cluster.feed import FeedRouter, wire
from ringrift_cluster.feed.wire import Batch
from ringrift_cluster.replica import Halted
from statemachine.commands import AddWork, encode_command
from statemachine.snapshot import read
from tests.support.feeding import Voter

ZERO = "00" * 32


def item(name: str) -> bytes:
    return encode_command(AddWork(work=name, work_type="selfplay"))


class Desk:
    """A voter, its router, and somebody who asks."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.voter = Voter("a", directory, keep=options.pop("keep", 1000))
        self.router = FeedRouter(self.voter, **{"coalesce_s": 0.005, **options})
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.router), base_url="http://a")

    def commit(self, *names: str) -> None:
        for name in names:
            self.voter.commit([item(name)])

    async def ask(self, after: int = 0, chain: str = ZERO, **more: Any) -> httpx.Response:
        return await self.http.get("/feed/entries", params={"after": after, "chain": chain, **more})

    async def batch(self, after: int = 0, chain: str = ZERO, **more: Any) -> Batch:
        response = await self.ask(after, chain, **more)
        assert response.status_code == 200, response.text
        return wire.decode_batch(response.content)

    def chain_at(self, index: int) -> str:
        (found,) = [a for a in self.voter.window.since(index - 1) or [] if a.index == index]
        return found.chain.hex()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 20.0))


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5.0):
        while not holds():
            await asyncio.sleep(0.001)


def test_entries_after_a_position_come_in_order_with_their_chains(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        desk.commit("w1", "w2", "w3")
        batch = await desk.batch()
        assert [f.index for f in batch.frames] == [1, 2, 3]
        assert batch.frames[-1].chain == desk.voter.machine.chain
        assert (batch.standing.through, batch.standing.commit, batch.standing.leader_id) == (3, 3, "a")
        assert [f.index for f in (await desk.batch(2, desk.chain_at(2))).frames] == [3]
        assert (await desk.batch(3, desk.chain_at(3))).frames == []

    run(scenario())


def test_a_batch_is_cut_at_its_bytes_and_says_how_far_it_reaches(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        desk.commit("w1", "w2", "w3")
        batch = await desk.batch(max_bytes=1)
        assert [f.index for f in batch.frames] == [1]
        assert (batch.standing.through, batch.standing.commit) == (1, 3)

    run(scenario())


def test_a_poll_waits_for_the_next_entry_and_a_burst_leaves_as_one_batch(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path, coalesce_s=0.05)
        polls = [asyncio.create_task(desk.batch(wait=10)) for _ in range(20)]
        await eventually(lambda: desk.router.waiting == 20)
        desk.commit("w1")
        await asyncio.sleep(0)
        desk.commit("w2")
        answers = await asyncio.gather(*polls)
        assert {len(a.frames) for a in answers} == {2}
        assert all(a.standing.held_ms >= 0 for a in answers)

    run(scenario())


def test_one_batch_is_encoded_once_for_all_who_wait_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        made = []

        def counting(*fields: Any) -> wire.Frame:
            made.append(fields)
            return wire.Frame(*fields)

        monkeypatch.setattr("ringrift_cluster.feed.router.Frame", counting)
        desk = Desk(tmp_path)
        polls = [asyncio.create_task(desk.ask(wait=10)) for _ in range(20)]
        await eventually(lambda: desk.router.waiting == 20)
        desk.commit("w1")
        await asyncio.gather(*polls)
        assert len(made) == 1

    run(scenario())


def test_a_crowd_is_answered_some_at_a_time_and_nobody_twice(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        polls = [asyncio.create_task(desk.batch(wait=10)) for _ in range(100)]
        await eventually(lambda: desk.router.waiting == 100)
        desk.commit("w1")
        seen = []
        while not all(poll.done() for poll in polls):
            seen.append(desk.router.waiting)
            await asyncio.sleep(0)
        assert any(0 < waiting < 100 for waiting in seen)
        assert {len(poll.result().frames) for poll in polls} == {1}

    run(scenario())


def test_polls_that_end_without_news_leave_nothing_behind(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        await asyncio.gather(*(desk.batch(wait=0.02) for _ in range(20)))
        assert not desk.router._parked

    run(scenario())


def test_a_poll_without_news_ends_with_an_empty_batch(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        batch = await desk.batch(wait=0.05)
        assert (batch.frames, batch.standing.held_ms >= 50) == ([], True)
        assert desk.router.waiting == 0

    run(scenario())


def test_a_position_that_cannot_be_continued_is_refused_with_its_reason(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path, keep=2)
        desk.commit("w1", "w2", "w3", "w4")
        for params, code in (
            ({"after": 0}, wire.FELL_OUT),
            ({"after": 4}, wire.OTHER_HISTORY),
            ({"after": 4, "cluster": "another"}, wire.OTHER_CLUSTER),
        ):
            answer = await desk.ask(**params)  # type: ignore[arg-type]
            assert (answer.status_code, answer.json()["code"]) == (409, code)
            assert answer.headers["content-type"] == "application/problem+json"

    run(scenario())


def test_a_follower_that_is_ahead_of_this_voter_just_waits(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        desk.commit("w1")
        batch = await desk.batch(50, wait=0.02)
        assert (batch.frames, batch.standing.through, batch.standing.commit) == ([], 50, 1)

    run(scenario())


@pytest.mark.parametrize(
    "params",
    [
        {"after": "-1"},
        {"after": "1e3"},
        {"after": "x"},
        {"after": str(2**63)},
        {"chain": "zz"},
        {"chain": "00"},
        {"wait": "nan"},
        {"wait": "3600"},
        {"max_bytes": str(1 << 30)},
    ],
)
def test_a_question_that_makes_no_sense_is_refused(params: dict[str, str], tmp_path: Path) -> None:
    async def scenario() -> None:
        answer = await Desk(tmp_path).ask(**params)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid")

    run(scenario())


def test_more_waiting_polls_than_allowed_are_sent_elsewhere(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path, max_waiting=2)
        polls = [asyncio.create_task(desk.ask(wait=10)) for _ in range(2)]
        await eventually(lambda: desk.router.waiting == 2)
        refused = await desk.ask(wait=10)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        desk.commit("w1")
        assert [p.status_code for p in await asyncio.gather(*polls)] == [200, 200]

    run(scenario())


def test_a_snapshot_comes_whole_or_in_ranges_of_the_same_file(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        desk.commit("w1", "w2")
        whole = await desk.http.get("/feed/snapshot")
        head, machine = read(io.BytesIO(whole.content))
        assert machine.chain == desk.voter.machine.chain
        assert whole.headers["ringrift-cluster"] == head.cluster_id == "memory"
        assert (whole.headers["ringrift-index"], whole.headers["ringrift-term"]) == ("2", "1")
        assert whole.headers["ringrift-chain"] == machine.chain.hex()
        etag = whole.headers["etag"]
        part = await desk.http.get("/feed/snapshot", headers={"range": "bytes=10-", "if-range": etag})
        assert (part.status_code, part.content) == (206, whole.content[10:])
        desk.commit("w3")
        newer = await desk.http.get("/feed/snapshot", headers={"range": "bytes=10-", "if-range": etag})
        assert newer.status_code == 200
        assert newer.headers["etag"] != etag

    run(scenario())


def test_a_cluster_without_an_id_gives_no_snapshot_yet(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        desk.voter.pretend(cluster_id="")
        answer = await desk.http.get("/feed/snapshot")
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert desk.voter.snapshots == 0

    run(scenario())


def test_a_halted_voter_feeds_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        desk.voter.pretend(halted="the disk is full")
        answer = await desk.ask()
        assert (answer.status_code, answer.json()["detail"]) == (503, "the disk is full")

        async def halted(max_behind: int) -> Any:
            raise Halted("the disk is full")

        desk.voter.snapshot_file = halted  # type: ignore[method-assign]
        assert (await desk.http.get("/feed/snapshot")).json()["code"] == "halted"

    run(scenario())


def test_the_feed_is_read_only_and_small(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        assert (await desk.http.post("/feed/entries")).status_code == 405
        assert (await desk.http.get("/feed/other")).status_code == 404

    run(scenario())


def test_closing_lets_go_of_the_voter_and_of_everyone_who_waits(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        poll = asyncio.create_task(desk.batch(wait=20))
        await eventually(lambda: desk.router.waiting == 1)
        desk.router.close()
        async with asyncio.timeout(2.0):
            assert (await poll).frames == []
            # Nor does a poll that comes later wait, or subscribe again.
            assert (await desk.batch(wait=20)).frames == []
        assert not desk.voter.window._subscribers
        desk.commit("w1")
        assert len((await desk.batch()).frames) == 1

    run(scenario())
