"""A small piece of `make chaos`: kills at random, and at the end every item is counted once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.run import run

pytestmark = pytest.mark.cluster


def test_under_random_kills_every_item_is_counted_once_and_no_two_of_its_processes_run_at_one_time(
    tmp_path: Path,
) -> None:
    story = run(tmp_path / "chaos", jobs=40, agents=4, seed=7, every_s=0.7, within_s=240)
    assert story.done["attempts"]
