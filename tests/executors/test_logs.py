from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from executors.logs import AGAIN_BYTES, Logs, NoLogs, last_words


def folder(data: Path, name: str, stdout: str = "", ended_s: float | None = None) -> Path:
    path = data / "jobs" / name
    path.mkdir(parents=True)
    (path / "stdout.log").write_text(stdout)
    if ended_s is not None:
        (path / "exit.json").write_text("{}")
        os.utime(path / "exit.json", (ended_s, ended_s))
    return path


def test_the_last_lines_are_shown(tmp_path: Path) -> None:
    folder(tmp_path, "a.1-3", "".join(f"line {i}\n" for i in range(1000)))
    assert Logs(tmp_path).tail("a.1", lines=2) == "line 998\nline 999\n"
    assert Logs(tmp_path).tail("a.1", lines=0) == ""


def test_a_tail_reaches_into_the_older_half(tmp_path: Path) -> None:
    path = folder(tmp_path, "a.1-3", "new\n")
    (path / "stdout.log.1").write_text("older\nold\n")
    assert Logs(tmp_path).tail("a.1", lines=2) == "old\nnew\n"


def test_a_job_with_slashes_has_a_folder_and_the_highest_fence_wins(tmp_path: Path) -> None:
    folder(tmp_path, "x%2Fy.1-9", "nine\n")
    folder(tmp_path, "x%2Fy.1-10", "ten\n")
    assert Logs(tmp_path).tail("x/y.1") == "ten\n"


def test_a_job_that_was_never_here_is_named(tmp_path: Path) -> None:
    folder(tmp_path, "a.11-3")
    with pytest.raises(NoLogs, match=r"a\.1"):
        Logs(tmp_path).tail("a.1")


def test_following_shows_everything_until_the_attempt_has_ended(tmp_path: Path) -> None:
    path = folder(tmp_path, "a.1-3", "one\n")

    async def go() -> bytes:
        seen = b""
        async for chunk in Logs(tmp_path).follow("a.1", poll_s=0.01):
            seen += chunk
            if seen == b"one\n":
                with (path / "stdout.log").open("a") as file:
                    file.write("two\n")
            elif seen == b"one\ntwo\n":
                with (path / "stdout.log").open("a") as file:
                    file.write("three\n")
                (path / "exit.json").write_text("{}")
        return seen

    assert asyncio.run(asyncio.wait_for(go(), 10)) == b"one\ntwo\nthree\n"


def test_old_folders_go_first_and_kept_ones_stay(tmp_path: Path) -> None:
    now = tmp_path.stat().st_mtime
    old = folder(tmp_path, "old-1", "x" * 10, ended_s=now - 1000)
    big = folder(tmp_path, "big-2", "x" * 5000, ended_s=now - 50)
    new = folder(tmp_path, "new-3", "x" * 10, ended_s=now - 10)
    live = folder(tmp_path, "live-4", "x" * 9000, ended_s=now - 5000)
    assert Logs(tmp_path).sweep([live], max_age_s=500, max_bytes=2000) == [old, big]
    assert new.exists()
    assert live.exists()


def test_of_a_log_that_was_halved_while_nobody_read_it_the_end_is_shown_again_and_not_all_of_it(tmp_path: Path) -> None:
    folder(tmp_path, "a.1-3", "x" * (AGAIN_BYTES + 10) + "end\n", ended_s=1.0)

    async def rest(offset: int) -> bytes:
        return b"".join([chunk async for chunk in Logs(tmp_path).follow("a.1", offset=offset)])

    assert asyncio.run(rest(AGAIN_BYTES + 10)) == b"end\n"
    assert asyncio.run(rest(10 * AGAIN_BYTES)) == b"x" * (AGAIN_BYTES - 4) + b"end\n"


def test_last_words_have_no_colours_and_a_bar_is_one_line(tmp_path: Path) -> None:
    path = folder(tmp_path, "a.1-3")
    bar = "".join(f"\r\x1b[32m{n}%\x1b[0m |###" for n in range(100))
    (path / "stderr.log").write_bytes(f"begun\r\n{bar}\n\x1b]0;title\x07\x1b[1;31mKeyError\x1b[0m: \0'x'\n".encode())
    assert last_words(path, 3) == "begun\n99% |###\nKeyError: 'x'\n"
    assert last_words(path, 2) == "99% |###\nKeyError: 'x'\n"
