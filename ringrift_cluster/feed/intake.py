"""What a follower takes from a voter: a snapshot, and the stream of what comes after it. No state of the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import httpx

from ringrift_cluster.feed import wire
from ringrift_cluster.feed.voters import CONNECT_S, Voters, reason, refusal
from ringrift_cluster.problem import Problem, read_problem
from statemachine.errors import UNDECODABLE

#: what one message, or the reason for a refusal, may take on its way
TRANSFER_S = 20.0
#: a feeding node that said nothing for so long is left: it says something every half second
SILENCE_S = 3.0
#: a stream that ended after less than this share of its time was ended for a reason
_WHOLE = 0.9
#: two monotonic clocks drift apart by less than this share
DRIFT = 0.001
_REASON_BYTES = 64 * 1024


class Unreachable(Exception):  # noqa: N818 - names a state of the world
    """A voter did not answer as a voter should; another one may."""


class ShutOut(Exception):  # noqa: N818 - an answer
    """The token of this node is revoked or expired."""


class PositionRefused(Exception):  # noqa: N818 - an answer
    """The voter cannot continue from our position; `code` says why."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


@dataclass(frozen=True, slots=True)
class Heard:
    """One message of a voter. `read_at_s` is when the voter read it, never later than it really did."""

    batch: wire.Batch
    read_at_s: float


class Intake:
    """Asks the voter that feeds us."""

    def __init__(self, voters: Voters, clock: Callable[[], float]) -> None:
        self.voters = voters
        self._clock = clock

    async def stream(self, cluster: str, after: int, chain: bytes, seconds: float) -> AsyncGenerator[Heard, None]:
        """What the current voter has after a position, for so long. Close it when it is left early.

        A voter that ends it before its time wants us elsewhere. Raises Unreachable, PositionRefused, ShutOut.
        """
        voter = self.voters.current
        params: dict[str, str | int | float] = {
            "cluster": cluster,
            "after": after,
            "chain": chain.hex(),
            "seconds": seconds,
        }
        asked_at = self._clock()
        try:
            async with self.voters.http.stream(
                "GET",
                self.voters.url + wire.ENTRIES,
                params=params,
                # As it comes: what unpacks into more than was sent would be over every limit at once.
                headers={**self.voters.headers, "accept-encoding": "identity"},
                timeout=httpx.Timeout(CONNECT_S, read=SILENCE_S),
            ) as response:
                if response.status_code != 200:
                    problem = read_problem(await _reason_given(response))
                    if response.status_code == 409:
                        raise PositionRefused(problem.code, problem.detail)
                    raise _no_answer(voter, response.status_code, problem)
                async with aclosing(self._heard(response, voter, asked_at)) as words:
                    async for heard in words:
                        yield heard
        except httpx.HTTPError as error:
            raise Unreachable(f"voter {voter} does not answer ({reason(error)})") from error
        if self._clock() - asked_at < seconds * _WHOLE:
            raise Unreachable(f"voter {voter} ended its stream early")

    async def _heard(self, response: httpx.Response, voter: str, asked_at: float) -> AsyncGenerator[Heard, None]:
        messages = wire.Messages()
        whole_at, first_ms = asked_at, None
        async for chunk in response.aiter_raw():
            try:
                batches = messages.take(chunk)
            except UNDECODABLE as error:
                raise Unreachable(f"voter {voter} sent a message that cannot be read: {error}") from error
            now = self._clock()
            for batch in batches:
                standing = batch.standing
                if first_ms is None:
                    first_ms = standing.clock_ms
                self.voters.leader = standing.leader_id
                # The first one was read after we asked. From there on the voter's clock tells how much later each
                # was, however long it was on its way.
                since_s = (standing.clock_ms - first_ms - 1) / 1000
                yield Heard(batch, min(now, asked_at + since_s * (1 - DRIFT)))
            if batches or not messages.unfinished:
                whole_at = now
            elif now - whole_at > TRANSFER_S:
                raise Unreachable(f"a message of voter {voter} took over {TRANSFER_S:g} s")
        if messages.unfinished:
            raise Unreachable(f"voter {voter} broke off in a message")

    async def download(self, target: Path) -> None:
        """Fetch the current voter's snapshot into a file, continuing after broken connections.

        Raises Unreachable; the file's content is verified by whoever reads it.
        """
        etag = ""
        target.unlink(missing_ok=True)
        for _ in range(5):
            have = target.stat().st_size if target.exists() else 0
            headers = {**self.voters.headers, "accept-encoding": "identity"}
            if have and etag:
                headers |= {"range": f"bytes={have}-", "if-range": etag}
            try:
                async with self.voters.http.stream(
                    "GET",
                    self.voters.url + wire.SNAPSHOT,
                    headers=headers,
                    timeout=httpx.Timeout(30.0, connect=CONNECT_S),
                ) as response:
                    if response.status_code not in (200, 206):
                        said = await _reason_given(response)
                        raise _no_answer(self.voters.current, response.status_code, read_problem(said))
                    etag = response.headers.get("etag", "")
                    with target.open("ab" if response.status_code == 206 else "wb") as out:
                        async for chunk in response.aiter_raw():
                            if out.tell() + len(chunk) > wire.MAX_SNAPSHOT_BYTES:
                                raise Unreachable(f"the snapshot of voter {self.voters.current} has no end")
                            out.write(chunk)
                return
            except httpx.HTTPError as error:
                why = reason(error)
                if not target.exists() or target.stat().st_size <= have:
                    break
        raise Unreachable(f"the snapshot of voter {self.voters.current} could not be fetched ({why})")


async def _reason_given(response: httpx.Response) -> bytes:
    """The beginning of a refusal, which is all of any honest one. Raises httpx.HTTPError."""
    said = bytearray()
    try:
        async with asyncio.timeout(TRANSFER_S):
            async for chunk in response.aiter_raw():
                said += chunk
                if len(said) > _REASON_BYTES:
                    break
    except TimeoutError as error:
        raise httpx.ReadTimeout(f"its answer took over {TRANSFER_S:g} s") from error
    return bytes(said)


def _no_answer(voter: str, status: int, problem: Problem) -> Unreachable | ShutOut:
    """Why the feed got nothing: a token that is over is final, anything else another voter may mend."""
    return ShutOut(problem.detail) if problem.code == "token_over" else Unreachable(refusal(voter, status, problem))
