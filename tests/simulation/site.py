"""The HTTP doors of one simulated voter: the feed, proposals and heartbeats."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import msgspec

from ringrift_cluster import replica as rp
from ringrift_cluster.feed import wire
from ringrift_cluster.feed.router import FeedRouter
from ringrift_cluster.heartbeats import HeartbeatCollector
from ringrift_cluster.problem import Problem
from ringrift_cluster.raft.engine import RaftReplica
from statemachine.errors import Refused
from statemachine.values import Beat
from tests.simulation.http import Answer, run_asgi
from tests.simulation.loop import Clock, VirtualLoop
from tests.simulation.pipe import Pipe

_CODES: dict[type[rp.ReplicaError], tuple[int, str]] = {
    rp.NoLeader: (503, "no_leader"),
    rp.Busy: (429, "busy"),
    rp.TooLarge: (413, "too_large"),
    rp.OutcomeUnknown: (504, "outcome_unknown"),
    rp.Stale: (503, "stale"),
    rp.Halted: (503, "halted"),
}
_commands = msgspec.msgpack.Decoder(list[bytes]).decode
_beat = msgspec.msgpack.Decoder(Beat).decode
#: entries of so long leave for the followers as one message, be there one follower or more
MOMENT_S = 0.12


class Site:
    """What a voter's process answers over HTTP while it lives."""

    def __init__(self, loop: VirtualLoop, clock: Clock, replica: RaftReplica) -> None:
        loop.enter()
        self._loop = loop
        #: requests that wait for their answer
        self._open: dict[int, Callable[[Answer | None], None]] = {}
        #: answers that go on
        self._streams: dict[int, Pipe] = {}
        self._requests = 0
        self._replica = replica
        self._feed = FeedRouter(replica, each_s=MOMENT_S, moment_s=MOMENT_S, clock=clock)
        self.beats = HeartbeatCollector(replica, every_s=0.1, monotonic_s=clock)

    def serve(self, scope: dict[str, Any], body: bytes, reply: Callable[[Answer | None], None]) -> None:
        self._requests += 1
        number = self._requests
        self._open[number] = reply

        async def respond() -> None:
            answer = await self._respond(scope, body, begin)
            if answer is None:
                del self._streams[number]
            elif self._open.pop(number, None) is not None:
                reply(answer)

        def begin(answer: Answer) -> None:
            assert answer.pipe is not None
            self._streams[number] = answer.pipe
            if self._open.pop(number, None) is not None:
                reply(answer)

        self._loop.create_task(respond())

    def reset(self) -> None:
        """The process ended: its connections break."""
        waiting, self._open = self._open, {}
        for reply in waiting.values():
            reply(None)
        for pipe in self._streams.values():
            pipe.break_off()

    async def _respond(self, scope: dict[str, Any], body: bytes, begin: Callable[[Answer], None]) -> Answer | None:
        try:
            match scope["path"]:
                case wire.PROPOSE:
                    timeout_s = float(parse_qs(scope["query_string"].decode())["timeout"][0])
                    placed = await self._replica.propose(_commands(body), timeout_s=timeout_s)
                    return Answer(200, {}, wire.encode(placed))
                case wire.HEARTBEAT:
                    async with asyncio.timeout(5.0):
                        index = await self.beats.record(_beat(body))
                    return Answer(200, {}, msgspec.json.encode({"index": index}))
                case _:
                    return await run_asgi(self._feed, scope, body, begin)
        except rp.ReplicaError as error:
            status, code = _CODES[type(error)]
            return _problem(status, code, str(error))
        except Refused as refused:
            return _problem(409, refused.code, refused.detail)
        except TimeoutError:
            return _problem(504, "outcome_unknown", "no answer in time")


def _problem(status: int, code: str, detail: str) -> Answer:
    return Answer(status, {}, msgspec.json.encode(Problem(code, detail, status)))
