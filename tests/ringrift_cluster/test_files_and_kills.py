"""kill -9 in the middle of every step of a file's life: nothing half-written is ever served or registered."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from executors.blobs import Blobs
from statemachine.state import State
from tests.support.killed import DATA, DIGEST, STEPS, KeptMachine, perform, whole

ROOT = Path(__file__).resolve().parents[2]
#: points at which every step has something at stake
FEWEST = 2


def state_of(root: Path) -> State:
    return KeptMachine(root / "log", lambda: None).state


def check(step: str, root: Path, *, ended: bool) -> None:
    """What must hold after a kill, and after a later process has come to the end of the step."""
    stores = {name: whole(Blobs(root / name)) for name in "abs"}
    bad = {name for name, files in stores.items() if any(actual != digest for digest, actual in files.items())}
    # The copy that went bad before the step is there until the step has found it, and is nobody's fault.
    assert bad <= ({"b"} if step == "scrub" and not ended else set()), "a file has its name and other bytes"
    row = state_of(root).artifacts.get(DIGEST)
    if row is None:
        assert step in ("upload", "pieces", "adopt", "sweep")
        return
    assert row.size_bytes == len(DATA)
    missing = {holder for holder in row.holders if DIGEST not in stores[holder]}
    # A holding that was wrong before the step, or whose bad copy was just taken out, is withdrawn by the next look.
    assert missing <= ({"b"} if step in ("compare", "scrub") and not ended else set()), "a row says what is not so"
    assert {holder for holder in row.holders if holder not in missing | bad}, "the last good copy is gone"


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_point_leaves_nothing_half_and_the_next_process_ends_the_step(step: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.killed", step, str(tmp_path)]
    said = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=240)
    assert said.returncode == 0
    kills = int(said.stdout)
    assert kills >= FEWEST
    for number in range(1, kills + 1):
        root = tmp_path / str(number)
        check(step, root, ended=False)
        perform(step, root)
        check(step, root, ended=True)
