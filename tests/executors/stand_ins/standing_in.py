"""What the stand-ins share: they have the command lines and the habits of a team's scripts, and do no work."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sqlite3
import sys
import time
import zipfile
from pathlib import Path


def parser(*names: str, flags: tuple[str, ...] = ()) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(allow_abbrev=False)
    for name in names:
        made.add_argument(f"--{name}")
    for name in flags:
        made.add_argument(f"--{name}", action="store_true")
    return made


def guard() -> None:
    """The scripts refuse to start on a busy machine."""
    if os.environ.get("STAND_IN_BUSY"):
        print("resource check failed: load is critical, not starting")
        sys.exit(1)


def board(name: str) -> str:
    if name not in ("square8", "square19", "hex8", "hexagonal"):
        sys.exit(f"error: unknown board {name!r}")
    return name


def pace() -> None:
    time.sleep(float(os.environ.get("STAND_IN_PACE_S", "0")))


def database(path: str, table: str, rows: int) -> None:
    """Rows one by one in WAL mode, as the scripts write them; the file is private to the user."""
    with contextlib.closing(sqlite3.connect(path)) as made:
        made.execute("PRAGMA journal_mode=WAL")
        made.execute(f"CREATE TABLE IF NOT EXISTS {table} (id INTEGER PRIMARY KEY, moves TEXT)")
        Path(path).chmod(0o600)
        for number in range(rows):
            made.execute(f"INSERT INTO {table} (moves) VALUES ('a1 b2')")
            made.commit()
            print(f"game {number + 1}/{rows} done", file=sys.stderr, flush=True)
            pace()


def array(path: str, name: str, length: int) -> None:
    """An NPZ file without NumPy: one array of `length` small integers."""
    text = f"{{'descr': '<i4', 'fortran_order': False, 'shape': ({length},), }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    head = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()
    beside = Path(f"{path}.tmp")
    with zipfile.ZipFile(beside, "w") as archive:
        archive.writestr(f"{name}.npy", head + bytes(4 * length))
    beside.rename(path)


def ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
