"""Whether a program that failed is started again where it is, or reported, so that the cluster decides. Pure.

    it failed                               answer
    and its template has no policy          reported
    told to stop, or its lease was over     reported: it did not fail by itself
    and something of it is still there      reported: two programs of one job never run side by side
    oom, preempted, timeout, no_output ...  reported: it would end like that again, or nobody wants it here
    of a class the policy does not name     reported
    as often as the policy allows           reported
    and its lease is over                   reported: the job may be somebody else's by now
    with too little of its time left        reported
    else                                    started again, after a wait that doubles, and a bit of chance

The wait is for what may be over by then. A verdict ("below threshold") is a result and never comes here.
"""

from __future__ import annotations

from dataclasses import dataclass

from executors.processes import Exit
from statemachine.settings import Restart

#: failures after which nothing is tried again here, whatever a template says, and why
NEVER = {
    "oom": "memory would run out again where it did",
    "preempted": "somebody on this machine wants it gone",
    "timeout": "its time is over",
    "no_output": "it ended well and would make nothing again",
    "lost": "no process of it is left",
    "stopped": "it was told to stop",
}
#: how a program ends by itself: it exits, or cannot be started at all
BY_ITSELF = frozenset({"exited", "spawn"})


@dataclass(frozen=True, slots=True)
class Failed:
    """A program that failed. Times are boot-time seconds."""

    error_class: str
    #: starts again so far, under this job
    restarts: int
    #: nobody told it to end, and no lease ended it
    by_itself: bool
    #: no process of it is there any more
    gone: bool
    #: when the keeper of a running program would have to end it
    lease_ends_s: float
    #: when the job's time is over; 0 is never
    limit_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Again:
    """Start it again when the time has come."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Report the failure."""

    reason: str


def by_itself(ended: Exit | None, stop_cause: str) -> bool:
    """Whether an ended program was told by nobody of ours; a keeper that left no record told it nothing."""
    return not stop_cause and (ended is None or ended.cause in BY_ITSELF)


def decide(policy: Restart | None, failed: Failed, now_s: float, draw: float) -> Again | GiveUp:
    """What to do about a failure. `draw` is a random number, at least 0 and below 1."""
    if policy is None or not policy.attempts:
        return GiveUp("its template asks for no restart")
    if not failed.by_itself:
        return GiveUp("it was told to end")
    if not failed.gone:
        return GiveUp("some of its processes did not disappear after SIGKILL")
    if failed.error_class in NEVER:
        return GiveUp(f"{failed.error_class}: {NEVER[failed.error_class]}")
    if failed.error_class not in policy.on:
        return GiveUp(f"its template asks for no restart after {failed.error_class}")
    if failed.restarts >= policy.attempts:
        return GiveUp(f"it was started again {failed.restarts} times, as often as its template allows")
    if now_s >= failed.lease_ends_s:
        return GiveUp("its lease is over")
    delay_s = wait_s(policy, failed.restarts, draw)
    if failed.limit_s and now_s + delay_s >= failed.limit_s:
        return GiveUp("its time would be over before it could start again")
    return Again(delay_s)


def wait_s(policy: Restart, restarts: int, draw: float) -> float:
    """Seconds before the next start: doubled with each one up to the cap, then up to the jitter longer."""
    wait_ms = min(policy.delay_ms << restarts, policy.cap_ms)
    return wait_ms * (1 + policy.jitter_percent / 100 * draw) / 1000


def told_of(restarts: int, error: str) -> str:
    """The words of a failure, and how many restarts it came after."""
    if not restarts:
        return error
    return f"after {restarts} restart{'s' if restarts > 1 else ''} on its node: {error}"
