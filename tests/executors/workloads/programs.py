"""Starting a workload the way the executor does: as a program, with a folder and a signal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def start(job_dir: Path, workload: str, *words: str) -> subprocess.Popen[str]:
    job_dir.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", f"executors.workloads.{workload}", *words],
        env={**os.environ, "RINGRIFT_JOB_DIR": str(job_dir)},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def result(job_dir: Path) -> dict[str, Any]:
    found = json.loads((job_dir / "result.json").read_text())
    assert isinstance(found, dict)
    return found


def progress(job_dir: Path) -> list[dict[str, Any]]:
    path = job_dir / "progress.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_until(predicate: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not predicate():
        assert process.poll() is None, "the program ended before it got that far"
        assert time.monotonic() < deadline, "the program did not get that far in a minute"
        time.sleep(0.01)
