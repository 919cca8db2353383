"""The starts of one attempt's program: how many there were, of what the last failed, when the next is due.

    it failed -> decide -> the cluster knows -> the ledger knows -> wait -> the log says it is still ours -> start

All under one job, one fence and one lease. A node process that dies between two of these goes on from the ledger;
what only the cluster knows is announced to it again, as the same restart.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

import msgspec

from executors import restarts
from executors.bench import Bench
from executors.ledger import Entry, LedgerError
from executors.outcome import Failure
from executors.processes import Exit
from executors.restarts import Failed, GiveUp
from executors.steps import Steps
from statemachine.commands import Command, ReportJob, RestartJob
from statemachine.errors import Done, Result
from statemachine.rows import Actual, Desired, Job
from statemachine.settings import Restart

log = logging.getLogger(__name__)

#: last words that the cluster is told of a failure after which the program is started again
MAX_WORDS = 1000

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Failure).decode


class Tries:
    """`report` proposes a command until it is answered; None when the job is not ours any more."""

    def __init__(self, bench: Bench, job: Job, report: Callable[[Command], Awaitable[Result | None]]) -> None:
        #: starts after the first, the one that is waited for included
        self.restarts = 0
        #: what the last start failed of, of those that were followed by another
        self.failed: Failure | None = None
        #: when the next is due; 0 while none is waited for
        self.due_s = 0.0
        self._bench = bench
        self._job = job
        self._key = job.job, job.fence
        self._report = report
        self._turn = asyncio.Event()

    def take_up(self, entry: Entry) -> None:
        """Go on from what the ledger says. Raises msgspec.MsgspecError."""
        self.restarts, self.due_s = entry.restarts, entry.due_s
        self.failed = _decode(entry.failure) if entry.failure else None

    @property
    def folder(self) -> int:
        """The number of the folder in which the last start was made."""
        return self.restarts - bool(self.due_s)

    @property
    def lease_ends_s(self) -> float:
        """When a keeper would have to end the program.

        Before the cluster has heard this node process that is not known here: its answers say then whose the job is.
        """
        if not self._bench.heard_s:
            return math.inf
        return self._bench.heard_s + self._job.lease_ms / 1000 - self._bench.margin_s

    async def another(
        self, policy: Restart, failure: Failure, ended: Exit | None, stop_cause: str, *, gone: bool, began_s: float
    ) -> bool:
        """Whether there will be another start; the cluster and the ledger know of it then.

        `gone` says that nothing of the failed one is there any more, `began_s` when the first was made.
        """
        failed = Failed(
            error_class=failure.error_class,
            restarts=self.restarts,
            by_itself=restarts.by_itself(ended, stop_cause),
            gone=gone,
            lease_ends_s=self.lease_ends_s,
            limit_s=began_s + self._job.timeout_ms / 1000 if self._job.timeout_ms else 0.0,
        )
        now_s = self._bench.clock.boot_s()
        answer = restarts.decide(policy, failed, now_s, random.random())
        if isinstance(answer, GiveUp):
            reason = answer.reason
        else:
            reason = await self._announce(failure, now_s + answer.delay_s)
        if reason:
            log.info("event=job_not_restarted job=%s fence=%d restarts=%d reason=%s", *self._key, self.restarts, reason)
            return False
        log.warning(
            "event=job_restart_waits job=%s fence=%d restart=%d of=%d wait_s=%.1f error_class=%s error=%s",
            *self._key, self.restarts, policy.attempts, self.due_s - now_s, failure.error_class, failure.error[:200],
        )  # fmt: skip
        return True

    async def _announce(self, failure: Failure, due_s: float) -> str:
        """Let the cluster know, then the ledger; answers why there is no restart after all."""
        count, words = self.restarts + 1, failure.error[:MAX_WORDS] or "it failed without a word"
        command = RestartJob(*self._key, count, failure.error_class, words, self._bench.clock.wall_ms())
        if hindrance := _hindrance(await self._report(command)):
            return hindrance
        try:
            self._bench.ledger.waits(*self._key, count, due_s, _encode(failure))
        except LedgerError as error:
            return str(error)
        self.restarts, self.failed, self.due_s = count, failure, due_s
        return ""

    def turn(self) -> None:
        """The next start may be made."""
        self._turn.set()

    async def wait(self, steps: Steps) -> None:
        """Until its turn comes. Raises CancelledError when it is called off."""
        await steps.take(self._turn.wait())

    async def hindrance(self) -> str:
        """Why the next start must not be made, by the log's own word; empty when it may.

        A job that was given away during the wait would else run here for as long as it takes to hear of that.
        """
        answer = await self._report(ReportJob(*self._key, Actual.RUNNING, self._bench.clock.wall_ms()))
        hindrance = _hindrance(answer)
        return hindrance or ("its lease is over" if self._bench.clock.boot_s() >= self.lease_ends_s else "")

    def begin(self) -> None:
        """The next start is being made: the wait is over."""
        self.due_s = 0.0
        self._turn.clear()

    def told(self, failure: Failure) -> Failure:
        """A failure that is reported, with the restarts it came after."""
        return replace(failure, error=restarts.told_of(self.restarts, failure.error))

    def called_off(self, failure: Failure, reason: str) -> Failure:
        """The failure that is reported because it is not healed by another start."""
        log.info("event=job_not_restarted job=%s fence=%d restarts=%d reason=%s", *self._key, self.folder, reason)
        text = f"it was not started again ({reason}): {failure.error}"
        return replace(failure, error=restarts.told_of(self.folder, text))


def _hindrance(answer: Result | None) -> str:
    """Why a job must not go on, by the answer to what was said of it; empty when it may."""
    if not isinstance(answer, Done):
        return answer.detail if answer is not None else "it is not ours any more"
    return "told to stop" if answer.value == Desired.STOP else ""
