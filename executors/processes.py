"""The keepers of this machine's attempts, in the node's own types (see `keepers` for how they live)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct, convert
from msgspec import ValidationError as Misshapen

from executors import keepers, shim
from executors.keepers import (
    KEEPER,
    Identity,
    alive,
    end,
    end_leftovers,
    keeper_of,
    kill,
    marked,
    put_down,
    reap,
    start_ticks,
    stop,
)

__all__ = [
    "KEEPER",
    "Exit",
    "Identity",
    "Order",
    "alive",
    "end",
    "end_leftovers",
    "exit_record",
    "gone",
    "keeper_of",
    "kill",
    "marked",
    "put_down",
    "renew",
    "start",
    "start_ticks",
    "stop",
]

#: a keeper is asked for its end this often where the kernel offers no notice of it (macOS)
POLL_S = 0.25


class Order(Struct, frozen=True):
    """What a keeper is told: the program and the terms of its life."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    nice: int = 0
    grace_s: float = 60.0
    #: the group is dead this long before the lease is over
    margin_s: float = 5.0
    max_log_bytes: int = 16 * 1024 * 1024
    #: a command for later, which the keeper leaves alone: it prints the result
    result: tuple[str, ...] = ()
    #: cores that the program may use; empty: any
    cpus: tuple[int, ...] = ()


class Exit(Struct, frozen=True):
    """How an attempt's program ended, in its keeper's words."""

    code: int
    signal: int
    #: exited, stop, kill, lease or spawn
    cause: str
    error: str = ""
    oom: bool = False
    started_at_s: float = 0.0
    ended_at_s: float = 0.0


def start(job_dir: Path, order: Order, lease_ends_at_s: float, boot_id: str) -> Identity:
    """Start a keeper for the program in a session of its own. Raises OSError.

    The folder must exist; the order and the lease are written to it before the keeper starts.
    """
    return keepers.start(job_dir, msgspec.to_builtins(order), lease_ends_at_s, boot_id)


def exit_record(job_dir: Path) -> Exit | None:
    """What the keeper wrote when the program had ended; None when it wrote nothing."""
    record = shim.read_record(str(job_dir / "exit.json"))
    try:
        return convert(record, Exit) if record is not None else None
    except Misshapen:
        return None


def renew(job_dir: Path, ends_at_s: float) -> None:
    """Move the end of an attempt's lease. Raises OSError."""
    shim.write_lease(str(job_dir), ends_at_s)


async def gone(process: Identity, boot_id: str) -> None:
    """Return when the process does not run (any more), ours or adopted."""
    if not hasattr(os, "pidfd_open"):
        while alive(process, boot_id):
            reap(process.pid)
            await asyncio.sleep(POLL_S)
        reap(process.pid)
        return
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    try:
        if alive(process, boot_id):
            loop.add_reader(fd, ended.set)
            await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    reap(process.pid)
