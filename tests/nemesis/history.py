"""What clients asked for and what they saw: the evidence that the checker judges."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


class Outcome(StrEnum):
    #: an answer came: the operation took effect, or changed nothing and said why, between its two times
    OK = "ok"
    #: certainly nothing was changed
    FAIL = "fail"
    #: it may take effect at any time after its start, or never
    INFO = "info"


@dataclass(slots=True)
class Op:
    """One operation of one client, all its attempts together. Times are monotonic seconds."""

    number: int
    client: str
    #: operations on different keys do not touch each other
    key: str
    kind: str
    args: dict[str, Any]
    invoked_at: float
    #: infinite until an answer came
    returned_at: float = math.inf
    outcome: Outcome = Outcome.INFO
    output: dict[str, Any] = field(default_factory=dict)
    node: str = ""
    attempts: int = 0
    #: attempts before the last one that may have taken effect
    unsure: int = 0
    error: str = ""

    @property
    def writes(self) -> bool:
        return not self.kind.startswith("read")

    def __str__(self) -> str:
        until = f"{self.returned_at:.3f}" if self.returned_at < math.inf else "?"
        seen = self.output if self.outcome is Outcome.OK else self.outcome
        return f"{self.invoked_at:.3f}..{until} {self.client} {self.kind} {self.args} -> {seen} ({self.node})"


class History:
    """All operations of a run; `write` puts their events into a file, one JSON object a line."""

    def __init__(self) -> None:
        self.ops: list[Op] = []

    def invoke(self, client: str, key: str, kind: str, args: dict[str, Any], now: float) -> Op:
        op = Op(len(self.ops), client, key, kind, args, now)
        self.ops.append(op)
        return op

    def by_key(self) -> dict[str, list[Op]]:
        """What the checker has to fit together; operations that certainly changed nothing are left out."""
        keys: dict[str, list[Op]] = {}
        for op in self.ops:
            if op.outcome is not Outcome.FAIL:
                keys.setdefault(op.key, []).append(op)
        return keys

    def acknowledged(self) -> Iterator[Op]:
        """Writes that were answered well."""
        return (op for op in self.ops if op.outcome is Outcome.OK and op.writes and "refused" not in op.output)

    def write(self, path: Path) -> None:
        events = [(op.invoked_at, "invoke", op) for op in self.ops]
        events += [(op.returned_at, str(op.outcome), op) for op in self.ops if op.returned_at < math.inf]
        events.sort(key=lambda event: event[0])
        with path.open("w", encoding="utf-8") as out:
            for at, what, op in events:
                out.write(json.dumps(_event(at, what, op)) + "\n")


def _event(at: float, what: str, op: Op) -> dict[str, Any]:
    head = {"at": round(at, 6), "event": what, "op": op.number, "client": op.client, "key": op.key, "kind": op.kind}
    if what == "invoke":
        return head | {"args": op.args}
    tail = {"node": op.node, "attempts": op.attempts, "unsure": op.unsure}
    return head | {"output": op.output, **tail, **({"error": op.error} if op.error else {})}
