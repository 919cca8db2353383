"""The provider's notice: how it is asked for, and what a node does with it."""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from executors.notice import Notice
from statemachine.rows import Actual, WorkStatus
from tests.executors.agents import KEEPS_A_PART, OPTIONS, node, program, run
from tests.executors.memory import eventually
from tests.executors.test_checkpoints import COUNTS


@contextmanager
def metadata(status: int, text: str) -> Iterator[tuple[str, list[str | None]]]:
    """A provider's metadata server on loopback: its URL, and the flavor headers it was asked with."""
    flavors: list[str | None] = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            flavors.append(self.headers.get("Metadata-Flavor"))
            assert "authorization" not in self.headers
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            return

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/preempted", flavors
        finally:
            server.shutdown()
            thread.join()


def test_a_file_that_appears_is_a_notice(tmp_path: Path) -> None:
    file = tmp_path / "terminate"
    notice = Notice(file)
    assert asyncio.run(notice.look()) == ""
    file.write_text("in 120 s\nand more\n")
    assert asyncio.run(notice.look()) == "its provider takes this machine away: in 120 s"
    file.write_text("")
    assert str(file) in asyncio.run(notice.look())


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("sh -c 'echo action terminate; exit 0'", "action terminate"),
        ("true", "true"),
        ("sh -c 'echo no; exit 1'", ""),
        ("/no/such/program", ""),
    ],
)
def test_a_command_that_exits_with_0_is_a_notice(command: str, said: str) -> None:
    found = asyncio.run(Notice(command=command).look())
    assert found.endswith(said) if said else found == ""


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        (200, "TRUE", "TRUE"),
        (200, "FALSE", ""),
        (200, "", ""),
        (404, "not found", ""),
        (200, '{"action": 1}', "action"),
    ],
)
def test_a_url_that_answers_with_something_else_than_a_no_is_a_notice(status: int, text: str, said: str) -> None:
    with metadata(status, text) as (url, flavors):
        found = asyncio.run(Notice(url=url).look())
    assert said in found if said else found == ""
    assert flavors == ["Google"]


def test_a_url_that_does_not_answer_says_nothing() -> None:
    assert asyncio.run(Notice(url="http://127.0.0.1:1/none").look()) == ""


@pytest.mark.parametrize("url", ["http://[::1", "http://xn--/", "http://\x01/", "http://" + "a" * 70_000])
def test_a_url_that_is_none_says_nothing_and_ends_nothing(url: str) -> None:
    assert asyncio.run(Notice(url=url).look()) == ""


def test_a_notice_stops_the_jobs_keeps_what_they_have_and_takes_no_more(tmp_path: Path) -> None:
    file = tmp_path / "terminate"

    async def go() -> None:
        options = replace(OPTIONS, notice=Notice(file), notice_every_s=0.05)
        async with node(tmp_path / "n1", options=options) as one:
            cluster = one.cluster
            cluster.setting("template/counts", program(COUNTS))
            cluster.setting("template/part", program(KEEPS_A_PART))
            cluster.add("counts", "counts")
            cluster.add("part", "part", work_type="selfplay")
            cluster.add("late", "counts")
            jobs = [cluster.place(work, "n1") for work in ("counts", "part")]
            for job in jobs:
                await one.says(job.job, "up")
                await eventually(lambda job=job: cluster.state.jobs[job.job].actual is Actual.RUNNING)
            file.write_text("soon")
            await eventually(lambda: "soon" in cluster.state.peers["n1"].facts.not_ready)
            await eventually(lambda: cluster.work("counts").status is WorkStatus.PENDING)
            await eventually(lambda: cluster.work("part").status is WorkStatus.COMPLETED)
            assert cluster.work("part").counts == {"games": 2}
            (checkpoint,) = [row for row in cluster.state.artifacts.values() if row.kind == "checkpoint"]
            assert checkpoint.job == jobs[0].job
            file.unlink()
            await eventually(lambda: not cluster.state.peers["n1"].facts.not_ready)
            job = cluster.place("late", "n1")
            await one.says(job.job, "up")

    run(go)
