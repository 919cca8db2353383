"""The voters of a follower: their addresses, which of them feeds it, and what it asks of them for others."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import httpx
import msgspec

from ringrift_cluster import replica as rp
from ringrift_cluster.feed import wire
from ringrift_cluster.problem import Problem, read_problem
from statemachine.errors import UNDECODABLE, Code, Refused
from statemachine.values import Beat

T = TypeVar("T")

CONNECT_S = 2.0
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


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
        #: as the log says, and as they are asked now
        self._logged: Mapping[str, str] = {}
        self._urls = dict(urls)
        self._order = sorted(urls)
        rng.shuffle(self._order)
        self.http = http
        self._clock = clock
        self._rng = rng
        self.headers = {"authorization": f"Bearer {token}"} if token else {}
        self.leader: str | None = None

    @property
    def current(self) -> str:
        """The voter that feeds us."""
        return self._order[0]

    @property
    def url(self) -> str:
        """Where that one is."""
        return self._urls[self._order[0]]

    def rotate(self) -> None:
        """Leave the present voter for the next one.

        It may have moved: where this node was started with another address of it than the log has, the two take turns.
        """
        left = self._order.pop(0)
        self._order.append(left)
        started, logged = self._first.get(left, ""), self._logged.get(left, "")
        # An address without TLS does not take the place of one with it.
        if started and logged and started.startswith("https:") == logged.startswith("https:"):
            self._urls[left] = started if self._urls[left] == logged else logged

    def learn(self, urls: Mapping[str, str]) -> None:
        """Go by the voters of the log; the addresses this node was started with are asked after them."""
        if urls == self._logged or not urls:
            return
        self._logged = dict(urls)
        known = {**{n: u for n, u in self._first.items() if n not in urls}, **urls}
        stay = [v for v in self._order if v in urls]
        fresh = sorted(urls.keys() - set(stay))
        self._rng.shuffle(fresh)
        self._order = [*stay, *fresh, *(v for v in self._order if v in known and v not in urls)]
        self._urls = known

    def _speaking(self) -> dict[str, str]:
        """Whose authorization goes with a write: that of the request being served, else this node's own."""
        caller = rp.on_behalf.get()
        return {"authorization": caller} if caller else self.headers

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
                self.http.stream(method, self._urls[voter] + path, headers=plain, **request) as response,
            ):
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > wire.MAX_SMALL_ANSWER_BYTES:
                        raise httpx.ReadError(f"its answer is over {wire.MAX_SMALL_ANSWER_BYTES} bytes")
        except TimeoutError as error:
            raise httpx.ReadTimeout(f"its answer took over {within_s:g} s") from error
        return response.status_code, bytes(body)

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
            raise rp.NoLeader(f"voter {voter} does not answer ({reason(error)})") from error
        except httpx.HTTPError as error:
            raise rp.OutcomeUnknown(f"voter {voter} took the proposal and did not answer ({reason(error)})") from error
        if status == 200:
            placed = _understood(voter, wire.decode_placed, said)
            return rp.Proposed(placed.index, placed.term, tuple(placed.results))
        raise _replica_error(voter, status, read_problem(said))

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
                problem = rp.NoLeader(f"voter {voter} does not answer ({reason(error)})")
                continue
            if status == 200:
                return _understood(voter, _decode_taken, said).index
            answer = read_problem(said)
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
                said = f"voter {voter} does not answer ({reason(error)})"
                continue
            if status == 200:
                return _understood(voter, _decode_led, body).leader_id
            said = read_problem(body).detail or f"voter {voter} answered {status}"
        raise rp.NoLeader(said)


class _Taken(msgspec.Struct):
    index: int


class _Led(msgspec.Struct):
    leader_id: str


_decode_taken = msgspec.json.Decoder(_Taken).decode
_decode_led = msgspec.json.Decoder(_Led).decode


def _understood(voter: str, decode: Callable[[bytes], T], body: bytes) -> T:
    """What a voter that did as it was asked says of it. Raises OutcomeUnknown."""
    try:
        return decode(body)
    except UNDECODABLE as error:
        raise rp.OutcomeUnknown(f"voter {voter} sent an answer that cannot be read: {error}") from error


def reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def refusal(voter: str, status: int, problem: Problem) -> str:
    return f"voter {voter} answered {status}: {problem.detail or problem.code or 'no reason given'}"


def _replica_error(voter: str, status: int, problem: Problem) -> rp.ReplicaError:
    said = refusal(voter, status, problem)
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
