"""A voter's end of the channels, with nodes that answer, fall silent, lie, and leave."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ringrift_cluster.relay import switchboard as sb
from ringrift_cluster.relay.frames import BEAT, Ask, BrokenFrame, Frames, Head, Vouched, ask_of, framed, packed
from ringrift_cluster.relay.switchboard import NoChannel, Switchboard, TooMany, Unanswered
from statemachine.values import Scope

pytestmark = pytest.mark.anyio

ASK = Ask("0", "GET", "/health", "", b"", Vouched("me", Scope.READ))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Switchboard:
    numbers = itertools.count(1)
    return Switchboard(lambda: f"{next(numbers):x}")


class Node:
    """A follower by hand: its channel, and the body of each answer as ASGI messages."""

    def __init__(self, board: Switchboard, name: str = "n1") -> None:
        self.board = board
        self.line = board.enter(name)
        self._frames = board.frames(self.line)
        self.body: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def asked(self) -> Ask:
        async for frame in self._frames:
            for payload in Frames().feed(frame):
                if payload:
                    return ask_of(payload)
        raise AssertionError("the channel ended")

    def says(self, data: bytes, more: bool = True) -> None:
        self.body.put_nowait({"type": "http.request", "body": data, "more_body": more})

    def vanishes(self) -> None:
        self.body.put_nowait({"type": "http.disconnect"})

    async def take(self, id: str, peer: str = "n1", good: bool = True) -> bool:
        return await self.board.take(id, peer, self.body.get, lambda: good)


async def collected(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


async def test_an_answer_comes_back_to_whoever_asked(board: Switchboard) -> None:
    node = Node(board)
    asking = asyncio.create_task(board.ask("n1", ASK))
    ask = await node.asked()
    taking = asyncio.create_task(node.take(ask.id))
    node.says(packed(Head(200, "text/plain")) + framed(b"he") + BEAT)
    answer = await asking
    assert answer.head == Head(200, "text/plain")
    assert board.numbers() == {"relay_channels": 1, "relay_requests_open": 1, "relay_requests_total": 1}
    node.says(framed(b"llo"), more=False)
    assert await collected(answer.pieces) == b"hello"
    assert not taking.done()
    answer.leave()
    assert await taking is True
    assert board.numbers()["relay_requests_open"] == 0


async def test_a_caller_that_leaves_ends_the_answer_of_the_node(board: Switchboard) -> None:
    node = Node(board)
    asking = asyncio.create_task(board.ask("n1", ASK))
    ask = await node.asked()
    taking = asyncio.create_task(node.take(ask.id))
    node.says(packed(Head(200, "text/plain")))
    (await asking).leave()
    assert await asyncio.wait_for(taking, 5) is True
    assert not board.open


async def test_a_caller_that_leaves_before_the_answer_leaves_nothing_behind(board: Switchboard) -> None:
    node = Node(board)
    asking = asyncio.create_task(board.ask("n1", ASK))
    ask = await node.asked()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert await node.take(ask.id) is False, "nobody waits for it any more"
    assert not board.open


async def test_without_a_channel_nothing_is_sent(board: Switchboard) -> None:
    with pytest.raises(NoChannel):
        await board.ask("n1", ASK)
    node = Node(board)
    board.leave(node.line)
    with pytest.raises(NoChannel):
        await board.ask("n1", ASK)


async def test_a_second_channel_of_a_node_takes_the_place_of_the_first(board: Switchboard) -> None:
    first = Node(board)
    second = Node(board)
    assert [frame async for frame in first._frames] == [BEAT], "the first one ends"
    board.leave(first.line)
    assert board.lines == {"n1": second.line}


async def test_a_node_is_asked_for_so_many_answers_at_a_time_and_no_more(board: Switchboard) -> None:
    Node(board)
    asking = [asyncio.create_task(board.ask("n1", ASK)) for _ in range(sb.MOST_OPEN)]
    await asyncio.sleep(0)
    with pytest.raises(TooMany, match="come back later"):
        await board.ask("n1", ASK)
    Node(board, "n2")
    assert board.open["n2"] == 0, "its neighbour is not held up"
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)
    assert not board.open


async def test_a_voter_holds_so_many_channels_and_no_more(board: Switchboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sb, "MOST_CHANNELS", 1)
    Node(board)
    with pytest.raises(TooMany):
        Node(board, "n2")
    Node(board)


async def test_a_node_that_does_not_answer_loses_its_channel(
    board: Switchboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sb, "HEAD_S", 0.01)
    node = Node(board)
    with pytest.raises(Unanswered, match="did not answer"):
        await board.ask("n1", ASK)
    assert node.line.closed
    assert not board.open


async def test_a_node_that_works_on_its_answer_keeps_its_channel(
    board: Switchboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sb, "HEAD_S", 0.2)
    node = Node(board)
    asking = asyncio.create_task(board.ask("n1", ASK))
    ask = await node.asked()
    taking = asyncio.create_task(node.take(ask.id))
    node.says(BEAT)
    with pytest.raises(Unanswered, match="did not answer"):
        await asking
    assert not node.line.closed
    assert not board.open
    node.says(BEAT)
    assert await asyncio.wait_for(taking, 5) is False, "it need not work on: nobody waits"


async def test_a_head_may_come_after_beats(board: Switchboard) -> None:
    node = Node(board)
    asking = asyncio.create_task(board.ask("n1", ASK))
    ask = await node.asked()
    taking = asyncio.create_task(node.take(ask.id))
    node.says(BEAT + BEAT)
    node.says(BEAT + packed(Head(200, "text/plain")) + framed(b"late"), more=False)
    answer = await asking
    assert await collected(answer.pieces) == b"late"
    answer.leave()
    assert await taking is True


async def test_an_answer_is_taken_from_the_asked_node_alone_and_once(board: Switchboard) -> None:
    node = Node(board)
    asking = asyncio.create_task(board.ask("n1", ASK))
    ask = await node.asked()
    assert await node.take(ask.id, "n2") is False
    assert await node.take("ffff") is False
    taking = asyncio.create_task(node.take(ask.id))
    node.says(packed(Head(200, "text/plain")), more=False)
    answer = await asking
    assert await node.take(ask.id) is False, "it is answered already"
    answer.leave()
    await taking


@pytest.mark.parametrize("hostile", [b"\xff" * 8, framed(b"garbage"), packed(Head(200, "text/plain"))[:-1]])
async def test_a_head_that_cannot_be_read_is_no_answer(board: Switchboard, hostile: bytes) -> None:
    node = Node(board)
    asking = asyncio.create_task(board.ask("n1", ASK))
    ask = await node.asked()
    node.says(hostile, more=False)
    with pytest.raises(BrokenFrame):
        await node.take(ask.id)
    with pytest.raises(Unanswered):
        await asking
    assert not board.open


@pytest.mark.parametrize("end", ["vanishes", "falls silent", "is revoked", "ends within a frame", "sends no frame"])
async def test_an_answer_that_breaks_off_does_not_look_whole(
    board: Switchboard, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(board)
    asking = asyncio.create_task(board.ask("n1", ASK))
    ask = await node.asked()
    good = True
    taking = asyncio.create_task(board.take(ask.id, "n1", node.body.get, lambda: good))
    node.says(packed(Head(200, "text/plain")) + framed(b"half"))
    answer = await asking
    monkeypatch.setattr(sb, "SILENCE_S", 0.01)
    match end:
        case "vanishes":
            node.vanishes()
        case "is revoked":
            good = False
            node.says(framed(b"more"))
        case "ends within a frame":
            node.says(framed(b"more")[:-1], more=False)
        case "sends no frame":
            node.says(b"\xff\xff\xff\xff")
    assert await anext(answer.pieces) == b"half"
    with pytest.raises((Unanswered, BrokenFrame)):
        await collected(answer.pieces)
    answer.leave()
    await taking
    assert not board.open


async def test_a_voter_that_leaves_ends_its_channels(board: Switchboard) -> None:
    node = Node(board)
    board.close()
    assert [frame async for frame in node._frames] == [BEAT]
    late = Node(board, "n2")
    assert [frame async for frame in late._frames] == [BEAT]
