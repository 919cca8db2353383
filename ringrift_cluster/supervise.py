"""Background tasks of a node: each fails alone, is counted, and is started again.

A task that ends or raises is restarted after a pause that grows from a fraction of a second to half a minute, and
shrinks again once it has run for a while. Nothing is swallowed: the error is logged in one line, kept for
`/status` and counted for `/metrics`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

log = logging.getLogger("ringrift.supervise")

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 30.0
#: a run of this length counts as healthy and resets the pause
HEALTHY_S = 60.0


@dataclass
class TaskReport:
    """What is known of one supervised task; times are wall-clock seconds."""

    name: str
    enabled: bool = True
    running: bool = False
    failures: int = 0
    last_run_s: float = 0.0
    last_error: str = ""
    #: rounds of its own loop that went well and that did not
    rounds: int = 0
    bad_rounds: int = 0

    @property
    def success_rate(self) -> float:
        """Per cent of rounds that went well; 100 before the first."""
        total = self.rounds + self.bad_rounds
        return 100.0 * self.rounds / total if total else 100.0


async def supervise(
    report: TaskReport,
    run: Callable[[], Awaitable[None]],
    *,
    clock: Callable[[], float],
    wall_s: Callable[[], float],
) -> None:
    """Run a task for ever; ends only by cancellation."""
    pause = FIRST_PAUSE_S
    while True:
        began = clock()
        report.running = True
        report.last_run_s = wall_s()
        try:
            await run()
        except Exception as error:  # the one place where any failure becomes a fact about its task
            report.failures += 1
            report.bad_rounds += 1
            report.last_error = f"{type(error).__name__}: {error}"
            log.exception("event=task_failed task=%s failures=%d", report.name, report.failures)
        finally:
            report.running = False
        if clock() - began > HEALTHY_S:
            pause = FIRST_PAUSE_S
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(pause * 2, LONGEST_PAUSE_S)
