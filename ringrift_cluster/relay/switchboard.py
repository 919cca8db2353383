"""A voter's end of the channels: who holds one here, and who waits for which answer. Runs on one event loop."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from msgspec import structs

from ringrift_cluster.relay.frames import BEAT, BEAT_S, SILENCE_S, Ask, BrokenFrame, Frames, Head, head_of, packed

#: requests that one node answers at a time
MOST_OPEN = 16
#: channels of one voter
MOST_CHANNELS = 4096
#: the head of an answer is waited for this long
HEAD_S = 10.0


class NoChannel(Exception):  # noqa: N818 - an answer
    """The node holds no channel to this voter: nothing was sent."""


class TooMany(Exception):  # noqa: N818 - an answer
    """A bound is reached: nothing was sent."""


class Unanswered(Exception):  # noqa: N818 - an answer
    """The request went out, and no answer (or half of one) came back."""


class Line:
    """One channel."""

    def __init__(self, node: str, since_s: float) -> None:
        self.node = node
        self.since_s = since_s
        #: requests sent down it
        self.asked = 0
        self.closed = False
        self._waiting: asyncio.Queue[bytes] = asyncio.Queue()

    def put(self, frame: bytes) -> None:
        """Raises TooMany."""
        if self._waiting.qsize() >= MOST_OPEN:
            raise TooMany(f"the channel of {self.node} takes no more requests now; come back later")
        self._waiting.put_nowait(frame)
        self.asked += 1

    def close(self) -> None:
        self.closed = True
        self._waiting.put_nowait(BEAT)

    async def next(self) -> bytes:
        """The next frame, a beat when there is none for a while."""
        try:
            async with asyncio.timeout(BEAT_S):
                return await self._waiting.get()
        except TimeoutError:
            return BEAT


class Answer:
    """An answer that comes in: the head is there, the body is read piece by piece, each when it is asked for.

    `pieces` yields empty ones as signs of life, and raises Unanswered or BrokenFrame when it breaks off.
    """

    def __init__(self, head: Head, pieces: AsyncGenerator[bytes, None], done: asyncio.Event) -> None:
        self.head = head
        self.pieces = pieces
        self._done = done

    def leave(self) -> None:
        """Nobody reads on, at its end or before it. To be called by whoever asked, always."""
        self._done.set()


class Expected:
    """An answer that somebody waits for."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.begun: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        #: the node has said that it works on it
        self.alive = False


class Switchboard:
    """Channels by node, and answers by the id of their request, which nobody but the asked node knows."""

    def __init__(self, new_id: Callable[[], str], clock: Callable[[], float] = time.monotonic) -> None:
        self._new_id = new_id
        self._clock = clock
        self.lines: dict[str, Line] = {}
        self._expected: dict[str, Expected] = {}
        #: requests under way, by node
        self.open: Counter[str] = Counter()
        self.asked = 0
        self._closing = False

    def numbers(self) -> dict[str, float]:
        """For the metrics."""
        return {
            "relay_channels": len(self.lines),
            "relay_requests_open": self.open.total(),
            "relay_requests_total": self.asked,
        }

    def close(self) -> None:
        """The voter leaves: every channel ends, and finds another voter."""
        self._closing = True
        for line in self.lines.values():
            line.close()

    # The channel

    def enter(self, node: str) -> Line:
        """A channel of a node; its older one, which it may have lost without our knowing, ends. Raises TooMany."""
        if node not in self.lines and len(self.lines) >= MOST_CHANNELS:
            raise TooMany(f"{MOST_CHANNELS} channels are open here; open it to another voter")
        line = Line(node, self._clock())
        if (older := self.lines.get(node)) is not None:
            older.close()
        self.lines[node] = line
        if self._closing:
            line.close()
        return line

    async def frames(self, line: Line) -> AsyncGenerator[bytes, None]:
        """What goes down a channel until it is closed."""
        # At once, so that the node knows it is held.
        yield BEAT
        while not line.closed:
            yield await line.next()

    def leave(self, line: Line) -> None:
        """The channel has ended."""
        line.closed = True
        if self.lines.get(line.node) is line:
            del self.lines[line.node]

    def age_s(self, line: Line) -> float:
        return self._clock() - line.since_s

    # Asking

    async def ask(self, node: str, ask: Ask) -> Answer:
        """Send a request down the node's channel; its answer once that has begun.

        Raises NoChannel, TooMany (nothing was sent), Unanswered.
        """
        line = self.lines.get(node)
        if line is None or line.closed:
            raise NoChannel(f"{node} holds no channel to this voter")
        if self.open[node] >= MOST_OPEN:
            raise TooMany(f"{node} is answering {MOST_OPEN} requests already; come back later")
        ask = structs.replace(ask, id=self._new_id())
        expected = Expected(node)
        answer: Answer | None = None
        line.put(packed(ask))
        self.asked += 1
        self._expected[ask.id] = expected
        self.open[node] += 1
        try:
            async with asyncio.timeout(HEAD_S):
                answer = await expected.begun
            return answer
        except TimeoutError:
            if not expected.alive:
                # Whatever it is that holds this channel, it does not answer. The node opens another one if it lives.
                line.close()
            raise Unanswered(f"{node} did not answer within {HEAD_S:g} s") from None
        finally:
            del self._expected[ask.id]
            if answer is None:
                self._forsake(node, expected.begun)

    def _forsake(self, node: str, begun: asyncio.Future[Answer]) -> None:
        """Nobody waits for that answer any more."""
        if begun.done() and not begun.cancelled() and begun.exception() is None:
            begun.result().leave()  # it began at the same moment
        else:
            begun.cancel()
            self._over(node)

    def _over(self, node: str) -> None:
        self.open[node] -= 1
        if not self.open[node]:
            del self.open[node]

    async def take(self, id: str, node: str, receive: Callable[[], Awaitable[Any]], still: Callable[[], bool]) -> bool:
        """An answer's own request; returns when whoever asked has read it or left. False: nobody waits for it.

        `node` is whom its token speaks for, empty for a token that speaks for any. `receive` gives the request's
        ASGI messages, `still` says whether the node's token is good.
        Raises Unanswered, BrokenFrame.
        """
        expected = self._expected.get(id)
        if expected is None or expected.begun.done() or (node and node != expected.node):
            return False
        begun = expected.begun
        pieces = _pieces(receive, still)
        try:
            head = await _head(pieces, expected)
        except (Unanswered, BrokenFrame) as error:
            if not begun.done():
                begun.set_exception(Unanswered(f"{expected.node} did not answer: {error}"))
            raise
        if head is None or begun.done():
            return False
        done = asyncio.Event()
        begun.set_result(Answer(head, pieces, done))
        try:
            await done.wait()
        finally:
            self._over(expected.node)
        return True


async def _head(pieces: AsyncGenerator[bytes, None], expected: Expected) -> Head | None:
    """The head, after any beats; None once nobody waits for it. Raises Unanswered, BrokenFrame."""
    async for payload in pieces:
        if payload:
            return head_of(payload)
        expected.alive = True
        if expected.begun.done():
            return None
    raise BrokenFrame("the answer ends before its head")


async def _pieces(receive: Callable[[], Awaitable[Any]], still: Callable[[], bool]) -> AsyncGenerator[bytes, None]:
    """The payloads of a body's frames, beats as empty ones. Raises Unanswered, BrokenFrame."""
    frames = Frames()
    while True:
        try:
            async with asyncio.timeout(SILENCE_S):
                message = await receive()
        except TimeoutError:
            raise Unanswered(f"it fell silent for {SILENCE_S:g} s") from None
        if message["type"] == "http.disconnect":
            raise Unanswered("its connection broke")
        if not still():
            raise Unanswered("its token is over")
        for payload in frames.feed(message.get("body", b"")):
            yield payload
        if not message.get("more_body", False):
            if frames.unfinished:
                raise BrokenFrame("the answer ends within a frame")
            return
