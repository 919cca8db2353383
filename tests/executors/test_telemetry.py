from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from executors.apple import metal
from executors.gpus import Reading
from executors.telemetry import coarse, is_ours, strangers, told
from statemachine.values import Gpu

GIB = 1 << 30


def reading(used: int, *programs: tuple[int, int | None]) -> Reading:
    return Reading(used * GIB, 80 * GIB, 40, 50, processes=programs)


@pytest.mark.parametrize(
    ("look", "busy", "foreign"),
    [
        (reading(1), False, 0),  # what a driver keeps for itself
        (reading(9, (1, 8 * GIB)), True, 0),  # ours
        (reading(9, (1, 4 * GIB), (2, 4 * GIB)), True, 4),  # ours and a stranger's
        (reading(9, (2, 8 * GIB)), False, 8),
        (reading(9, (2, None)), True, 0),  # it may be ours, by the pid of another namespace
        (reading(9, (2, None)), False, 9),
        (reading(30), True, 0),  # a container without a list of programs
        (reading(30), False, 30),
    ],
)
def test_memory_of_strangers_is_told_from_ours(look: Reading, busy: bool, foreign: int) -> None:
    assert strangers(look, lambda pid: pid == 1, busy) == foreign * GIB


def test_what_an_attempt_started_is_ours_however_deep_and_whatever_its_environment(tmp_path: Path) -> None:
    inner = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], env={})"
    leaf = "import os; print(os.getpid(), flush=True); input()"
    environment = {"RINGRIFT_JOB_DIR": str(tmp_path / "jobs" / "w.1-3")}
    with subprocess.Popen(
        [sys.executable, "-c", inner, leaf],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as program:  # fmt: skip
        assert program.stdout is not None
        pid = int(program.stdout.readline())
        assert pid != program.pid
        assert is_ours(pid, tmp_path / "jobs")
        assert not is_ours(pid, tmp_path / "job")
        assert not is_ours(pid, tmp_path / "other")
        program.communicate("\n", timeout=20)
    assert not is_ours(pid, tmp_path / "jobs")


def test_coarse_steps_are_told_again_only_when_a_value_has_really_moved() -> None:
    assert [coarse(50, now, 25) for now in (38, 50, 62, 63, 0, 100)] == [50, 50, 50, 75, 0, 100]
    assert [coarse(50, now, 25, up=False) for now in (62, 74, 100)] == [50, 50, 100]


def test_the_cluster_is_told_of_a_device_in_steps_and_never_of_more_strangers_than_memory() -> None:
    gpu = Gpu("GPU-0", "x", 8 * GIB)
    first = told(gpu, reading(2), int(1.6 * GIB), None)
    assert (first.foreign_bytes, first.busy_percent, first.temperature_c) == (2 * GIB, 50, 50)
    assert told(gpu, reading(2), int(1.8 * GIB), first) == first
    assert told(gpu, reading(2), 0, first).foreign_bytes == 0
    assert told(gpu, reading(2), int(7.9 * GIB), None).foreign_bytes == 8 * GIB
    assert told(gpu, None, 0, first) == gpu


def test_an_apple_machine_has_one_gpu_that_shares_its_memory_and_others_have_none() -> None:
    (gpu,) = metal("Darwin", "arm64", "Apple M2 Pro", 32 * GIB)
    assert (gpu.uuid, gpu.name, gpu.memory_bytes) == ("MPS-0", "Apple M2 Pro MPS", 24 * GIB)
    assert metal("Darwin", "arm64", "", GIB)[0].name == "Apple MPS"
    assert metal("Darwin", "x86_64", "Intel", GIB) == metal("Linux", "aarch64", "", GIB) == ()
