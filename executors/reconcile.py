"""What has to be done so that this machine looks like the committed jobs. Pure.

    committed        here            action
    run              nothing         start it, if there is room; else wait
    run, "running"   nothing         say that it is lost: no process survived
    run              preparing       -
    run              running         stop it when it ran longer than it may, else -
    run              waiting         start it again when it is time and there is room; when it should not be
                                     started here any more, report what it failed of; else -
    stop             nothing         hand it back
    stop             preparing       abandon it and hand it back
    stop             running         stop it with its grace
    stop             waiting         report what it failed of
    anything         stopping        kill it when the grace is long over
    anything         ended, reported -
    not ours         anything        kill it and forget it; its files stay unpublished
    anything         told lately     -

Doing nothing is always safe: the next pass sees the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

#: a keeper kills by itself; the agent only steps in when it has not done so by then
OVERDUE_S = 5.0


class Phase(StrEnum):
    #: inputs are being fetched, nothing runs yet
    PREPARING = "preparing"
    #: the keeper is alive
    RUNNING = "running"
    #: the keeper was told to end its program
    STOPPING = "stopping"
    #: its program failed and is started again in a while; nothing runs
    WAITING = "waiting"
    #: nothing runs any more; outputs and report are under way
    ENDED = "ended"
    #: the cluster has answered the report; kept until the committed jobs show it
    REPORTED = "reported"


class Kind(StrEnum):
    START = "start"
    #: start the program of an attempt again
    RESTART = "restart"
    #: report the failure that a restart was to heal
    GIVE_UP = "give_up"
    STOP = "stop"
    KILL = "kill"
    #: give back what never ran
    RELEASE = "release"
    #: report a failure of something that is not here
    LOST = "lost"
    FORGET = "forget"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A live job of this node as committed."""

    job: str
    fence: int
    work: str
    #: desired run, else stop
    run: bool = True
    #: the cluster believes that its process runs
    started: bool = False
    timeout_s: float = 0.0
    gpus: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """An attempt that this machine knows."""

    job: str
    fence: int
    work: str
    phase: Phase
    started_at_s: float = 0.0
    #: when its stop should be through at the latest
    stop_by_s: float = 0.0
    gpus: tuple[str, ...] = ()
    #: when it was called off or killed; it is not told again at every pass
    told_at_s: float = 0.0
    #: when a waiting one may start again, and when its lease is over
    due_s: float = 0.0
    lease_ends_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Room:
    """What the machine still takes."""

    processes: int = 1_000_000
    #: starts allowed in this pass by the spawn rate
    starts: int = 1_000_000
    #: why nothing may start just now although it could soon; empty when it may
    wait: str = ""
    #: why this node refuses to start anything; empty when it does not
    refusal: str = ""
    #: GPUs whose memory has not come back yet
    unsettled_gpus: frozenset[str] = frozenset()
    #: attempts that may be begun in this pass, whatever runs here
    fresh: int = 1_000_000
    #: why what failed here should go on elsewhere; empty when it may be started again here
    elsewhere: str = ""
    #: GPUs that get no new work
    closed_gpus: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Action:
    kind: Kind
    job: str
    fence: int
    reason: str


def plan(desired: Sequence[Wanted], actual: Sequence[Held], now: float, room: Room) -> list[Action]:
    """Actions in the order of their performance: endings first, then starts by age of the grant.

    `now` is on the clock of `started_at_s`.
    """
    wanted = {(w.job, w.fence): w for w in desired}
    held = {(h.job, h.fence): h for h in actual}
    actions = [a for h in actual for a in _for_held(h, wanted.get((h.job, h.fence)), now)]
    fresh = sorted((w for k, w in wanted.items() if k not in held), key=lambda w: w.fence)
    busy = set(room.unsettled_gpus)
    ending: set[str] = set()
    occupied = 0
    for h in actual:
        if h.phase in (Phase.PREPARING, Phase.RUNNING, Phase.STOPPING, Phase.WAITING):
            occupied += 1
            ending.add(h.work)
        # What shares a GPU by decision of the cluster is no obstacle, what is leaving one is.
        if (h.job, h.fence) not in wanted or h.phase not in (Phase.PREPARING, Phase.RUNNING, Phase.WAITING):
            busy.update(h.gpus)
    free, starts = min(room.processes - occupied, room.fresh), room.starts
    for h in sorted((h for h in actual if h.phase is Phase.WAITING), key=lambda h: h.due_s):
        reason = _over(h, wanted.get((h.job, h.fence)), now, room)
        if reason:
            actions.append(Action(Kind.GIVE_UP, h.job, h.fence, reason))
        elif (h.job, h.fence) in wanted and now >= h.due_s and not room.wait and starts > 0 and not busy & set(h.gpus):
            actions.append(Action(Kind.RESTART, h.job, h.fence, "its program failed, and its wait is over"))
            starts -= 1
    for w in fresh:
        if not w.run:
            if w.started:
                actions.append(Action(Kind.LOST, w.job, w.fence, "told to stop, and no process of it is here"))
            else:
                actions.append(Action(Kind.RELEASE, w.job, w.fence, w.reason or "told to stop before it started"))
        elif w.started:
            actions.append(Action(Kind.LOST, w.job, w.fence, "no process of it survived on this node"))
        elif room.refusal:
            actions.append(Action(Kind.RELEASE, w.job, w.fence, room.refusal))
        elif not room.wait and free > 0 and starts > 0 and w.work not in ending and not busy & set(w.gpus):
            actions.append(Action(Kind.START, w.job, w.fence, "granted to this node"))
            ending.add(w.work)
            free, starts = free - 1, starts - 1
    return actions


def _for_held(held: Held, wanted: Wanted | None, now: float) -> list[Action]:
    def act(kind: Kind, reason: str) -> list[Action]:
        return [Action(kind, held.job, held.fence, reason)]

    told_long_ago = not held.told_at_s or now > held.told_at_s + OVERDUE_S
    if wanted is None:
        if held.phase in (Phase.RUNNING, Phase.STOPPING) and told_long_ago:
            return act(Kind.KILL, "it is no longer assigned to this node under this fence")
        if held.phase in (Phase.PREPARING, Phase.WAITING, Phase.ENDED) and not held.told_at_s:
            return act(Kind.FORGET, "it is no longer assigned to this node under this fence")
        return []
    if held.phase is Phase.STOPPING and now > held.stop_by_s + OVERDUE_S and told_long_ago:
        return act(Kind.KILL, "it did not end within its grace")
    if not wanted.run and held.phase is Phase.PREPARING and not held.told_at_s:
        return act(Kind.RELEASE, wanted.reason or "told to stop before it started")
    if not wanted.run and held.phase is Phase.RUNNING:
        return act(Kind.STOP, wanted.reason or "told to stop")
    if held.phase is Phase.RUNNING and wanted.timeout_s and now - held.started_at_s >= wanted.timeout_s:
        return act(Kind.STOP, f"it ran for {wanted.timeout_s:g} s, its limit")
    return []


def _over(held: Held, wanted: Wanted | None, now: float, room: Room) -> str:
    """Why a waiting attempt is not started again; empty when it is, or when it is not ours any more."""
    if wanted is None:
        return ""
    if not wanted.run:
        return wanted.reason or "told to stop"
    if wanted.timeout_s and now - held.started_at_s >= wanted.timeout_s:
        return f"its {wanted.timeout_s:g} s are over"
    if now >= held.lease_ends_s:
        return "its lease is over"
    if closed := room.closed_gpus & set(held.gpus):
        return f"its GPU {min(closed)} gets no new work"
    return room.refusal or room.elsewhere
