"""How the interpreter of a node process is set, for two busy threads and for years of work."""

from __future__ import annotations

import gc
import sys

#: How long one thread may keep the interpreter from another that wants it. Each system call of the consensus
#: thread gives it away, so with Python's 5 ms a turn of a busy voter took a dozen times that.
SWITCH_S = 0.0005


def tune() -> None:
    """Once, when everything is imported: that lives as long as the process."""
    sys.setswitchinterval(SWITCH_S)
    leave_alone()


def leave_alone() -> None:
    """The collector looks no more at what is there now: modules, or the rows of a state that was loaded."""
    gc.collect()
    gc.freeze()
