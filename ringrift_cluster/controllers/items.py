"""Work items as the policies make them: a stage's parameters, a name and a seed that follows from the name."""

from __future__ import annotations

import hashlib

from statemachine import queries
from statemachine.commands import AddWork
from statemachine.rows import OPEN_WORK, Actual, Desired, Job, Work, WorkStatus
from statemachine.settings import Stage
from statemachine.state import State
from statemachine.values import Input


def seed_of(name: str) -> str:
    """A seed below 2^31 that is the same wherever and whenever the item is made."""
    return str(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") >> 1)


#: an item that became a dead letter is made again under the next number after this
RETRY_AFTER_MS = 600_000

#: what nobody could deliver for this long is given up; a node that is started anew is back by then
GIVE_UP_AFTER_MS = 1_800_000
STRANDED = "an input of it is a file that nobody can deliver any more"


def given_up(state: State, digest: str) -> bool:
    """Whether a file has no holder, or only nodes that have been silent for so long that nothing waits for them.

    What an object store has is never given up, nor what a worker has that is no node: one that claims may still use it.
    """
    row = state.artifacts.get(digest)
    if row is None:
        return False
    holders = [state.peers.get(holder) for holder in row.holders]
    since = state.now_ms - GIVE_UP_AFTER_MS
    return all(p is not None and p.status not in queries.THERE and p.heard_at_ms <= since for p in holders)


def stranded(state: State, row: Work) -> bool:
    """Whether a pending item waits for a file that was given up."""
    return row.status is WorkStatus.PENDING and any(given_up(state, i.digest) for i in row.spec.inputs)


def next_try(state: State, stem: str) -> str | None:
    """The name under which an item may be made now: the first number behind `stem` that is free.

    None while the last one is open, and for a while after it failed: whatever made it fail gets time to be mended, and
    the loop goes on by itself afterwards.
    """
    number = 0
    last = None
    while (row := state.work.get(f"{stem}-{number}")) is not None:
        last = row
        number += 1
    if last is not None and (last.status in OPEN_WORK or state.now_ms < last.finished_at_ms + RETRY_AFTER_MS):
        return None
    return f"{stem}-{number}"


def item(
    name: str,
    work_type: str,
    config: str,
    stage: Stage,
    *,
    params: dict[str, str] | None = None,
    inputs: tuple[Input, ...] = (),
    unique: str = "",
    gauntlet: str = "",
) -> AddWork:
    """One item of a stage; `params` win over the stage's own."""
    return AddWork(
        work=name,
        work_type=work_type,
        config=config,
        priority=stage.priority,
        template=stage.template,
        params={**stage.params, "seed": seed_of(name), **(params or {})},
        inputs=inputs,
        needs=stage.needs,
        max_attempts=stage.max_attempts,
        timeout_ms=stage.timeout_ms,
        unique=unique,
        gauntlet=gauntlet,
    )


def stand_in(state: State, row: Work, peer: str, gpus: tuple[str, ...]) -> Job:
    """A job as it will be, so that the rest of the pass counts what it takes."""
    return Job(
        job="",
        work=row.work,
        work_type=row.spec.work_type,
        config=row.spec.config,
        peer=peer,
        incarnation=0,
        fence=0,
        desired=Desired.RUN,
        actual=Actual.PENDING,
        granted_at_ms=0,
        lease_ms=1,
        renewed_at_ms=0,
        needs=state.needs_of(row.spec),
        timeout_ms=1,
        gpus=gpus,
    )
