from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from executors.folder import PROGRESS_WINDOW_BYTES, Folder, file_name, sweep_checkpoints
from executors.keepers import link_or_copy, remove
from executors.outcome import Progress


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path, "w/1.1", 4)
    made.out.mkdir(parents=True)
    return made


def write(folder: Folder, text: str) -> None:
    with (folder.path / "progress.jsonl").open("a") as file:
        file.write(text)


def test_progress_is_the_newest_whole_line_and_is_told_once(folder: Folder) -> None:
    assert folder.progress() is None
    write(folder, '{"counts": {"games": 1}}\n{"counts": {"games": 2}, "total": {"games": 9}}\n{"counts": {"ga')
    assert folder.progress() == Progress({"games": 2}, {"games": 9})
    assert folder.progress() is None
    write(folder, 'mes": 3}}\n')
    assert folder.progress() == Progress({"games": 3})


def test_progress_that_is_no_json_is_passed_over(folder: Folder) -> None:
    write(folder, '{"counts": {"games": 1}}\nhello\n{"counts": {"games": -4}}\n')
    assert folder.progress() == Progress({"games": 1})


def test_progress_of_any_length_is_read_from_its_end(folder: Folder) -> None:
    write(folder, '{"counts": {"games": 1}}\n' * (PROGRESS_WINDOW_BYTES // 10) + '{"counts": {"games": 7}}\n')
    assert folder.progress() == Progress({"games": 7})


def test_progress_that_is_begun_anew_is_read_from_its_start(folder: Folder) -> None:
    write(folder, '{"counts": {"games": 100}}\n')
    folder.progress()
    (folder.path / "progress.jsonl").write_text('{"counts": {"games": 1}}\n')
    assert folder.progress() == Progress({"games": 1})


def test_an_output_is_a_plain_file_below_out(folder: Folder, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    (folder.out / "good").write_text("y")
    (folder.out / "link").symlink_to(secret)
    (folder.out / "dir").symlink_to(tmp_path)
    assert folder.output("good") == folder.out / "good"
    assert folder.output("link") is None
    assert folder.output("dir/secret") is None
    assert folder.output("absent") is None
    assert folder.output("") is None


def test_ids_become_single_path_components() -> None:
    assert file_name("a/b:c@d+e.f-1") == "a%2Fb:c@d+e.f-1"


def test_a_checkpoint_that_nobody_writes_to_goes_unless_its_item_runs(tmp_path: Path) -> None:
    for name in ("old", "running", "written"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "written" / "state").write_text("x")
    for path in (tmp_path / "checkpoints").iterdir():
        os.utime(path, (1000, 1000))
    assert sweep_checkpoints(tmp_path, ["running"], 3600) == [tmp_path / "checkpoints" / "old"]


def test_what_a_program_made_read_only_is_deleted_and_what_its_links_lead_to_is_left_alone() -> None:
    with tempfile.TemporaryDirectory() as made:
        base = Path(made)
        base.chmod(0o777)
        before = os.geteuid()
        if before == 0:
            os.seteuid(65534)  # permissions hold nobody up who is root
        try:
            (base / "elsewhere").mkdir(mode=0o500)
            deep = base / "home" / "cache" / "deep"
            deep.mkdir(parents=True)
            (deep / "file").write_text("x")
            (deep / "link").symlink_to(base / "elsewhere", target_is_directory=True)
            for path in (deep, deep.parent, base / "home"):
                path.chmod(0o500)
            remove(base / "home")
            assert not (base / "home").exists()
            assert (base / "elsewhere").stat().st_mode & 0o777 == 0o500
            remove(base / "home")
        finally:
            os.seteuid(before)


def test_a_link_that_is_there_already_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "b"
    link_or_copy(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").samefile(tmp_path / "a")
