"""The two files and the signal by which a workload speaks to whoever started it."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_STOPPED = 0, 1, 2, 128 + signal.SIGTERM
PROGRESS_EVERY_S = 0.5


class WorkloadError(Exception):
    """The work cannot be done; the text is for the person who asked for it."""


def read_bounded(path: Path, most_bytes: int, what: str) -> bytes:
    """A file of at most so many bytes; `what` it is stands in the error. Raises WorkloadError."""
    try:
        if path.stat().st_size > most_bytes:
            raise WorkloadError(f"The {what} {path} is larger than {most_bytes} bytes.")
        return path.read_bytes()
    except OSError as error:
        raise WorkloadError(f"The {what} {path} cannot be read: {error.strerror}.") from error


class Arguments(argparse.ArgumentParser):
    """A parser that answers a bad argument by one sentence on stderr and exit 2."""

    def __init__(self, program: str, intent: str) -> None:
        super().__init__(prog=f"python -m executors.workloads.{program}", description=intent, allow_abbrev=False)
        self.add_argument("--job-dir", type=Path, help="default: $RINGRIFT_JOB_DIR, else the current folder")
        self.add_argument("--seed", type=whole(0), default=0)
        self.add_argument("--threads", type=whole(1), default=1, help="torch threads")
        self.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; --help lists the arguments.", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


def whole(least: int, most: int = 2**63 - 1) -> Callable[[str], int]:
    """An argparse type: an integer of at least ``least`` and at most ``most``."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not between {least} and {most}")
        return value

    return convert


def real(least: float, most: float) -> Callable[[str], float]:
    """An argparse type: a number from ``least`` to ``most``."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not least <= value <= most:  # also refuses nan
            raise argparse.ArgumentTypeError(f"{text} is not between {least:g} and {most:g}")
        return value

    return convert


class StopSignal:
    """Becomes true when SIGTERM or SIGINT asks the process to end early."""

    def __init__(self) -> None:
        self.requested = False

    def install(self) -> None:
        signal.signal(signal.SIGTERM, self._receive)
        signal.signal(signal.SIGINT, self._receive)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.requested = True


@dataclass
class Job:
    """One run of a workload in its folder: ``out/``, ``checkpoint/``, ``progress.jsonl``, ``result.json``."""

    folder: Path
    clock: Callable[[], float] = time.monotonic
    total: Mapping[str, int] = field(default_factory=dict)
    _reported_at: float | None = None

    @classmethod
    def open(cls, job_dir: Path | None) -> Job:
        """Prepare the folder: an earlier attempt's outputs, progress and result go, its checkpoint stays.

        Raises WorkloadError when the folder cannot be written.
        """
        job = cls(job_dir or Path(os.environ.get("RINGRIFT_JOB_DIR", ".")))
        try:
            job.out.mkdir(parents=True, exist_ok=True)
            job.checkpoint.mkdir(exist_ok=True)
            (job.folder / "result.json").unlink(missing_ok=True)
            (job.folder / "progress.jsonl").write_text("")
        except OSError as error:
            raise WorkloadError(f"The job folder {job.folder} cannot be written: {error.strerror}.") from error
        return job

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def progress(
        self, counts: Mapping[str, int], metrics: Mapping[str, str] | None = None, *, force: bool = False
    ) -> None:
        """Append the running totals, at most one line each PROGRESS_EVERY_S unless ``force``."""
        now = self.clock()
        if not force and self._reported_at is not None and now - self._reported_at < PROGRESS_EVERY_S:
            return
        self._reported_at = now
        line = json.dumps({"counts": dict(counts), "total": dict(self.total), "metrics": dict(metrics or {})})
        with (self.folder / "progress.jsonl").open("a") as file:
            file.write(line + "\n")

    def finish(self, result: Mapping[str, Any]) -> None:
        """Publish ``result.json`` whole: written beside its place, flushed to disk, then renamed."""
        write_atomically(self.folder / "result.json", json.dumps(result, indent=1).encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` so that a reader sees the old bytes or the new ones, also after a crash."""
    beside = path.with_name(path.name + ".partial")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def run(main: Callable[[Sequence[str], StopSignal], int], arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a workload and leave with its exit code; a WorkloadError is one sentence and exit 1."""
    stop = StopSignal()
    stop.install()
    try:
        code = main(sys.argv[1:] if arguments is None else arguments, stop)
    except WorkloadError as error:
        print(error, file=sys.stderr)
        code = EXIT_FAILED
    raise SystemExit(code)
