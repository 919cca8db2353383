from __future__ import annotations

import os
from pathlib import Path

import pytest

from executors import host, shim
from executors.host import GIB, DiskFloor


@pytest.mark.parametrize(
    ("free", "total", "low"),
    [
        (228 * GIB, 8000 * GIB, False),  # 3 % of a large disk is plenty
        (2 * GIB, 16 * GIB, False),  # a small disk with an eighth free
        (5 * GIB, 500 * GIB, True),
        (0, 10 * GIB, True),
        (0, 0, True),
    ],
)
def test_a_disk_is_low_when_both_the_share_and_the_size_say_so(free: int, total: int, low: bool) -> None:
    assert bool(DiskFloor().shortage(free, total)) is low


def test_a_low_disk_recovers_only_clearly_above_the_floor() -> None:
    floor = DiskFloor(percent=10, free_bytes=10 * GIB)
    assert not floor.shortage(11 * GIB, 1000 * GIB)
    assert floor.shortage(11 * GIB, 1000 * GIB, was_low=True)
    assert not floor.shortage(13 * GIB, 1000 * GIB, was_low=True)


def test_a_shortage_says_how_much_is_free_and_what_the_floor_is() -> None:
    text = DiskFloor().shortage(5 * GIB, 500 * GIB)
    assert "5.0 GiB free (1.0 %)" in text
    assert "20.0 GiB and 10 %" in text


def test_the_facts_of_this_machine_are_plausible(tmp_path: Path) -> None:
    facts = host.facts(tmp_path)
    assert facts.cpu_cores >= 1
    assert facts.ram_bytes > 100 * 1024**2
    assert facts.disk_bytes > 0
    assert facts.hostname


def test_the_boot_id_is_the_same_for_every_process_of_a_boot() -> None:
    assert host.boot_id() == host.boot_id() != ""


def test_the_boot_clock_moves_forward() -> None:
    first = shim.boot_s()
    assert host.HostClock().boot_s() >= first > 0


def test_reserved_cores_are_the_first_ones_and_jobs_always_keep_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5, 2, 3}, raising=False)
    assert [host.job_cpus(reserve) for reserve in (0, 1, 2, 3, 9)] == [(), (3, 5), (5,), (5,), (5,)]
