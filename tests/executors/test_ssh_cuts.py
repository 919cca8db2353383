"""Jobs on hosts whose connection is cut, whose server is killed, whose gateway is gone."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

from executors.logs import Logs
from statemachine import settings
from statemachine.commands import RegisterArtifact
from statemachine.values import Input
from tests.executors.agents import GAMES, STUBBORN, program
from tests.executors.hosts import pulse, run, site
from tests.executors.memory import eventually
from tests.support.sshd import Sshd


def test_a_connection_that_is_cut_while_a_job_runs_is_made_again_and_the_job_never_knew(
    server: Sshd, tmp_path: Path
) -> None:
    async def go() -> None:
        async with site(server, tmp_path) as one:
            job = one.place("w1", pulse(tmp_path / "go"))
            await one.says(job.job, "beat")
            (process,) = one.gateway.posts["h1"].driver._lives.processes
            one.proxy.closed = True
            one.proxy.cut()
            driver = one.gateway.posts["h1"].driver
            await eventually(lambda: not driver.reached())
            beats = len(one.cluster.beats)
            await asyncio.sleep(0.5)
            assert [b.peer for b in one.cluster.beats[beats + 1 :]] == []
            one.proxy.closed = False
            await eventually(driver.reached)
            assert driver._lives.processes == {process}
            (tmp_path / "go").touch()
            await one.ended("w1")
            text = one.folder(job.job).joinpath("stdout.log").read_text()
            assert [int(line.split()[1]) for line in text.splitlines()] == list(range(1, text.count("\n") + 1))
            assert one.cluster.state.work["w1"].attempts == 1

    run(go)


def test_an_upload_that_is_cut_goes_on_over_the_next_connection(server: Sshd, tmp_path: Path) -> None:
    async def go() -> None:
        async with site(server, tmp_path) as one:
            data = os.urandom(6_000_000)
            digest = one.blobs.add(data)
            one.cluster.must(RegisterArtifact(digest, len(data), "data", "", "gate"))
            one.proxy.cut_after_up = 4_000_000
            code = "import hashlib; print(hashlib.sha256(open('inputs/model','rb').read()).hexdigest())\n" + GAMES
            job = one.place("w1", program(code), inputs=(Input("model", digest),))
            await one.ended("w1")
            assert digest in Logs(one.data_dir).tail(job.job)
            assert one.proxy.cuts == 1

    run(go)


def test_a_fetch_that_is_cut_goes_on_and_the_bytes_are_those_over_there(server: Sshd, tmp_path: Path) -> None:
    code = """
import hashlib, json, os
data = os.urandom(6_000_000)
open("out/big", "wb").write(data)
print(hashlib.sha256(data).hexdigest())
open("result.json", "w").write(json.dumps({"counts": {"games": 1}, "outputs": [{"path": "big", "kind": "games"}]}))
"""

    async def go() -> None:
        async with site(server, tmp_path) as one:
            one.proxy.cut_after_down = 4_000_000
            job = one.place("w1", program(code))
            await one.ended("w1")
            (output,) = one.cluster.state.jobs[job.job].outputs
            assert output.digest in Logs(one.data_dir).tail(job.job)
            assert hashlib.sha256(one.blobs.path(output.digest).read_bytes()).hexdigest() == output.digest
            assert one.proxy.cuts == 1

    run(go)


def test_a_gateway_that_is_killed_adopts_the_job_by_its_identity(server: Sshd, tmp_path: Path) -> None:
    async def go() -> None:
        async with site(server, tmp_path) as one:
            job = one.place("w1", pulse(tmp_path / "go"))
            await one.says(job.job, "beat")
            (before,) = one.attempts
            await one.crash()
            one.begin()
            await one.joined()
            await eventually(lambda: one.attempts)
            (after,) = one.attempts
            assert after.process == before.process
            (tmp_path / "go").touch()
            await one.ended("w1")
            assert one.cluster.state.work["w1"].attempts == 1

    run(go)


def test_an_ssh_server_that_is_killed_and_started_again_finds_the_job_running(server: Sshd, tmp_path: Path) -> None:
    async def go() -> None:
        async with site(server, tmp_path) as one:
            job = one.place("w1", pulse(tmp_path / "go"))
            await one.says(job.job, "beat")
            await asyncio.to_thread(server.kill)
            driver = one.gateway.posts["h1"].driver
            await eventually(lambda: not driver.reached())
            await asyncio.to_thread(server.start)
            await eventually(driver.reached)
            (tmp_path / "go").touch()
            await one.ended("w1")
            assert one.cluster.state.work["w1"].attempts == 1

    run(go)


def test_a_lease_that_lapses_ends_the_job_though_gateway_and_connection_are_gone(server: Sshd, tmp_path: Path) -> None:
    async def go() -> None:
        short = settings.Timing(
            heartbeat_ms=500, suspect_after_ms=1_000, dead_after_ms=2_000, lease_ms={"default": 6_500}, grace_ms=1_000
        )
        async with site(server, tmp_path, timing=short) as one:
            job = one.place("w1", program(STUBBORN))
            await one.says(job.job, "up")
            assert one.living()
            await one.crash()
            one.proxy.closed = True
            one.proxy.cut()
            await eventually(lambda: not one.living(), 15)

    run(go)
