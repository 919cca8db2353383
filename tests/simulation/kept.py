"""Seeds that once broke, with what it was. Each runs with every test run."""

from __future__ import annotations

from tests.simulation.plan import WEIGHTS
from tests.simulation.run import Options

#: kinds of faults that came later: with them in the draw, an earlier seed is another story
_LATER = ("two_changes", "return_unapplied", "crash_installing", "crash_compacting")
_FIRST = Options(kinds=tuple(kind for kind in WEIGHTS if kind not in _LATER))

KEPT: dict[str, tuple[int, Options]] = {
    "a follower without a state waited 30 s for a voter behind a partition to accept its connection": (1007, _FIRST),
    "a voter that joined while entries were counted was sent what it lacked, too": (10075, _FIRST),
    "a leader counted by one list of voters and appended the next one in the same turn": (10281, _FIRST),
    "a suspect answered a leader's probe when that no longer led, and was vouched for all the same": (10300, _FIRST),
    "a machine that joined for the third time found the files of its second life": (
        30015,
        Options(
            kinds=(
                *("pause", "one_way", "bridge", "partition", "return_late", "transfer", "flap", "slow_network"),
                *("voters", "isolate_leader", "diverge", "stale_reply"),
            )
        ),
    ),
    "a voter whose disk was full when it started again": (
        30109,
        Options(
            kinds=(
                *("crash_writing", "crash_all", "crash_leader", "slow_disk", "full_disk", "snapshot"),
                *("crash_installing", "crash_compacting", "catch_unsynced", "succession"),
            )
        ),
    ),
    "a disk was lost while a removal was under way that left two voters, who both had to be there": (
        30518,
        Options(
            kinds=(
                *("voters", "wipe", "return_empty", "two_changes", "return_unapplied", "crash", "crash_all"),
                *("transfer", "partition", "snapshot", "crash_installing", "crash_compacting"),
            )
        ),
    ),
    "a turn was held up between two looks at the clock, and a log that joined led a cluster of its own": (
        1,
        Options(held_up_s=0.05),
    ),
    "a voter was named while a lagging one answered its greeting, and took itself for removed": (30928, Options()),
}
