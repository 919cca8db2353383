from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from executors.workloads.contract import Job, WorkloadError, real, whole


def test_progress_is_thinned_out_unless_forced(tmp_path: Path) -> None:
    times = iter([10.0, 10.1, 10.2, 10.7])
    job = Job(tmp_path, clock=lambda: next(times), total={"games": 9})
    for games, force in ((1, False), (2, False), (3, True), (4, False)):
        job.progress({"games": games}, {"loss": "1.5"}, force=force)
    lines = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [line["counts"]["games"] for line in lines] == [1, 3, 4]
    assert lines[0] == {"counts": {"games": 1}, "total": {"games": 9}, "metrics": {"loss": "1.5"}}


def test_a_job_keeps_its_checkpoint_and_drops_an_earlier_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGRIFT_JOB_DIR", str(tmp_path))
    first = Job.open(None)
    (first.checkpoint / "kept").write_text("x")
    first.progress({"games": 5}, force=True)
    first.finish({"counts": {}})
    assert json.loads((tmp_path / "result.json").read_text()) == {"counts": {}}
    again = Job.open(None)
    assert (again.checkpoint / "kept").read_text() == "x"
    assert not (tmp_path / "result.json").exists()
    assert (tmp_path / "progress.jsonl").read_text() == ""
    assert not list(tmp_path.glob("*.partial"))


def test_a_job_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("")
    with pytest.raises(WorkloadError, match=f"job folder {place} cannot be written"):
        Job.open(place)


@pytest.mark.parametrize(
    ("convert", "text", "sentence"),
    [
        (whole(1), "0", "0 is not between 1 and"),
        (whole(1), "x", "'x' is not a whole number"),
        (whole(0, 3), "4", "4 is not between 0 and 3"),
        (real(0, 1), "nan", "nan is not between 0 and 1"),
        (real(0, 1), "1.5", "1.5 is not between 0 and 1"),
        (real(0, 1), "?", "'?' is not a number"),
    ],
)
def test_a_number_out_of_range_is_refused(convert: object, text: str, sentence: str) -> None:
    assert callable(convert)
    with pytest.raises(argparse.ArgumentTypeError, match=sentence.replace("?", r"\?")):
        convert(text)
