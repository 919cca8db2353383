from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from ringrift_cluster.feed import wire
from ringrift_cluster.replica import Halted
from statemachine.snapshot import read
from tests.support.desk import Desk
from tests.support.following import eventually, run


def test_entries_after_a_position_come_in_order_with_their_chains(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        desk.commit("w1", "w2", "w3")
        batch = await desk.message()
        assert [f.index for f in batch.frames] == [1, 2, 3]
        assert batch.frames[-1].chain == batch.standing.chain == desk.voter.machine.chain
        standing = batch.standing
        assert (standing.index, standing.through, standing.commit, standing.leader_id) == (3, 3, 3, "a")
        assert [f.index for f in (await desk.message(2, desk.chain_at(2))).frames] == [3]
        assert (await desk.message(3, desk.chain_at(3))).frames == []

    run(scenario())


def test_a_message_is_cut_at_its_bytes_and_says_how_far_it_reaches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(wire, "PIECE_BYTES", 1)
        desk = Desk(tmp_path)
        desk.commit("w1", "w2", "w3")
        batch = await desk.message()
        assert [f.index for f in batch.frames] == [1]
        assert (batch.standing.through, batch.standing.commit) == (1, 3)

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
            for seconds in (0, 10):
                answer = await desk.ask(seconds=seconds, **params)  # type: ignore[arg-type]
                assert (answer.status_code, answer.json()["code"]) == (409, code)
                assert answer.headers["content-type"] == "application/problem+json"

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
        {"seconds": "nan"},
        {"seconds": "-1"},
        {"seconds": "7200"},
    ],
)
def test_a_question_that_makes_no_sense_is_refused(params: dict[str, str], tmp_path: Path) -> None:
    async def scenario() -> None:
        answer = await Desk(tmp_path).ask(**params)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid")

    run(scenario())


def test_followers_beyond_the_bound_are_sent_elsewhere(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path, most=2)
        desk.commit("w1")
        async with desk.listening(), desk.listening():
            refused = await desk.ask(seconds=10)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert refused.json()["code"] == "busy"
            # One message is no stream.
            assert len((await desk.message()).frames) == 1
        await eventually(lambda: desk.router.streams == 0)
        async with desk.listening() as words:
            assert (await words.next()).standing.commit == 1

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


def test_closing_lets_go_of_the_voter_and_of_everyone_who_listens(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        desk.commit("w1")
        async with desk.listening() as words, desk.listening() as others:
            await words.next()
            await others.next()
            desk.router.close()
            assert await words.rest() == []
            assert await others.rest() == []
            assert not desk.voter.window._subscribers
            # A stream that is asked for later is one message, and nothing subscribes again.
            async with desk.listening() as late:
                assert len((await late.next()).frames) == 1
                assert await late.rest() == []
        assert not desk.voter.window._subscribers
        assert desk.router.streams == 0

    run(scenario())
