"""Scripts that know nothing of the contract, run by the agent."""

from __future__ import annotations

from pathlib import Path

from executors.options import Options
from statemachine.commands import StopJob
from statemachine.rows import WorkStatus
from statemachine.settings import OutputRule
from tests.executors.agents import node, program, run
from tests.executors.memory import eventually

PLAYS = """
import os, time
path = f"out/games_{os.getpid()}.jsonl"
with open(path, "w") as file:
    os.chmod(path, 0o600)
    for number in range(GAMES):
        file.write("game\\n")
        file.flush()
        print(f"{number + 1} of GAMES games", flush=True)
        time.sleep(PACE)
"""
GAMES = OutputRule("games_*.jsonl", "games", "lines", "games", partial=True)
COUNTS = r"(?P<games>\d+) of (?P<games_total>\d+) games"


def plays(games: int, pace_s: float) -> str:
    return PLAYS.replace("GAMES", str(games)).replace("PACE", str(pace_s))


def test_what_a_script_left_is_counted_stored_and_registered_with_its_result(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            job = one.granted(program(plays(5, 0), outputs=(GAMES,)), work_type="selfplay")
            await eventually(lambda: one.cluster.work("w").status is WorkStatus.COMPLETED)
            assert one.cluster.work("w").counts == {"games": 5}
            (output,) = one.cluster.state.jobs[job.job].outputs
            assert output.kind == "games"
            assert one.cluster.state.artifacts[output.digest].holders == ("n1",)

    run(go)


def test_its_progress_is_told_and_a_stop_keeps_its_part(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path, options=Options(progress_every_s=0.1)) as one:
            job = one.granted(program(plays(10_000, 0.01), outputs=(GAMES,), progress=COUNTS), work_type="selfplay")
            await eventually(lambda: one.cluster.state.jobs[job.job].counts.get("games", 0) > 0)
            assert one.cluster.state.jobs[job.job].total == {"games": 10_000}
            one.cluster.must(StopJob(job.job, job.fence, "the test has seen enough"))
            await eventually(lambda: one.cluster.work("w").status is WorkStatus.COMPLETED)
            work = one.cluster.work("w")
            assert 0 < work.counts["games"] < 10_000
            assert work.reason == "stopped early (the test has seen enough), its part counts"

    run(go)


def test_a_script_that_made_nothing_fails_although_it_exits_with_0(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            job = one.granted(program("print('500 games, all fine')", outputs=(GAMES,)), work_type="selfplay")
            await eventually(lambda: one.cluster.state.jobs[job.job].error_class == "no_output")
            assert "left no file 'games_*.jsonl'" in one.cluster.state.jobs[job.job].error

    run(go)


def test_an_adopted_script_goes_on_being_watched(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path, options=Options(progress_every_s=0.1)) as one:
            job = one.granted(program(plays(60, 0.02), outputs=(GAMES,), progress=COUNTS), work_type="selfplay")
            await eventually(lambda: one.cluster.state.jobs[job.job].counts.get("games", 0) > 0)
            await one.crash()
            await one.again()
            await eventually(lambda: one.cluster.work("w").status is WorkStatus.COMPLETED)
            assert one.cluster.work("w").counts == {"games": 60}

    run(go)
