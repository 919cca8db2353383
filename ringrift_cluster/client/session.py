"""Whom to ask, when to ask again, and when to give up: the part of the client that has an opinion."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from ringrift_cluster.api.raft import Leader
from ringrift_cluster.api.views import View
from ringrift_cluster.client.errors import OutcomeUnknown, Unreachable, error_of, problem_of
from ringrift_cluster.client.steps import Answer, Failed, Flow, Open, Pause, Send
from ringrift_cluster.problem import Problem
from statemachine.errors import UNDECODABLE

T = TypeVar("T")

#: answers after which the same request is sent again
_AGAIN = frozenset({429, 502, 503, 504})
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
#: how long a read waits for the node to have this session's own changes
_CATCH_UP_S = 5.0
#: an unreachable leader is not tried again for so long
_AVOID_S = 10.0


class Hint(Struct, frozen=True):
    """The part of a problem document that says who leads."""

    leader: LeaderAddress | None = None


class LeaderAddress(Struct, frozen=True):
    node_id: str = ""
    address: str | None = None


class Session:
    """Addresses of one cluster and what was learnt about them. No sockets, no threads.

    `timeout_s` bounds one request, `retry_s` all attempts of one call together, `contact_s` those before any
    node ever answered. Every change carries an id, so that repeating it is safe.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        token: str | None = None,
        timeout_s: float = 10.0,
        retry_s: float = 30.0,
        contact_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        given = [addresses] if isinstance(addresses, str) else list(addresses)
        self._addresses = [normal(address) for one in given for address in one.split(",") if address.strip()]
        if not self._addresses:
            raise ValueError("a client needs at least one address, such as http://127.0.0.1:8770")
        self._token = token
        self._timeout_s = timeout_s
        self._retry_s = retry_s
        self._contact_s = min(contact_s, retry_s)
        self._answered = False
        self._clock = clock
        self._rng = rng or random.Random()
        self.new_id = new_id
        self.leader_url: str | None = None
        #: where in the log the last change of this session stands; later reads are not older than that
        self.written = 0
        self._avoid_leader_until = 0.0

    # One call

    def get(self, path: str, kind: type[T], query: Struct | None = None, **params: object) -> Flow[T]:
        """A read, from the address that answered last; it shows at least what this session has changed."""
        asked = _query(query, params)
        patience_s = _patience(query)
        if isinstance(query, View) and self.written > query.index:
            patience_s = max(patience_s, _CATCH_UP_S)
            asked |= {"index": str(self.written), "wait": str(patience_s)}
        answer = yield from self.ask("GET", path, params=asked, timeout_s=patience_s)
        return _decode(answer, kind)

    def change(
        self, method: str, path: str, kind: type[T], body: object, *, request_id: str = "", retry: bool = True
    ) -> Flow[T]:
        """A write, to the leader where it can be found; repeated under the same id until the outcome is known."""
        if self.leader_url is None:
            yield from self._find_leader()
        headers = {"content-type": "application/json", "request-id": request_id or self.new_id()}
        encoded = msgspec.json.encode(body)
        answer = yield from self.ask(method, path, body=encoded, headers=headers, write=True, retry=retry)
        index = answer.headers.get("ringrift-index", "")
        self.written = max(self.written, int(index) if index.isdecimal() else 0)
        return _decode(answer, kind)

    def ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        write: bool = False,
        retry: bool = True,
        timeout_s: float = 0.0,
    ) -> Flow[Answer]:
        """Send until there is an answer that repeating would not change. Raises ClientError."""
        started = self._clock()
        pause_s = _FIRST_PAUSE_S
        unknown: Problem | None = None
        while True:
            base = self._target(write)
            send = Send(method, base + path, params or {}, body, self._headers(headers), self._timeout_s + timeout_s)
            answer = yield send
            problem = self._judge(base, answer)
            if problem is None:
                return answer  # type: ignore[no-any-return]  # the reply to Send
            again = isinstance(answer, Failed) or answer.status in _AGAIN
            if (isinstance(answer, Failed) and answer.sent) or problem.status == 504:
                unknown = problem
            wait_s = self._rng.uniform(0.5, 1.0) * max(pause_s, _retry_after(answer))
            if not again or not retry or self._clock() + wait_s > started + self._patience_s():
                if unknown is not None and write and again:
                    raise OutcomeUnknown(unknown)
                raise Unreachable(problem) if isinstance(answer, Failed) else error_of(problem)
            yield Pause(wait_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def open(self, path: str, params: Mapping[str, str], body: bytes | None = None) -> Flow[None]:
        """Open a stream at whichever node gives it; one with a body begins something, and is asked for once.

        Raises ClientError.
        """
        method, headers = ("GET", None) if body is None else ("POST", {"content-type": "application/json"})
        started = self._clock()
        pause_s = _FIRST_PAUSE_S
        while True:
            base = self._target(write=False)
            answer = yield Open(Send(method, base + path, params, body, self._headers(headers), self._timeout_s))
            problem = self._judge(base, answer)
            if problem is None:
                return
            unsent = isinstance(answer, Failed) and not answer.sent
            again = unsent or (body is None and (isinstance(answer, Failed) or answer.status in _AGAIN))
            if not again or self._clock() + pause_s > started + self._patience_s():
                raise Unreachable(problem) if isinstance(answer, Failed) else error_of(problem)
            yield Pause(self._rng.uniform(0.5, 1.0) * pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def _patience_s(self) -> float:
        return self._retry_s if self._answered else self._contact_s

    # Whom to ask

    def _target(self, write: bool) -> str:
        return self.leader_url if write and self.leader_url else self._addresses[0]

    def _named(self, address: str | None) -> str | None:
        """The leader's address as a node names it; under TLS nobody talks us out of it."""
        try:
            named = normal(address) if address else None
        except ValueError:
            return None
        sealed = all(known.startswith("https://") for known in self._addresses)
        return None if named and sealed and not named.startswith("https://") else named

    def _find_leader(self) -> Flow[None]:
        """Learn the leader's address from the first node that knows it; without one, any node will do."""
        if self._clock() < self._avoid_leader_until:
            return
        for _ in range(len(self._addresses)):
            answer = yield Send(
                "GET", f"{self._addresses[0]}/election/leader", headers=self._headers(None), timeout_s=3.0
            )
            self._answered |= isinstance(answer, Answer)
            if isinstance(answer, Answer) and answer.status == 200:
                address = _decode(answer, Leader).address
                self.leader_url = self._named(address)
                return
            self._rotate()

    def _judge(self, base: str, answer: Answer | Failed) -> Problem | None:
        """None when the answer is good; else what is wrong, having learnt from it."""
        self._answered |= isinstance(answer, Answer) or answer.sent
        if isinstance(answer, Answer) and answer.status < 300:
            return None
        if isinstance(answer, Failed):
            self._leave(base)
            said = "did not answer" if answer.sent else "cannot be reached"
            return Problem("unreachable", f"{base} {said}: {answer.reason}", 0, "No answer")
        problem = problem_of(answer.status, answer.body)
        if answer.status in _AGAIN:
            hint = _hint(answer.body)
            if hint and self._clock() >= self._avoid_leader_until:
                self.leader_url = self._named(hint)
            else:
                # It names nobody, or a leader that cannot be reached there: one of the other addresses may.
                self._leave(base)
        return problem

    def _leave(self, base: str) -> None:
        """Ask another node next time."""
        if base == self.leader_url:
            self.leader_url = None
            self._avoid_leader_until = self._clock() + _AVOID_S
        if base == self._addresses[0]:
            self._rotate()

    def _rotate(self) -> None:
        self._addresses.append(self._addresses.pop(0))

    def _headers(self, more: Mapping[str, str] | None) -> dict[str, str]:
        token = {"authorization": f"Bearer {self._token}"} if self._token else {}
        return {**token, **(more or {})}


def normal(address: str) -> str:
    """`host:port` or a URL, as a base URL without a slash at its end. Raises ValueError."""
    given = address.strip()
    url = (given if "://" in given else f"http://{given}").rstrip("/")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and url.split() == [url]
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"{address!r} is no address; give a URL or host:port, such as http://127.0.0.1:8770")
    return url


def _query(query: Struct | None, params: Mapping[str, Any]) -> dict[str, str]:
    """Query parameters that differ from their defaults, as text."""
    found = dict(params)
    if query is not None:
        fields = msgspec.structs.fields(query)
        found |= {f.encode_name: getattr(query, f.name) for f in fields if getattr(query, f.name) != f.default}
    return {name: _text(value) for name, value in found.items() if value not in (None, "", False)}


def _text(value: object) -> str:
    return "true" if value is True else str(value)


def _patience(query: Struct | None) -> float:
    return float(getattr(query, "wait", 0.0))


def _retry_after(answer: Answer | Failed) -> float:
    if isinstance(answer, Failed):
        return 0.0
    text = answer.headers.get("retry-after", "")
    return min(float(text), _LONGEST_PAUSE_S) if text.isdecimal() else 0.0


def _hint(body: bytes) -> str | None:
    try:
        leader = msgspec.json.decode(body, type=Hint).leader
    except UNDECODABLE:
        return None
    return leader.address if leader else None


def _decode(answer: Answer, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except UNDECODABLE as error:
        raise error_of(
            Problem("unexpected", f"the node's answer is not understood ({error}); is it of another release?", 500)
        ) from error
