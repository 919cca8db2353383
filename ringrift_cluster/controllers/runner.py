"""Runs the policies on the leader: read, decide, propose, wait for the next change.

A policy sees one consistent view and its commands are checked again by the law, so two leaders for a moment,
or a view that is a little old, cost a refusal and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from urllib.parse import quote

import httpx

from ringrift_cluster.api.probes import answers
from ringrift_cluster.batches import batches
from ringrift_cluster.controllers import liveness
from ringrift_cluster.controllers.hung import stop_hung
from ringrift_cluster.controllers.liveness import Suspect
from ringrift_cluster.controllers.placement import place
from ringrift_cluster.controllers.population import populate
from ringrift_cluster.controllers.promotion import judge, rate
from ringrift_cluster.controllers.retention import forget
from ringrift_cluster.controllers.training import train
from ringrift_cluster.controllers.yielding import make_room
from ringrift_cluster.replica import Replica, ReplicaError
from ringrift_cluster.supervise import TaskReport, supervise
from statemachine.commands import MAX_COMMAND_BYTES, Command, encode_command, kind_of, unfit
from statemachine.errors import Code, Rejected
from statemachine.state import State

log = logging.getLogger("ringrift.controllers")

Policy = Callable[[State], list[Command]]

#: name of the controller (as in settings controller/NAME) to its policy and the longest pause between two looks
POLICIES: Mapping[str, tuple[Policy, float]] = {
    "population": (populate, 5.0),
    "placement": (place, 1.0),
    "yielding": (make_room, 5.0),
    "training": (train, 5.0),
    "promotion": (judge, 5.0),
    "rating": (rate, 10.0),
    "retention": (forget, 60.0),
    "hung": (stop_hung, 10.0),
}
#: commands and bytes in one proposal; an entry holds twice the bytes
BATCH = 64
BATCH_BYTES = MAX_COMMAND_BYTES
#: how soon a controller that does not lead looks again whether it does
IDLE_S = 0.25
#: shortest pause between two looks of one controller: on a busy cluster every entry wakes them
BREATH_S = 0.05
#: a policy decides on the thread that keeps the consensus; it may take this share of its time: 1 / (1 + REST)
REST = 29
#: a peer that is asked to probe another one has this long, its own probe included
INDIRECT_TIMEOUT_S = 5.0

#: refusals that mean "somebody was quicker" or "the view was a little old"
RACES = frozenset({Code.CONFLICT, Code.ILLEGAL_TRANSITION, Code.INELIGIBLE, Code.STALE_INCARNATION, Code.EVIDENCE})


class Controllers:
    """All policies of this node; they act only while it leads."""

    def __init__(
        self,
        replica: Replica,
        *,
        http: httpx.AsyncClient,
        policies: Mapping[str, tuple[Policy, float]] = POLICIES,
        monotonic_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._replica = replica
        self._http = http
        self._policies = policies
        self._monotonic_s = monotonic_s
        self._wall_s = wall_s
        self.reports = {name: TaskReport(name) for name in (*policies, "liveness")}
        self.commands = 0
        self.refusals: dict[str, int] = {}

    async def run(self) -> None:
        """Supervise one loop a policy until cancelled."""
        async with asyncio.TaskGroup() as group:
            for name, (policy, every_s) in self._policies.items():
                group.create_task(self._supervised(name, partial(self._loop, name, policy, every_s)))
            group.create_task(self._supervised("liveness", self._liveness))

    async def _supervised(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        await supervise(self.reports[name], run, clock=self._monotonic_s, wall_s=self._wall_s)

    def _leads(self) -> bool:
        status = self._replica.status()
        return status.role == "leader" and status.ready

    async def _loop(self, name: str, policy: Policy, every_s: float) -> None:
        report = self.reports[name]
        while True:
            if not self._leads():
                await asyncio.sleep(IDLE_S)
                continue
            try:
                index, took_s, refused = await self._look(name, policy)
            except ReplicaError as error:
                # Leadership moved, or the queue is full: nothing is lost, the next look decides anew.
                report.bad_rounds += 1
                report.last_error = f"{type(error).__name__}: {error}"
                await asyncio.sleep(IDLE_S)
                continue
            report.rounds += 1
            report.last_run_s = self._wall_s()
            # What was refused in earnest is refused again; each try is an entry, and wakes the other controllers.
            await asyncio.sleep(max(every_s if refused else BREATH_S, REST * took_s))
            await self._replica.wait_for(index + 1, every_s)

    async def _look(self, name: str, policy: Policy) -> tuple[int, float, bool]:
        """One round; returns the index that was looked at, the seconds that the decision took, and whether the law
        refused some of it for another reason than a race."""
        report = self.reports[name]

        def decide(state: State) -> tuple[bool, list[Command], float]:
            began = self._monotonic_s()
            enabled = state.controller(name).enabled
            commands = policy(state) if enabled else []
            return enabled, commands, self._monotonic_s() - began

        seen = await self._replica.read(decide)
        report.enabled, commands, took_s = seen.value
        index = seen.index
        refused = False
        for batch in self._batches(name, commands):
            index, codes = await self._propose(name, batch)
            refused |= not RACES.issuperset(codes)
        return index, took_s, refused

    def _batches(self, name: str, commands: Sequence[Command]) -> Iterator[list[tuple[Command, bytes]]]:
        return batches(self._fit(name, commands), lambda one: len(one[1]), BATCH, BATCH_BYTES)

    def _fit(self, name: str, commands: Sequence[Command]) -> Iterator[tuple[Command, bytes]]:
        """Commands with their wire forms.

        A command that the log could not take is left out, or it would hold up all others of its proposal for ever.
        """
        for command in commands:
            data = encode_command(command)
            if problem := unfit(data):
                self.refusals["unfit"] = self.refusals.get("unfit", 0) + 1
                kind = kind_of(command)
                log.warning("event=command_unfit controller=%s command=%s detail=%s", name, kind, problem)
            else:
                yield command, data

    async def _propose(self, name: str, batch: Sequence[tuple[Command, bytes]]) -> tuple[int, list[str]]:
        """The index of the entry, and the codes of what was refused in it."""
        codes: list[str] = []
        proposed = await self._replica.propose([data for _, data in batch])
        self.commands += len(batch)
        for (command, _), result in zip(batch, proposed.results, strict=True):
            if isinstance(result, Rejected):
                codes.append(result.code)
                self.refusals[result.code] = self.refusals.get(result.code, 0) + 1
                level = logging.DEBUG if result.code in RACES else logging.WARNING
                log.log(
                    level,
                    "event=command_refused controller=%s command=%s code=%s index=%d detail=%s",
                    name,
                    type(command).__name__,
                    result.code,
                    proposed.index,
                    result.detail,
                )
        return proposed.index, codes

    async def _liveness(self) -> None:
        report = self.reports["liveness"]
        while True:
            await asyncio.sleep(IDLE_S * 4)
            if not self._leads():
                continue
            try:
                own = self._replica.status().node_id
                seen = await self._replica.read(partial(liveness.suspects, leader=own))
                heard = await asyncio.gather(*(self._heard_by(suspect, own) for suspect in seen.value))
                pairs = zip(seen.value, heard, strict=True)
                commands = liveness.vouch({(s.peer, s.incarnation): by for s, by in pairs if by})
                # A suspect takes up to two seconds to answer; by then another node may lead, and probes itself.
                for batch in self._batches("liveness", commands) if self._leads() else ():
                    await self._propose("liveness", batch)
            except ReplicaError as error:
                report.bad_rounds += 1
                report.last_error = f"{type(error).__name__}: {error}"
                continue
            report.rounds += 1
            report.last_run_s = self._wall_s()

    async def _heard_by(self, suspect: Suspect, own: str) -> str:
        """The node that the suspect answers, this one before others; empty when it answers nobody."""
        if await answers(self._http, suspect.peer, suspect.address):
            return own
        heard = await asyncio.gather(*(self._is_told(address, suspect.peer) for _, address in suspect.helpers))
        return next((name for (name, _), yes in zip(suspect.helpers, heard, strict=True) if yes), "")

    async def _is_told(self, helper: str, peer: str) -> bool:
        """Whether another node says that the peer answers it."""
        try:
            answer = await self._http.get(f"{helper}/probes/{quote(peer, safe='')}", timeout=INDIRECT_TIMEOUT_S)
            return answer.is_success and answer.json().get("answers") is True
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, AttributeError):
            return False
