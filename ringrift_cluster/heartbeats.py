"""Heartbeats: many signs of life, one command a second.

A voter gathers what its agents and followers send and proposes it together. A heartbeat is acknowledged only
after it was applied, because the sender extends its leases by it; what waited too long for a leader is dropped and the
sender tries another voter.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from ringrift_cluster.replica import NoLeader, Replica, ReplicaError
from statemachine.commands import MAX_COMMAND_BYTES, RecordHeartbeats, decode_command, encode_command
from statemachine.errors import UNDECODABLE, Code, Done, Refused
from statemachine.values import Beat

#: time between two proposals
EVERY_S = 1.0
#: a heartbeat that could not be proposed for this long says nothing about now
STALE_S = 5.0
#: beats in one command, and their bytes: busy nodes tell of many jobs, and a command has its limit
MAX_BEATS = 1024
MAX_BYTES = MAX_COMMAND_BYTES // 2


@dataclass
class _Waiting:
    beat: Beat
    since_s: float
    answers: list[asyncio.Future[int]] = field(default_factory=list)


class HeartbeatCollector:
    """The newest unsaid heartbeat of each peer; `run` proposes them, `record` waits for the answer."""

    def __init__(
        self, replica: Replica, *, every_s: float = EVERY_S, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._replica = replica
        self._every_s = every_s
        self._now = monotonic_s
        self._waiting: dict[str, _Waiting] = {}
        self._wake = asyncio.Event()

    async def record(self, beat: Beat) -> int:
        """Wait until the heartbeat was applied; returns the index it was applied at.

        Raises ReplicaError when it could not be proposed, Refused when the law did not take it.
        """
        _check(beat)
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        held = self._waiting.get(beat.peer)
        if held is None or held.beat.incarnation != beat.incarnation:
            if held is not None:
                _fail(held, Refused(Code.STALE_INCARNATION, f"a newer process of {beat.peer!r} reports here"))
            self._waiting[beat.peer] = _Waiting(beat, self._now(), [answer])
        else:
            # Counts are cumulative, so the newer beat holds all that the older one said but its facts.
            newer = Beat(
                beat.peer, beat.incarnation, beat.facts or held.beat.facts, beat.progress or held.beat.progress
            )
            held.beat = newer
            held.answers.append(answer)
        self._wake.set()
        return await answer

    async def run(self) -> None:
        """Propose what has gathered, at most once a period, for ever."""
        while True:
            await self._wake.wait()
            began = self._now()
            await self._flush()
            await asyncio.sleep(max(self._every_s - (self._now() - began), 0.0))

    async def _flush(self) -> None:
        self._wake.clear()
        waiting, self._waiting = self._waiting, {}
        fresh: list[_Waiting] = []
        for held in waiting.values():
            if self._now() - held.since_s > STALE_S:
                _fail(held, NoLeader(f"no leader took the heartbeat of {held.beat.peer!r} within {STALE_S:g} s"))
            else:
                fresh.append(held)
        for batch in _batches(fresh):
            await self._propose(batch)

    async def _propose(self, batch: list[_Waiting]) -> None:
        command = encode_command(RecordHeartbeats(tuple(held.beat for held in batch)))
        try:
            proposed = await self._replica.propose([command], timeout_s=STALE_S)
        except ReplicaError as error:
            for held in batch:
                _fail(held, error)
            return
        result = proposed.results[0]
        refused: dict[str, str] = result.value if isinstance(result, Done) else {}
        for held in batch:
            code = refused.get(held.beat.peer)
            if not isinstance(result, Done):
                _fail(held, Refused(Code(result.code), result.detail))
            elif code is not None:
                _fail(held, Refused(Code(code), f"the heartbeat of {held.beat.peer!r} was not taken: join again"))
            else:
                for answer in held.answers:
                    if not answer.done():
                        answer.set_result(proposed.index)


def _check(beat: Beat) -> None:
    """Refuse a beat that cannot enter the log. Raises Refused.

    What this node's own agents say was decoded by nobody, and in one command with others' it would silence them too.
    """
    try:
        decode_command(encode_command(RecordHeartbeats((beat,))))
    except (*UNDECODABLE, OverflowError, UnicodeEncodeError) as error:
        raise Refused(Code.INVALID, f"the heartbeat of {beat.peer!r} cannot enter the log: {error}") from None


def _batches(waiting: Sequence[_Waiting]) -> Iterator[list[_Waiting]]:
    """Beats by command: as many as fit by number and by encoded size."""
    batch: list[_Waiting] = []
    size = 0
    for held in waiting:
        weight = len(msgspec.msgpack.encode(held.beat))
        if batch and (len(batch) >= MAX_BEATS or size + weight > MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(held)
        size += weight
    if batch:
        yield batch


def _fail(held: _Waiting, error: Exception) -> None:
    for answer in held.answers:
        if not answer.done():
            answer.set_exception(error)
