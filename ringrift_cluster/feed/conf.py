"""What a follower is told when it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FollowerConfig:
    """Who this follower is and whom it follows. `voters` maps node ids to "http://host:port"."""

    node_id: str
    voters: Mapping[str, str]
    data_dir: Path
    token: str | None = None
    #: a fresh read is at most this old
    fresh_s: float = 5.0
    #: a stream is opened anew after so long, which sets the two clocks by each other again
    stream_s: float = 300.0
    #: a barrier gives up after this time
    barrier_s: float = 5.0
    #: a voter that has not heard its leader for this long is left for another one
    leave_after_s: float = 3.0
    #: between failed attempts, jittered
    backoff_s: float = 0.1
    backoff_cap_s: float = 3.0
    #: an own snapshot is written after so many applied entries
    snapshot_every_entries: int = 10_000
    #: applied entries kept for followers of this follower
    window_entries: int = 20_000
    window_bytes: int = 32 * 1024 * 1024
