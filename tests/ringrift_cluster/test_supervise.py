"""A background task fails alone, is counted and is started again."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest

from ringrift_cluster import supervise as module
from ringrift_cluster.supervise import TaskReport, supervise


def test_a_task_that_raises_is_counted_logged_and_started_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.0)
    report = TaskReport("population")
    enough = asyncio.Event()

    async def run() -> None:
        if report.failures >= 2:
            enough.set()
            await asyncio.Event().wait()
        raise ValueError("no such config")

    async def story() -> None:
        task = asyncio.create_task(supervise(report, run, clock=lambda: 0.0, wall_s=lambda: 7.0))
        await asyncio.wait_for(enough.wait(), 5)
        assert report.running
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    with caplog.at_level(logging.ERROR):
        asyncio.run(story())
    assert report.failures == 2
    assert report.last_error == "ValueError: no such config"
    assert report.last_run_s == 7.0
    assert not report.running
    assert report.success_rate < 100
    assert [r.getMessage() for r in caplog.records] == [
        "event=task_failed task=population failures=1",
        "event=task_failed task=population failures=2",
    ]


def test_a_report_without_rounds_shows_full_success() -> None:
    assert TaskReport("x").success_rate == 100.0
    assert TaskReport("x", rounds=3, bad_rounds=1).success_rate == 75.0
