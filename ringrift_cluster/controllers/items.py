"""Work items as the policies make them: a stage's parameters, a name and a seed that follows from the name."""

from __future__ import annotations

import hashlib

from statemachine.commands import AddWork
from statemachine.settings import Stage
from statemachine.values import Input


def seed_of(name: str) -> str:
    """A seed below 2^31 that is the same wherever and whenever the item is made."""
    return str(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") >> 1)


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
