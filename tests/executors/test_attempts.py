from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path

import pytest

from executors import host, processes
from executors.ledger import Ledger, LedgerError
from statemachine.commands import (
    CancelWork,
    FailJob,
    StopJob,
)
from statemachine.rows import Actual, WorkStatus
from statemachine.settings import Template
from tests.executors.agents import GAMES, KEEPS_A_PART, STUBBORN, WAIT, node, program, run, strays_of
from tests.executors.memory import eventually


def test_a_job_completes_and_its_output_is_in_the_store_under_its_digest(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            job = one.granted(
                program(GAMES, require_outputs=("games",), require_counts=("games",)), work_type="selfplay"
            )
            await eventually(lambda: one.cluster.work("w").status is WorkStatus.COMPLETED)
            work = one.cluster.work("w")
            assert work.counts == {"games": 5, "positions": 50}
            assert work.metrics == {"speed": "1.5"}
            assert work.attempts == 1
            (output,) = one.cluster.state.jobs[job.job].outputs
            made = b"five games of w.1"
            assert output.digest == hashlib.sha256(made).hexdigest()
            path = one.agent.bench.blobs.path(output.digest)
            assert path is not None
            assert path.read_bytes() == made
            assert one.cluster.state.artifacts[output.digest].holders == ("n1",)
            await eventually(lambda: not one.agent.attempts)
            assert not one.agent.bench.ledger.entries()
            assert not (one.folder("w.1") / "out").exists()

    run(go)


def test_the_program_sees_its_item_seed_fence_and_folders(tmp_path: Path) -> None:
    code = """
import json, os
spec = json.load(open(os.environ["RINGRIFT_SPEC"]))
told = {k: spec[k] for k in ("job", "fence", "params", "gpus")}
told |= {"id": spec["work"]["work"], "seed": spec["seed"] >= 0}
told |= {k: os.environ[k] for k in ("RINGRIFT_FENCE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
told["dirs"] = sorted(d for d in os.listdir(os.environ["RINGRIFT_JOB_DIR"]) if os.path.isdir(d))
open("result.json", "w").write(json.dumps({"metrics": {"told": json.dumps(told, sort_keys=True)}}))
"""

    async def go() -> None:
        async with node(tmp_path) as one:
            job = one.granted(program(code), params={"games": "50"})
            await eventually(lambda: one.cluster.work("w").status is WorkStatus.COMPLETED)
            assert json.loads(one.cluster.work("w").metrics["told"]) == {
                "job": "w.1", "fence": job.fence, "params": {"games": "50"}, "gpus": [], "id": "w", "seed": True,
                "RINGRIFT_FENCE": str(job.fence), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
                "dirs": ["checkpoint", "inputs", "out"],
            }  # fmt: skip

    run(go)


FAILING = [
    ("import sys; print('no such file', file=sys.stderr); sys.exit(1)", "user", "no such file"),
    ("import os; os.kill(os.getpid(), 9)", "infrastructure", "SIGKILL"),
    ("pass", "no_output", "result.json"),
    ("raise MemoryError('big')", "oom", "MemoryError"),
]


@pytest.mark.parametrize(("code", "error_class", "words"), FAILING, ids=[row[1] for row in FAILING])
def test_a_failure_is_reported_with_its_class_and_last_words(
    tmp_path: Path, code: str, error_class: str, words: str
) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            job = one.granted(program(code))
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.FAILED)
            row = one.cluster.state.jobs[job.job]
            assert row.error_class == error_class
            assert words in row.error
            assert one.cluster.work("w").status is WorkStatus.PENDING

    run(go)


@pytest.mark.parametrize(
    ("template", "words"),
    [("bad", "{missing}"), ("absent", "could not be started")],
)
def test_a_job_that_cannot_start_says_why(tmp_path: Path, template: str, words: str) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/bad", Template(argv=("{python}", "{missing}")))
            one.cluster.setting("template/absent", Template(argv=("/no/such/program",)))
            one.cluster.add("w", template)
            job = one.cluster.place("w", "n1")
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.FAILED)
            row = one.cluster.state.jobs[job.job]
            assert words in row.error
            assert row.error_class == "user"

    run(go)


def test_a_stopped_job_without_a_part_returns_to_the_queue(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            job = await one.runs(WAIT)
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.RUNNING)
            one.cluster.must(StopJob(job.job, job.fence, "make room"))
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.STOPPED)
            assert one.cluster.state.jobs[job.job].error_class == "stopped"
            assert one.cluster.work("w").status is WorkStatus.PENDING
            assert one.cluster.work("w").attempts == 0

    run(go)


def test_a_stopped_job_with_a_valid_part_completes_as_stopped(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            job = await one.runs(KEEPS_A_PART)
            one.cluster.must(StopJob(job.job, job.fence, "make room"))
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.STOPPED)
            assert one.cluster.state.jobs[job.job].counts == {"games": 2}

    run(go)


def test_a_cancelled_item_ends_its_process_and_publishes_nothing(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            await one.runs(STUBBORN, grace_ms=100)
            one.cluster.must(CancelWork("w", "not needed"))
            await eventually(lambda: not one.agent.attempts)
            await eventually(lambda: not strays_of(tmp_path))
            assert one.cluster.work("w").status is WorkStatus.CANCELLED

    run(go)


def test_a_job_over_its_limit_is_stopped_and_fails_as_timeout(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            job = one.granted(program(WAIT), timeout_ms=300)
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.FAILED)
            assert one.cluster.state.jobs[job.job].error_class == "timeout"

    run(go)


def test_a_job_that_was_taken_away_is_killed_and_forgotten(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            job = await one.runs(STUBBORN)
            one.cluster.must(FailJob(job.job, job.fence, "infrastructure", "said by somebody else"))
            await eventually(lambda: not one.agent.attempts)
            await eventually(lambda: not strays_of(tmp_path))

    run(go)


def test_a_keeper_that_is_killed_takes_its_program_with_it_and_is_reported(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            job = await one.runs(STUBBORN)
            keeper = processes.keeper_of(one.folder(job.job), host.boot_id())
            assert keeper is not None
            os.kill(keeper.pid, signal.SIGKILL)
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.FAILED)
            assert one.cluster.state.jobs[job.job].error_class == "infrastructure"
            await eventually(lambda: not strays_of(tmp_path))

    run(go)


def test_a_report_whose_answer_was_lost_counts_once(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/t", program(GAMES))
            one.cluster.add("w", "t", work_type="selfplay")
            one.cluster.lose_answers = 2
            one.cluster.place("w", "n1")
            await eventually(lambda: not one.agent.attempts and one.cluster.work("w").finished_at_ms)
            assert one.cluster.state.totals[""].games == 5

    run(go)


def test_a_start_that_cannot_be_noted_leaves_no_process_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[processes.Identity] = []

    def full(_: Ledger, job: str, fence: int, process: processes.Identity) -> None:
        started.append(process)
        raise LedgerError("the ledger cannot be written: disk full; look at the disk")

    monkeypatch.setattr(Ledger, "handle", full)

    async def go() -> None:
        async with node(tmp_path) as one:
            one.granted(program(WAIT))
            told: list[FailJob] = []

            def failed() -> bool:
                told.extend(c for c in one.cluster.commands if isinstance(c, FailJob))
                return bool(told)

            await eventually(failed)
            await eventually(lambda: not strays_of(tmp_path))
            assert not processes.alive(started[0], host.boot_id())
            assert told[0].error_class == "infrastructure"
            assert "could not be noted" in told[0].error

    run(go)
