"""The directory of one agent on a host: where things lie in it, and who may start anything there."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from executors import shim


class Superseded(Exception):  # noqa: N818
    """Another agent has the host now."""


class Root:
    """As one connection sees it."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.jobs = self.path / "jobs"
        self.files = self.path / "files"
        self.checkpoints = self.path / "checkpoints"
        for directory in (self.path, self.jobs, self.files, self.checkpoints):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._incarnation = -1

    def job(self, name: str) -> Path:
        """The folder of an attempt. Raises ValueError."""
        return self.jobs / _one_part(name)

    def checkpoint(self, name: str) -> Path:
        """The directory that the attempts of one item share. Raises ValueError."""
        return self.checkpoints / _one_part(name)

    def file(self, digest: str) -> Path:
        """Where an input is, or would be. Raises ValueError."""
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise ValueError(f"{digest!r} is no sha256")
        return self.files / digest

    def disk(self) -> tuple[int, int]:
        """Free and total bytes of the disk that it lies on."""
        usage = shutil.disk_usage(self.path)
        return usage.free, usage.total

    def claim(self, incarnation: int) -> None:
        """Be the one that starts here. Raises Superseded."""
        with self.alone("owner"):
            owner = self._owner()
            if owner > incarnation:
                raise Superseded(f"incarnation {owner} has this host, newer than {incarnation}")
            shim.write_whole(str(self.path / "owner"), json.dumps({"incarnation": incarnation}))
            self._incarnation = incarnation

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """While nobody else claims the host. Raises Superseded when somebody has."""
        with self.alone("owner"):
            if self._owner() != self._incarnation:
                raise Superseded("another agent has this host now")
            yield

    def _owner(self) -> int:
        owner = shim.read_record(str(self.path / "owner")) or {}
        return int(owner.get("incarnation", -1))

    @contextlib.contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """While nobody else does the same: an outpost whose connection is dead may not have noticed yet.

        Of an attempt's lock and the owner's, the attempt's is taken first.
        """
        path = self.path / f"{what}.lock"
        while True:
            with path.open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                try:
                    if not os.path.samestat(path.stat(), os.fstat(file.fileno())):
                        continue
                except FileNotFoundError:
                    continue  # who had it before removed it; those who come now make another
                try:
                    yield
                finally:
                    path.unlink()
                return


def _one_part(name: str) -> str:
    if "/" in name or name in ("", ".", ".."):
        raise ValueError(f"{name!r} is no folder of an attempt")
    return name
