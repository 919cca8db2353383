"""The same log is the same state: under other hash seeds, through a snapshot, and for ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from statemachine.machine import SUPPORTED_FEATURE_LEVEL, Machine
from statemachine.rows import TABLES, Actual, ModelStatus, WorkStatus
from tests.support import histories
from tests.support.histories import digests, history, load, replay, shapes

ROOT = Path(__file__).parents[2]
GOLDEN = sorted((ROOT / "tests" / "golden").glob("feature-level-*"))
ENTRIES = 2_000


@pytest.fixture(scope="module")
def log() -> histories.Log:
    return history(seed=7, entries=ENTRIES)


@pytest.fixture(scope="module")
def expected(log) -> dict[str, str | int]:
    return digests(replay(log))


def test_the_log_of_these_tests_goes_to_many_places(log):
    machine = Machine()
    seen: dict[str, set[str]] = {"tables": set(), "work": set(), "jobs": set(), "models": set(), "gauntlets": set()}
    for index, term, entry in log:
        machine.apply(index, term, entry)
        state = machine.state
        if index % 20 == 0:
            seen["tables"] |= {name for name, rows in state.tables.items() if rows}
            seen["work"] |= {w.status for w in state.work.values()}
            seen["jobs"] |= {j.actual for j in state.jobs.values()}
            seen["models"] |= {m.status for m in state.models.values()}
            seen["gauntlets"] |= {g.status for g in state.gauntlets.values()}
    assert seen["tables"] == set(TABLES)
    assert (seen["work"], seen["jobs"], seen["models"]) == (set(WorkStatus), set(Actual), set(ModelStatus))
    assert {"running", "accepted"} <= seen["gauntlets"]
    assert machine.internal_errors == 0


def test_a_history_replays_the_same_under_other_hash_seeds_and_through_a_snapshot(log, expected, tmp_path):
    file = tmp_path / "log.msgpack"
    file.write_bytes(msgspec.msgpack.encode(log))
    assert expected["internal_errors"] == 0
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.histories", "replay", str(file), str(detour)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        for seed, detour in (("1", 0), ("4294967295", ENTRIES // 2))
    ]
    for run in runs:
        out, _ = run.communicate(timeout=120)
        assert run.returncode == 0
        assert json.loads(out) == expected


@pytest.mark.parametrize("at", [1, 2, 777, 1_999])
def test_the_place_of_the_snapshot_does_not_matter(log, expected, at):
    assert digests(replay(log, detour_at=at)) == expected


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda p: p.name)
def test_a_log_that_was_written_once_replays_to_the_same_state_for_ever(folder: Path):
    """When this fails the law of a released feature level was changed: old logs would diverge from new ones."""
    expected = json.loads((folder / "digests.json").read_text())
    assert digests(replay(load(folder / "log.msgpack"))) == expected


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda p: p.name)
def test_what_a_setting_may_say_at_a_level_never_changes(folder: Path):
    """When this fails, two releases would not refuse the same: what is new says its level (see statemachine/levels.py).

    Until the level is released, its file is made anew: see tests/golden/README.md.
    """
    level = int(folder.name.removeprefix("feature-level-"))
    assert shapes(level) == json.loads((folder / "settings.json").read_text())


def test_there_is_a_golden_log_for_each_feature_level():
    levels = [f"feature-level-{n}" for n in range(1, SUPPORTED_FEATURE_LEVEL + 1)]
    assert [folder.name for folder in GOLDEN] == levels
