"""A follower's conversations with the voters: polls, downloads, proposals, heartbeats. No state of the log."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec

from ringrift_cluster import replica as rp
from ringrift_cluster.feed import wire
from statemachine.errors import UNDECODABLE, Code, Refused
from statemachine.values import Beat

CONNECT_S = 2.0
#: what a full batch may take on its way, beyond the wait for it
TRANSFER_S = 60.0
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


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
class Polled:
    """One answered poll. `read_at_s` is when the voter read it, never later than it really did."""

    batch: wire.Batch
    read_at_s: float


class Voters:
    """The voters' addresses, which of them is asked, and how their answers are understood.

    `urls` maps node ids to "http://host:port". The order is shuffled once, so that followers spread.
    """

    def __init__(
        self,
        urls: Mapping[str, str],
        http: httpx.AsyncClient,
        *,
        token: str | None,
        rng: random.Random,
        clock: Callable[[], float],
    ) -> None:
        if not urls:
            raise ValueError("a follower needs at least one voter to follow")
        self._first = dict(urls)
        self._urls = dict(urls)
        self._order = sorted(urls)
        rng.shuffle(self._order)
        self._http = http
        self._clock = clock
        self._rng = rng
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self.leader: str | None = None

    @property
    def current(self) -> str:
        """The voter that feeds us."""
        return self._order[0]

    def rotate(self) -> None:
        self._order.append(self._order.pop(0))

    def learn(self, urls: Mapping[str, str]) -> None:
        """Go by the voters of the log; the addresses this node was started with are asked after them."""
        known = {**{n: u for n, u in self._first.items() if n not in urls}, **urls}
        if known == self._urls or not urls:
            return
        stay = [v for v in self._order if v in urls]
        fresh = sorted(urls.keys() - set(stay))
        self._rng.shuffle(fresh)
        self._order = [*stay, *fresh, *(v for v in self._order if v in known and v not in urls)]
        self._urls = known

    def _speaking(self) -> dict[str, str]:
        """Whose authorization goes with a write: that of the request being served, else this node's own."""
        caller = rp.on_behalf.get()
        return {"authorization": caller} if caller else self._headers

    def _leader_first(self) -> list[str]:
        leader = self.leader
        if leader not in self._urls or leader is None:
            return list(self._order)
        return [leader, *(v for v in self._order if v != leader)]

    async def _ask(
        self,
        method: str,
        voter: str,
        path: str,
        *,
        within_s: float,
        most_bytes: int = wire.MAX_SMALL_ANSWER_BYTES,
        headers: Mapping[str, str],
        **request: Any,
    ) -> tuple[int, bytes]:
        """Status and body of one request. Raises httpx.HTTPError, also when the answer has no end."""
        # As it comes: a small body that unpacks into a large one would be over every limit at once.
        plain = {**headers, "accept-encoding": "identity"}
        body = bytearray()
        try:
            async with (
                asyncio.timeout(within_s),
                self._http.stream(method, self._urls[voter] + path, headers=plain, **request) as response,
            ):
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > most_bytes:
                        raise httpx.ReadError(f"its answer is over {most_bytes} bytes")
        except TimeoutError as error:
            raise httpx.ReadTimeout(f"its answer took over {within_s:g} s") from error
        return response.status_code, bytes(body)

    # The feed

    async def poll(self, cluster: str, after: int, chain: bytes, wait_s: float, max_bytes: int) -> Polled:
        """Ask the current voter for what comes after a position. Raises Unreachable, PositionRefused."""
        params: dict[str, str | int | float] = {
            "cluster": cluster,
            "after": after,
            "chain": chain.hex(),
            "wait": wait_s,
            "max_bytes": max_bytes,
        }
        sent_at = self._clock()
        timeout = httpx.Timeout(CONNECT_S, read=wait_s + 3.0)
        try:
            status, body = await self._ask(
                "GET",
                self.current,
                wire.ENTRIES,
                within_s=wait_s + TRANSFER_S,
                most_bytes=wire.MAX_ANSWER_BYTES,
                params=params,
                timeout=timeout,
                headers=self._headers,
            )
        except httpx.HTTPError as error:
            raise Unreachable(f"voter {self.current} does not answer ({_reason(error)})") from error
        if status == 409:
            problem = wire.problem_of(body)
            raise PositionRefused(problem.code, problem.detail)
        if status != 200:
            raise _no_answer(self.current, status, wire.problem_of(body))
        try:
            batch = wire.decode_batch(body)
        except UNDECODABLE as error:
            raise Unreachable(f"voter {self.current} sent a batch that cannot be read: {error}") from error
        self.leader = batch.standing.leader_id
        return Polled(batch, sent_at + batch.standing.held_ms / 1000)

    async def download(self, target: Path) -> None:
        """Fetch the current voter's snapshot into a file, continuing after broken connections.

        Raises Unreachable; the file's content is verified by whoever reads it.
        """
        etag = ""
        target.unlink(missing_ok=True)
        for _ in range(5):
            have = target.stat().st_size if target.exists() else 0
            headers = {**self._headers, "accept-encoding": "identity"}
            if have and etag:
                headers |= {"range": f"bytes={have}-", "if-range": etag}
            try:
                async with self._http.stream(
                    "GET",
                    self._urls[self.current] + wire.SNAPSHOT,
                    headers=headers,
                    timeout=httpx.Timeout(30.0, connect=CONNECT_S),
                ) as response:
                    if response.status_code not in (200, 206):
                        said = await anext(response.aiter_raw(64 * 1024), b"")
                        raise _no_answer(self.current, response.status_code, wire.problem_of(said))
                    etag = response.headers.get("etag", "")
                    with target.open("ab" if response.status_code == 206 else "wb") as out:
                        async for chunk in response.aiter_raw():
                            if out.tell() + len(chunk) > wire.MAX_SNAPSHOT_BYTES:
                                raise Unreachable(f"the snapshot of voter {self.current} has no end")
                            out.write(chunk)
                return
            except httpx.HTTPError as error:
                reason = _reason(error)
                if not target.exists() or target.stat().st_size <= have:
                    break
        raise Unreachable(f"the snapshot of voter {self.current} could not be fetched ({reason})")

    # Proposals

    async def propose(self, commands: Sequence[bytes], timeout_s: float) -> rp.Proposed:
        """Commit through whichever voter takes it, the leader first.

        Raises NoLeader, Busy, TooLarge, ReadOnly (certainly not committed), OutcomeUnknown.
        """
        body = wire.encode(list(commands))
        deadline = self._clock() + timeout_s
        problem: rp.ReplicaError = rp.NoLeader("no voter could be reached")
        delay_s = 0.05
        while True:
            for voter in self._leader_first():
                left = deadline - self._clock()
                if left <= 0:
                    raise problem
                try:
                    return await self._propose_to(voter, body, left)
                except (rp.NoLeader, rp.Halted) as error:
                    problem = rp.NoLeader(*error.args)
                except rp.OutcomeUnknown:
                    # A barrier changes nothing, so it may be asked for again.
                    if commands:
                        raise
            if self._clock() + delay_s >= deadline:
                raise problem
            await asyncio.sleep(delay_s * self._rng.uniform(0.5, 1.5))
            delay_s = min(delay_s * 2, 0.5)

    async def _propose_to(self, voter: str, body: bytes, left_s: float) -> rp.Proposed:
        headers = {"content-type": wire.MSGPACK, **self._speaking()}
        try:
            status, said = await self._ask(
                "POST",
                voter,
                wire.PROPOSE,
                within_s=left_s + 1.0,
                params={"timeout": min(left_s, wire.MAX_WAIT_S)},
                content=body,
                headers=headers,
                timeout=httpx.Timeout(left_s + 1.0, connect=min(CONNECT_S, left_s)),
            )
        except _UNSENT as error:
            raise rp.NoLeader(f"voter {voter} does not answer ({_reason(error)})") from error
        except httpx.HTTPError as error:
            raise rp.OutcomeUnknown(f"voter {voter} took the proposal and did not answer ({_reason(error)})") from error
        if status == 200:
            try:
                placed = wire.decode_placed(said)
            except UNDECODABLE as error:
                raise rp.OutcomeUnknown(f"voter {voter} sent an answer that cannot be read: {error}") from error
            return rp.Proposed(placed.index, placed.term, tuple(placed.results))
        raise _replica_error(voter, status, wire.problem_of(said))

    async def heartbeat(self, beat: Beat, timeout_s: float) -> int:
        """Send a sign of life to whichever voter takes it; returns the index it was applied at.

        Raises ReplicaError, and Refused when the law did not take it.
        """
        body = wire.encode(beat)
        headers = {"content-type": wire.MSGPACK, **self._speaking()}
        deadline = self._clock() + timeout_s
        problem: rp.ReplicaError = rp.NoLeader("no voter could be reached")
        for voter in self._order.copy():
            left = deadline - self._clock()
            if left <= 0:
                break
            try:
                status, said = await self._ask(
                    "POST",
                    voter,
                    wire.HEARTBEAT,
                    within_s=left,
                    content=body,
                    headers=headers,
                    timeout=httpx.Timeout(left, connect=min(CONNECT_S, left)),
                )
            except httpx.HTTPError as error:
                problem = rp.NoLeader(f"voter {voter} does not answer ({_reason(error)})")
                continue
            if status == 200:
                return _index_of(voter, said)
            answer = wire.problem_of(said)
            if answer.code in tuple(Code):
                raise Refused(Code(answer.code), answer.detail)
            problem = _replica_error(voter, status, answer)
        raise problem

    async def transfer(self, target: str | None) -> str:
        """Ask for leadership to be handed over; returns who leads then. Raises NoLeader."""
        said = "no voter could be reached"
        for voter in self._leader_first():
            try:
                status, body = await self._ask(
                    "POST",
                    voter,
                    "/admin/election/start",
                    within_s=20.0,
                    json={"target": target} if target else {},
                    headers=self._speaking(),
                    timeout=httpx.Timeout(20.0, connect=CONNECT_S),
                )
            except httpx.HTTPError as error:
                said = f"voter {voter} does not answer ({_reason(error)})"
                continue
            if status == 200:
                return _leader_of(voter, body)
            said = wire.problem_of(body).detail or f"voter {voter} answered {status}"
        raise rp.NoLeader(said)


class _Taken(msgspec.Struct):
    index: int


class _Led(msgspec.Struct):
    leader_id: str


def _leader_of(voter: str, body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Led).leader_id
    except UNDECODABLE as error:
        raise rp.OutcomeUnknown(f"voter {voter} sent an answer that cannot be read: {error}") from error


def _index_of(voter: str, body: bytes) -> int:
    try:
        return msgspec.json.decode(body, type=_Taken).index
    except UNDECODABLE as error:
        raise rp.OutcomeUnknown(f"voter {voter} sent an answer that cannot be read: {error}") from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _refusal(voter: str, status: int, problem: wire.Problem) -> str:
    return f"voter {voter} answered {status}: {problem.detail or problem.code or 'no reason given'}"


def _no_answer(voter: str, status: int, problem: wire.Problem) -> Exception:
    """Why the feed got nothing: a token that is over is final, anything else another voter may mend."""
    return ShutOut(problem.detail) if problem.code == "token_over" else Unreachable(_refusal(voter, status, problem))


def _replica_error(voter: str, status: int, problem: wire.Problem) -> rp.ReplicaError:
    said = _refusal(voter, status, problem)
    match problem.code:
        case "no_leader" | "halted" | "stale" | "not_ready" | "read_only":
            return rp.NoLeader(said)
        case "busy":
            return rp.Busy(said)
        case "too_large":
            return rp.TooLarge(problem.detail)
        case "invalid":
            return rp.ReadOnly(f"{said}; the voters run another release")
        case "unauthorized" | "token_over" | "forbidden":
            return rp.ReadOnly(f"{said}; give this node a token that is good for it")
    if status in (404, 405):
        return rp.NoLeader(f"{said}; it does not look like a node of the cluster")
    return rp.OutcomeUnknown(said)
