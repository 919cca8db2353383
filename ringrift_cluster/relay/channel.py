"""A follower's end: one channel to the voter that it follows, and the answers to what comes down it."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

import httpx
import msgspec

from ringrift_cluster.problem import Problem, read_problem
from ringrift_cluster.relay.frames import (
    BEAT,
    BEAT_S,
    SILENCE_S,
    Ask,
    BrokenFrame,
    Frames,
    Head,
    ask_of,
    framed,
    packed,
)
from ringrift_cluster.relay.inside import Asgi, Broken, Inside
from ringrift_cluster.relay.passages import passage
from ringrift_cluster.relay.switchboard import MOST_OPEN
from ringrift_cluster.replica import Replica

log = logging.getLogger("ringrift.relay")

CONNECT_S = 3.0
#: an answer that its reader does not take for so long is given up
UNREAD_S = 60.0
#: between attempts, jittered
PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
#: a voter that failed is not gone back to for so long
AVOID_S = 10.0
#: a node that leaves waits this long for answers that are nearly out
SETTLE_S = 1.0


class NotHeld(Exception):  # noqa: N818 - an answer
    """The voter does not hold a channel for this node; the text says why."""


class Channel:
    """Runs on the event loop of the node's HTTP face, which answers what comes down the channel."""

    def __init__(
        self,
        replica: Replica,
        voters: Callable[[], Mapping[str, str]],
        http: httpx.AsyncClient,
        app: Asgi,
        *,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`voters` maps node ids to base URLs, as known now; `app` is the node's own face."""
        self._replica = replica
        self._node = replica.status().node_id
        self._voters = voters
        self._http = http
        self._app = app
        self._rng = rng or random.Random()
        self._clock = clock
        self._failed_at: dict[str, float] = {}
        self._answers: set[asyncio.Task[None]] = set()
        #: the voter that holds it, empty while none does, and since when
        self.voter = ""
        self.since_s = 0.0
        self.opened = 0
        self.last_error = ""

    @property
    def open_for_s(self) -> float:
        return self._clock() - self.since_s if self.voter else 0.0

    @property
    def answering(self) -> int:
        return len(self._answers)

    def numbers(self) -> dict[str, float]:
        """For the metrics."""
        return {
            "relay_channel_open": bool(self.voter),
            "relay_channel_opened_total": self.opened,
            "relay_answers_open": len(self._answers),
        }

    async def run(self) -> None:
        """Keep a channel open, for ever."""
        failures = 0
        try:
            while True:
                voter, url = self._choose()
                opened, begun_s = self.opened, self._clock()
                try:
                    await self._hold(voter, url)
                    # At the first beat already, if there always is a better one: it must not spin.
                    pause_s = max(0.0, begun_s + PAUSE_S - self._clock())
                except (httpx.HTTPError, BrokenFrame, NotHeld) as error:
                    self._failed_at[voter] = self._clock()
                    self.last_error = f"voter {voter}: {str(error) or type(error).__name__}"
                    log.info("event=channel_lost voter=%s reason=%s", voter, error)
                    failures = 1 if self.opened > opened else failures + 1
                    pause_s = min(PAUSE_S * 2.0 ** min(failures - 1, 10), LONGEST_PAUSE_S)
                await asyncio.sleep(self._rng.uniform(0.5, 1.0) * pause_s)
        finally:
            for task in self._answers:
                task.cancel()

    async def settle(self) -> None:
        """Let answers that are nearly out get out."""
        if self._answers:
            await asyncio.wait(self._answers, timeout=SETTLE_S)

    def _choose(self) -> tuple[str, str]:
        """The voter that feeds this node, unless it failed; else the one whose failure is longest ago."""
        urls = self._voters()
        voter = self._better("", urls)
        if not voter:
            voter = min(urls, key=lambda one: (self._failed_at.get(one, 0.0), self._rng.random()))
        return voter, urls[voter]

    def _better(self, present: str, urls: Mapping[str, str]) -> str:
        """The voter that this node should rather have its channel to, if there is one.

        The feed leaves a voter that has lost its leader, and whoever asks for this node is not there either. What
        feeds this node may be no voter (any more), or go by another name: that one holds no channel.
        """
        feeding = next(iter(self._replica.status().voters_heard), "")
        failed_at = self._failed_at.get(feeding)
        if feeding == present or feeding not in urls:
            return ""
        return "" if failed_at is not None and self._clock() - failed_at < AVOID_S else feeding

    async def _hold(self, voter: str, url: str) -> None:
        """One channel; returns when another voter is the better one. Raises HTTPError, BrokenFrame, NotHeld."""
        timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
        plain = {"accept-encoding": "identity"}
        request = self._http.build_request(
            "GET", f"{url}/relay/channel", params={"node_id": self._node}, headers=plain, timeout=timeout
        )
        response = await self._http.send(request, stream=True)
        try:
            if response.status_code != httpx.codes.OK:
                said = read_problem(await anext(response.aiter_raw(64 * 1024), b""))
                raise NotHeld(said.detail or f"it answered {response.status_code}")
            frames = Frames()
            async for data in response.aiter_raw():
                if not self.voter:
                    self.voter, self.since_s, self.last_error = voter, self._clock(), ""
                    self.opened += 1
                    log.info("event=channel_open voter=%s", voter)
                for payload in frames.feed(data):
                    if payload:
                        self._begin(ask_of(payload), url)
                if better := self._better(voter, self._voters()):
                    log.info("event=channel_moves voter=%s to=%s", voter, better)
                    return
            raise NotHeld("it ended the channel")
        finally:
            self.voter = ""
            await response.aclose()

    def _begin(self, ask: Ask, url: str) -> None:
        present = len(self._answers)
        if present >= 2 * MOST_OPEN:
            log.warning("event=relayed_request_dropped path=%s open=%d", ask.path, present)
            return  # not even a refusal: no voter that counts sends so many
        if present >= MOST_OPEN:
            refusal = Problem("busy", f"{self._node} is answering {present} requests already; come back later", 429)
            answer = self._refuse(ask, url, refusal)
        elif passage(ask.method, ask.path) is None:
            # Of a newer release than this one.
            answer = self._refuse(ask, url, Problem("forbidden", f"{ask.path} is not passed on by {self._node}", 403))
        else:
            answer = self._answer(ask, url)
        task = asyncio.create_task(answer, name="relay-answer")
        self._answers.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._answers.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("event=relay_answer_failed", exc_info=error)

    async def _answer(self, ask: Ask, url: str) -> None:
        """Answer to the voter that asked, wherever the channel is by then."""
        async with Inside(self._app, ask) as inside, aclosing(_said(inside)) as frames:
            await self._send(ask, url, frames)

    async def _refuse(self, ask: Ask, url: str, problem: Problem) -> None:
        log.warning("event=relayed_request_refused method=%s path=%s code=%s", ask.method, ask.path, problem.code)
        head = Head(problem.status, "application/problem+json")
        await self._send(ask, url, packed(head) + framed(msgspec.json.encode(problem)))

    async def _send(self, ask: Ask, url: str, frames: AsyncGenerator[bytes, None] | bytes) -> None:
        try:
            answer = await self._http.post(
                f"{url}/relay/answers/{ask.id}",
                content=frames,
                headers={"content-type": "application/octet-stream"},
                timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S, write=UNREAD_S),
            )
        except (httpx.HTTPError, Broken) as error:
            log.info("event=relay_answer_broke path=%s reason=%s", ask.path, error)
            return
        if answer.status_code != httpx.codes.OK:
            log.info("event=relay_answer_unwanted path=%s status=%d", ask.path, answer.status_code)


async def _said(inside: Inside) -> AsyncGenerator[bytes, None]:
    """The frames of one answer, with beats while its head is not there yet. Raises Broken."""
    head: Head | None = None
    while head is None:
        try:
            async with asyncio.timeout(BEAT_S):
                head = await inside.head()
        except TimeoutError:
            yield BEAT
    yield packed(head)
    async with aclosing(inside.pieces()) as pieces:
        async for piece in pieces:
            yield framed(piece)
