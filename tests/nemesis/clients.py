"""Clients that add, claim, renew, complete and read, and write down what they see.

Each operation goes to some node, and to another one when that does not answer, always under the same ids, until it is
answered or its time is over.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec

from statemachine import settings as st
from tests.nemesis.history import History, Op, Outcome

ATTEMPT_S = 2.0
PATIENCE_S = 6.0
WORKERS = 12
#: keys in use at a time, and operations after which a key is left for a new one: longer than a lease lasts
OPEN_KEYS, OPS_A_KEY = 6, 120
PROBE_EVERY_S = 0.1
WORK_TYPE = "selfplay"
#: what every completion reports, so that the totals tell how often it counted
GAMES = 7
#: answers that say that nothing was changed
UNCHANGED = frozenset({"no_leader", "busy", "stale", "read_only", "halted", "not_ready", "too_many_waits"})

_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


@dataclass(slots=True)
class Reply:
    """The last word on an operation."""

    outcome: Outcome
    body: dict[str, Any]
    #: the problem's code when it was refused
    code: str = ""


class Door:
    """How an operation reaches the cluster."""

    def __init__(self, urls: dict[str, str], rng: random.Random, history: History, way_in: dict[str, Any]) -> None:
        """`way_in` is what an HTTP client needs to be let in."""
        self._urls = urls
        self._names = list(urls)
        self._rng = rng
        self.history = history
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self.http = httpx.AsyncClient(limits=limits, **way_in)
        #: answers that no document allows
        self.strange: list[str] = []

    async def ask(
        self, op: Op, method: str, path: str, body: object = None, *, request: str = "", patience_s: float = PATIENCE_S
    ) -> Reply:
        """Send until answered; `op` learns how that went."""
        content = None if body is None else msgspec.json.encode(body)
        headers = {"content-type": "application/json"} | ({"request-id": request} if request else {})
        deadline = time.monotonic() + patience_s
        names = self._rng.sample(self._names, len(self._names))
        for name in itertools.cycle(names):
            op.node, op.attempts = name, op.attempts + 1
            reply = await self._attempt(op, method, self._urls[name] + path, content, headers)
            if reply is not None:
                return reply
            if time.monotonic() + 0.3 > deadline:
                break
            await asyncio.sleep(self._rng.uniform(0.05, 0.3))
        return Reply(Outcome.INFO if op.unsure and op.writes else Outcome.FAIL, {})

    async def _attempt(
        self, op: Op, method: str, url: str, content: bytes | None, headers: dict[str, str]
    ) -> Reply | None:
        timeout = httpx.Timeout(ATTEMPT_S, connect=1.0)
        try:
            answer = await self.http.request(method, url, content=content, headers=headers, timeout=timeout)
        except _UNSENT as error:
            op.error = type(error).__name__
            return None
        except httpx.HTTPError as error:
            op.error = type(error).__name__
            op.unsure += 1
            return None
        if answer.status_code < 300:
            op.error = ""
            return Reply(Outcome.OK, answer.json())
        try:
            code = str(answer.json().get("code", ""))
        except ValueError:
            code = ""
        op.error = f"{answer.status_code} {code}"
        if code in UNCHANGED:
            return None
        if code == "outcome_unknown":
            op.unsure += 1
            return None
        if answer.status_code >= 500 or answer.status_code in (401, 403) or not code:
            self.strange.append(f"{op.kind} at {op.node}: {answer.status_code} {answer.text[:300]}")
            op.unsure += 1
            return None
        return Reply(Outcome.OK, {}, code)

    def close(self, op: Op, reply: Reply, output: dict[str, Any] | None = None) -> None:
        """Write down how an operation ended."""
        op.outcome = reply.outcome
        if reply.outcome is Outcome.OK:
            op.output = {"refused": reply.code} if reply.code else (output or {})
        if reply.outcome is not Outcome.INFO:
            op.returned_at = time.monotonic()


@dataclass(slots=True)
class Held:
    """A job that a client claimed."""

    work: str
    job: int
    fence: int


class Key:
    """One class of items, worked on by several clients at once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.left = OPS_A_KEY
        self.items: list[str] = []
        self.held: list[Held] = []
        self.ended: list[Held] = []
        self.values = itertools.count(1)
        self.version = 0


class Clients:
    """Everything that uses the cluster during a scenario."""

    def __init__(self, urls: dict[str, str], seed: int, rate: float, way_in: dict[str, Any]) -> None:
        self._rng = random.Random(seed)
        self.history = History()
        self.door = Door(urls, self._rng, self.history, way_in)
        self._pace_s = WORKERS / rate
        self._numbers = itertools.count(1)
        self._keys: deque[Key] = deque()
        self._stopping = asyncio.Event()
        self._probing: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until `stop`."""
        async with asyncio.TaskGroup() as group:
            for n in range(WORKERS):
                group.create_task(self._work(f"c{n + 1}"))
            group.create_task(self._probe())

    def stop(self) -> None:
        self._stopping.set()

    async def close(self) -> None:
        await self.door.http.aclose()

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return

    async def _work(self, client: str) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            key = self._some_key()
            await self._choose(key)(client, key)
            await self._pause(max(began + self._pace_s * self._rng.uniform(0.5, 1.5) - time.monotonic(), 0.001))

    def _some_key(self) -> Key:
        while len(self._keys) < OPEN_KEYS:
            self._keys.append(Key(f"k{next(self._numbers)}"))
        key = self._rng.choice(self._keys)
        key.left -= 1
        if key.left <= 0:
            self._keys.remove(key)
        return key

    def _choose(self, key: Key) -> Callable[[str, Key], Awaitable[None]]:
        steps: list[tuple[Callable[[str, Key], Awaitable[None]], int]] = [
            (self._add, 4 if len(key.items) < 8 else 0),
            (self._add_again, 1 if key.items else 0),
            (self._claim, 5),
            (self._read, 4 if key.items else 0),
            (self._renew, 4 if key.held else 0),
            (self._complete, 3 if key.held else 0),
            (self._complete_again, 1 if key.ended else 0),
            (self._abandon, 1 if key.held else 0),
            (self._write_setting, 2),
            (self._read_setting, 2),
        ]
        (step,) = self._rng.choices([s for s, _ in steps], [w for _, w in steps])
        return step

    def _begin(self, client: str, key: str, kind: str, **args: Any) -> Op:
        return self.history.invoke(client, key, kind, args, time.monotonic())

    # The queue

    async def _add(self, client: str, key: Key) -> None:
        """Half of the items are named by the request id alone."""
        number = next(self._numbers)
        request = f"r{number}"
        named = self._rng.random() < 0.5
        work = f"{key.name}-{number}" if named else f"{WORK_TYPE}-{request}.0"
        await self._add_named(client, key.name, work, request, named=named)
        key.items.append(work)

    async def _add_named(
        self, client: str, key: str, work: str, request: str, *, named: bool, patience_s: float = PATIENCE_S
    ) -> None:
        body = {"work_type": WORK_TYPE, "config": key} | ({"work_id": work} if named else {})
        op = self._begin(client, f"queue/{key}", "add", work=work)
        reply = await self.door.ask(op, "POST", "/work/add", body, request=request, patience_s=patience_s)
        self.door.close(op, reply, {"repeat": reply.body.get("repeat", False)})

    async def _add_again(self, client: str, key: Key) -> None:
        work = self._rng.choice(key.items)
        request = work.removeprefix(f"{WORK_TYPE}-").removesuffix(".0")
        await self._add_named(client, key.name, work, request, named=work.startswith(f"{key.name}-"))

    async def _claim(self, client: str, key: Key) -> None:
        claim = f"claim-{next(self._numbers)}"
        body = {"node_id": client, "claim_id": claim, "configs": [key.name]}
        op = self._begin(client, f"queue/{key.name}", "claim", claim=claim)
        reply = await self.door.ask(op, "POST", "/work/claim", body)
        given = reply.body.get("work")
        job = int(given["job"].rpartition(".")[2]) if given else 0
        seen = {"work": given and given["work"], "job": job, "fence": given["fence"] if given else 0}
        self.door.close(op, reply, seen)
        if given:
            key.held.append(Held(given["work"], job, given["fence"]))
        elif op.unsure and reply.outcome is Outcome.OK:
            # An empty claim is not remembered: the attempt that got lost may still arrive and take an item.
            late = self.history.invoke(client, op.key, "claim", dict(op.args), op.invoked_at)
            late.node = "an earlier attempt"

    def _fenced(self, client: str, key: Key, kind: str, held: Held) -> tuple[Op, dict[str, Any]]:
        op = self._begin(client, f"queue/{key.name}", kind, work=held.work, job=held.job, fence=held.fence)
        return op, {"job": f"{held.work}.{held.job}", "fence": held.fence}

    async def _renew(self, client: str, key: Key) -> None:
        op, named = self._fenced(client, key, "renew", self._rng.choice(key.held))
        reply = await self.door.ask(op, "POST", "/work/renew", {"jobs": [named]})
        self.door.close(op, reply, {"over": bool(reply.body.get("result", {}).get("over"))})

    async def _complete(self, client: str, key: Key) -> None:
        held = self._rng.choice(key.held)
        await self._complete_held(client, key, held)
        if held in key.held:
            key.held.remove(held)
        key.ended.append(held)

    async def _complete_again(self, client: str, key: Key) -> None:
        await self._complete_held(client, key, self._rng.choice(key.ended))

    async def _complete_held(self, client: str, key: Key, held: Held) -> None:
        op, named = self._fenced(client, key, "complete", held)
        reply = await self.door.ask(op, "POST", "/work/complete", named | {"counts": {"games": GAMES}})
        result = reply.body.get("result", {})
        self.door.close(op, reply, {"published": result.get("published"), "repeat": result.get("repeat", False)})

    async def _abandon(self, client: str, key: Key) -> None:
        """Forget a job without a word; its lease has to run out. A late completion may still be tried."""
        held = self._rng.choice(key.held)
        key.held.remove(held)
        key.ended.append(held)

    async def _read(self, client: str, key: Key) -> None:
        work = self._rng.choice(key.items)
        op = self._begin(client, f"queue/{key.name}", "read", work=work)
        reply = await self.door.ask(op, "GET", f"/work/{work}?consistency=linearizable")
        if reply.code == "not_found":
            reply = Reply(Outcome.OK, {})
        row, job = reply.body.get("work"), reply.body.get("job")
        self.door.close(op, reply, seen_item(row, job))

    # The register

    async def _write_setting(self, client: str, key: Key) -> None:
        """Every value is new, so a change that took effect twice shows in the version."""
        value = f"{key.name}-{next(key.values)}"
        expected = self._rng.choice((-1, -1, key.version))
        op = self._begin(client, f"setting/{key.name}", "write-setting", value=value, expected=expected)
        body = {"value": {"argv": [value]}, "expected_version": expected}
        reply = await self.door.ask(op, "PUT", f"/settings/template/{key.name}", body, request=f"put-{value}")
        version = reply.body.get("result", {}).get("version")
        key.version = max(key.version, version or 0)
        self.door.close(op, reply, {"version": version})

    async def _read_setting(self, client: str, key: Key) -> None:
        op = self._begin(client, f"setting/{key.name}", "read-setting")
        reply = await self.door.ask(op, "GET", f"/settings/template/{key.name}?consistency=linearizable")
        seen = {"version": 0, "value": ""}
        if reply.code == "not_found":
            reply = Reply(Outcome.OK, {})
        elif reply.body:
            seen = {"version": reply.body["version"], "value": reply.body["value"]["argv"][0]}
        key.version = max(key.version, int(seen["version"]))
        self.door.close(op, reply, seen)

    # Availability

    async def _probe(self) -> None:
        """A write every tenth of a second, whether or not the ones before it are answered."""
        while not self._stopping.is_set():
            number = next(self._numbers)
            work = f"p{number}"
            add = self._add_named("probe", f"probe-{work}", work, work, named=True, patience_s=3.0)
            task = asyncio.create_task(add)
            self._probing.add(task)
            task.add_done_callback(self._probing.discard)
            await self._pause(PROBE_EVERY_S)
        await asyncio.gather(*self._probing)


def seen_item(row: dict[str, Any] | None, job: dict[str, Any] | None) -> dict[str, Any]:
    """An item as the queue's model reads it."""
    if row is None:
        return {"status": None, "grants": 0, "fence": 0}
    return {"status": row["status"], "grants": row.get("grants", 0), "fence": job["fence"] if job else 0}


def final_reads(history: History, tables: dict[str, dict[str, Any]], now: float) -> None:
    """What the state shows when all is over, as one more read of everything that clients used."""
    items = {op.args["work"]: op.key for op in history.ops if op.kind == "add"}
    for work, key in items.items():
        row = tables["work"].get(work)
        job = tables["jobs"].get(row["job"]) if row and row.get("job") else None
        op = history.invoke("end", key, "read", {"work": work}, now)
        op.outcome, op.returned_at, op.output, op.node = Outcome.OK, now, seen_item(row, job), "the end"
    for key in {op.key for op in history.ops if op.kind == "write-setting"}:
        row = tables["settings"].get(f"template/{key.partition('/')[2]}")
        seen = {"version": 0, "value": ""}
        if row is not None:
            seen = {"version": row["version"], "value": st.decode(row["name"], row["value"]).argv[0]}
        op = history.invoke("end", key, "read-setting", {}, now)
        op.outcome, op.returned_at, op.output, op.node = Outcome.OK, now, seen, "the end"
