"""This machine: its name, size, free disk, and its boot-time clock."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from executors import apple, shim
from statemachine.values import Gpu

GIB = 1024**3


class HostClock:
    """The real clock. Boot-time seconds go on while the machine is suspended."""

    def boot_s(self) -> float:
        return shim.boot_s()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000


@cache
def boot_id() -> str:
    """A text that changes with every boot of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return _sysctl("kern.bootsessionuuid") or f"boot-{psutil.boot_time():.0f}"


def _sysctl(name: str) -> str:
    """A text from sysctl on macOS; empty elsewhere."""
    if platform.system() != "Darwin":
        return ""
    library = ctypes.CDLL(None)
    buffer = ctypes.create_string_buffer(256)
    size = ctypes.c_size_t(len(buffer))
    failed = library.sysctlbyname(name.encode(), buffer, ctypes.byref(size), None, 0)
    return "" if failed else buffer.value.decode()


@dataclass(frozen=True, slots=True)
class Facts:
    hostname: str
    platform: str
    cpu_cores: int
    ram_bytes: int
    disk_bytes: int
    #: GPUs that NVML does not know
    metal: tuple[Gpu, ...] = ()


@dataclass(frozen=True, slots=True)
class Disk:
    free_bytes: int
    total_bytes: int


def facts(data_dir: Path) -> Facts:
    """What does not change while the process runs. The disk is the one that holds `data_dir`."""
    ram_bytes = psutil.virtual_memory().total
    return Facts(
        hostname=platform.node()[:256],
        platform=f"{sys.platform}-{platform.machine()}",
        cpu_cores=usable_cores(),
        ram_bytes=ram_bytes,
        disk_bytes=shutil.disk_usage(data_dir).total,
        metal=apple.metal(platform.system(), platform.machine(), _sysctl("machdep.cpu.brand_string"), ram_bytes),
    )


def usable_cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def job_cpus(reserve: int) -> tuple[int, ...]:
    """The cores that jobs may use when the first `reserve` usable ones are kept free of them; empty: any.

    One core is always left to them. Without affinity in the kernel (macOS) nothing is kept free.
    """
    if not reserve or not hasattr(os, "sched_getaffinity"):
        return ()
    usable = sorted(os.sched_getaffinity(0))
    return tuple(usable[reserve:] or usable[-1:])


@dataclass(frozen=True, slots=True)
class DiskFloor:
    """A disk is low when its free space is under the share and under the size.

    A share alone refuses work with hundreds of free gigabytes on a large disk, a size alone on every small one.
    """

    percent: float = 10.0
    free_bytes: int = 20 * GIB

    def shortage(self, free: int, total: int, was_low: bool = False) -> str:
        """Why the disk is low, or an empty text. Once low it stays so until a fifth above the floor."""
        slack = 1.2 if was_low else 1.0
        share = 100.0 * free / max(total, 1)
        if share >= self.percent * slack or free >= self.free_bytes * slack:
            return ""
        return (
            f"low disk: {free / GIB:.1f} GiB free ({share:.1f} %), the floor is "
            f"{self.free_bytes / GIB:.1f} GiB and {self.percent:g} %"
        )

    def above(self, disk: Disk) -> int:
        """Free bytes of a disk that may be used before it is low."""
        return max(disk.free_bytes - min(int(disk.total_bytes * self.percent / 100), self.free_bytes), 0)
