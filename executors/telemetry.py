"""What is told of a GPU, from one reading: strangers on it, and coarse steps for the cluster. Pure but for /proc.

    memory in use = ours (processes of attempts and what they started) + strangers' + what the driver names nobody for

The last part is ours while a job of ours has the device: in a container NVML often shows no process, or pids of
the machine outside. While none has it, it is a stranger's, above what drivers keep for themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from msgspec.structs import replace

from executors import processes
from executors.gpus import Reading
from executors.host import GIB
from statemachine.values import Gpu

#: memory that may be in use although no program is (driver contexts)
DRIVER_BYTES = 1 * GIB
#: steps in which the cluster is told: a value is told again when it is more than half a step away
FOREIGN_STEP_BYTES = 1 * GIB
BUSY_STEP_PERCENT = 25
HEAT_STEP_C = 10


@dataclass(frozen=True, slots=True)
class Telemetry:
    """One device in full, for /metrics."""

    gpu: Gpu
    reading: Reading | None
    #: what programs of nobody in this cluster hold
    foreign_bytes: int
    #: memory of an ended job that has not come back
    settling: bool


def strangers(reading: Reading, is_ours: Callable[[int], bool], busy: bool) -> int:
    """Bytes on a device that programs of nobody in this cluster hold. `busy`: a job of ours has the device."""
    named = sum(used or 0 for _, used in reading.processes)
    foreign = sum(used or 0 for pid, used in reading.processes if not is_ours(pid))
    unnamed = reading.used_bytes - named
    if not busy and unnamed > DRIVER_BYTES:
        foreign += unnamed
    return foreign


def is_ours(pid: int, jobs_dir: Path) -> bool:
    """Whether a process belongs to an attempt: it, or one it descends from, has a mark with a folder in `jobs_dir`."""
    marks = tuple(f"{name}={jobs_dir}/".encode() for name in ("RINGRIFT_JOB_DIR", processes.KEEPER))
    try:
        lineage = [pid, *(parent.pid for parent in psutil.Process(pid).parents())]
    except psutil.Error:
        return False
    for number in lineage:
        try:
            environment = Path(f"/proc/{number}/environ").read_bytes()
        except OSError:
            continue
        if any(entry.startswith(marks) for entry in environment.split(b"\0")):
            return True
    return False


def coarse(told: int, now: int, step: int, *, up: bool = True) -> int:
    """The step to tell: what was told last while `now` is within half a step of it, else the next step up (or down)."""
    if abs(now - told) <= step // 2:
        return told
    return -(-now // step) * step if up else now // step * step


def told(gpu: Gpu, reading: Reading | None, foreign: int, before: Gpu | None) -> Gpu:
    """A device as the cluster is told of it; `before` is what it was told last."""
    last = before or Gpu(uuid=gpu.uuid)
    if reading is None:
        return gpu
    return replace(
        gpu,
        foreign_bytes=min(coarse(last.foreign_bytes, foreign, FOREIGN_STEP_BYTES), gpu.memory_bytes),
        busy_percent=coarse(last.busy_percent, reading.utilization_percent or 0, BUSY_STEP_PERCENT),
        temperature_c=coarse(last.temperature_c, reading.temperature_c or 0, HEAT_STEP_C),
    )
