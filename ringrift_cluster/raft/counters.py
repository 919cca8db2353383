"""Plain counters that the metrics read. One thread writes; readers may see them a moment late."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    frames_in: int = 0
    frames_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    connections: int = 0
    #: messages, greetings and proposals turned away, by reason
    refusals: Counter[str] = field(default_factory=Counter)
    fsyncs: int = 0
    fsync_s: float = 0.0
    fsync_max_s: float = 0.0
    entries_applied: int = 0
    commands_applied: int = 0
    elections: int = 0
    snapshots_written: int = 0
    snapshots_installed: int = 0
    turns: int = 0
    #: longest time the consensus thread was busy in one turn, without waiting for the disk
    turn_max_s: float = 0.0
    #: longest time a 20 ms timer came late
    stall_max_s: float = 0.0
