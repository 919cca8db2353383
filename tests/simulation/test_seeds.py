"""A fixed set of seeds in every test run; `python -m tests.simulation --seeds N` runs any number."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.kept import KEPT
from tests.simulation.switches import BY_MESSAGES, SWITCHES

SEEDS = 6
CHUNK = 2
ROOT = Path(__file__).resolve().parents[2]


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--jobs", "1", "--whole", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_no_fault_breaks_the_cluster(first):
    ran = simulate("--seeds", str(CHUNK), "--first-seed", str(first))
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("what", KEPT)
def test_a_seed_that_once_broke_does_not_again(what):
    seed, options = KEPT[what]
    ran = simulate("--seed", str(seed), *options.as_arguments().split())
    assert ran.returncode == 0, f"{what}: {ran.stdout}{ran.stderr}"


def test_one_seed_tells_one_story():
    first, second = (simulate("--seed", "1", "--seconds", "9", "--trace") for _ in range(2))
    assert first.stdout.splitlines()[:-1] == second.stdout.splitlines()[:-1] != []
    # The last line has the CPU time in it; everything it counts is the same.
    assert first.stdout.split("; ")[2:] == second.stdout.split("; ")[2:]


#: those that a run of two seconds shows; `make simulate-proof` takes all
SOON = ("G3", "G5", "G6", "G7", "G9", "G14", "G14-two", "G14-restart")


def test_a_correction_that_is_switched_off_is_missed():
    assert set(SOON) < SWITCHES.keys()
    ran = simulate("--proof", "--disable", ",".join(SOON), "--seeds", "3")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert [line.split()[0] for line in ran.stdout.splitlines()[1:]] == list(SOON)


def test_each_correction_is_shown_by_runs_or_by_messages():
    shown = {name.partition("-")[0] for name in (*SWITCHES, *BY_MESSAGES)}
    assert shown == {f"G{number}" for number in range(1, 16)}


def test_what_is_committed_before_it_is_on_a_majority_of_disks_is_noticed_and_told_in_few_lines():
    assert "G7" in SWITCHES
    ran = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seed", "1", "--disable", "G7"],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "but only the disks of" in ran.stdout
    assert "again: python -m tests.simulation --seed 1 --disable G7 --only" in ran.stdout
