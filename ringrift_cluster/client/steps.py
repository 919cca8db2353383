"""The words between a flow, which decides, and a driver, which does: nothing in here touches a socket.

A flow is a generator that yields steps and is sent their replies; blocking and awaiting clients drive the
same flows.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Send:
    """Make one request and read the whole answer. Reply: Answer or Failed."""

    method: str
    url: str
    params: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Open:
    """Make one request and keep its answer open. Reply: Answer (its body read unless it is 200) or Failed."""

    request: Send


@dataclass(frozen=True, slots=True)
class Next:
    """Read on from what was opened. Reply: bytes, None at the end, or Failed."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait. Reply: None."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Emit(Generic[T]):
    """Hand one value to the caller. Reply: None."""

    value: T


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """There is no answer. `sent` is false when the request certainly did not arrive."""

    reason: str
    sent: bool


Step = Send | Open | Next | Pause | Emit[Any]
Flow = Generator[Step, Any, T]
