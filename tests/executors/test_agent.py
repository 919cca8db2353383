from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from executors import admission, host, processes, shim
from executors.agent import Agent
from executors.heartbeat import AgentRefused
from executors.host import DiskFloor
from executors.ledger import Ledger, LedgerError
from executors.options import Options
from executors.ports import ClusterUnavailable
from statemachine import settings
from statemachine.commands import (
    CancelWork,
    ChangeSetting,
    FailJob,
    JoinPeer,
    PlaceWork,
    RegisterArtifact,
    ReleaseJob,
    StopJob,
)
from statemachine.rows import Actual, WorkStatus
from statemachine.settings import Template, Timing
from statemachine.state import State
from statemachine.values import Input, Needs, PeerFacts
from tests.executors.memory import QUICK, MemoryCluster, eventually
from tests.executors.test_blobs import Holder
from tests.executors.test_gpus import ScriptedGpus

NO_FLOOR = DiskFloor(percent=0.0, free_bytes=0)
OPTIONS = Options(
    cpu_slots=8, tick_s=0.1, upkeep_every_s=0.1, progress_every_s=0.05, disk_floor=NO_FLOOR, starts_per_s=1000.0
)

GAMES = """
import json, os
os.makedirs("out/deep", exist_ok=True)
open("out/deep/games.bin", "w").write("five games of " + os.environ["RINGRIFT_JOB_ID"])
outputs = [{"path": "deep/games.bin", "kind": "games", "counts": {"games": 5}}]
counts = {"games": 5, "positions": 50}
open("result.json", "w").write(json.dumps({"counts": counts, "outputs": outputs, "metrics": {"speed": 1.5}}))
"""
WAIT = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
KEEPS_A_PART = """
import json, signal, sys, time
def end(*_):
    open("result.json", "w").write(json.dumps({"counts": {"games": 2}, "stopped": True}))
    sys.exit(0)
signal.signal(15, end)
print("up", flush=True)
time.sleep(600)
"""


class Node:
    """One node of the test: a data directory and the agent that uses it at the moment."""

    def __init__(self, cluster: MemoryCluster, data_dir: Path, **agent: Any) -> None:
        self.cluster = cluster
        self.data_dir = data_dir
        self._options = {"options": OPTIONS, "peer": "n1", "role": "worker", "address": "http://n1:1"} | agent
        self.agent = self._make()
        self.task = asyncio.create_task(self.agent.run())

    def _make(self) -> Agent:
        return Agent(self.cluster, data_dir=self.data_dir, **self._options)

    async def joined(self) -> None:
        await eventually(lambda: self.agent.status().joined or self.task.done())

    async def crash(self) -> None:
        """What a kill -9 of the node process leaves: no report, no goodbye, keepers alive."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def again(self) -> None:
        self.agent = self._make()
        self.task = asyncio.create_task(self.agent.run())

    async def says(self, job: str, text: str) -> None:
        def said() -> bool:
            folders = list((self.data_dir / "jobs").glob(f"{job}-*/stdout.log"))
            return bool(folders) and text in folders[0].read_text()

        await eventually(said)

    def folder(self, job: str) -> Path:
        return next((self.data_dir / "jobs").glob(f"{job}-*"))


@asynccontextmanager
async def node(data_dir: Path, timing: Timing = QUICK, **agent: Any) -> Any:
    cluster = MemoryCluster()
    cluster.setting("timing", timing)
    one = Node(cluster, data_dir, **agent)
    await one.joined()
    try:
        yield one
    finally:
        if not one.task.done():
            cluster.cut = False
            for attempt in one.agent.attempts.values():
                attempt.disown()
            await eventually(lambda: not any(a.is_alive for a in one.agent.attempts.values()))
            await one.agent.stop()
        await asyncio.gather(one.task, return_exceptions=True)
        # The guard of a killed keeper looks twice before it goes.
        await eventually(lambda: not strays_of(data_dir))


def strays_of(data_dir: Path) -> list[int]:
    folders = [str(p) for p in (data_dir / "jobs").iterdir()]
    return [pid for f in folders for pid in (*shim.strays(f), *shim.strays(f, processes.KEEPER))]


def program(code: str, **more: Any) -> Template:
    return Template(argv=("{python}", "-c", code.replace("{", "{{").replace("}", "}}")), **more)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 40))


def test_a_job_completes_and_its_output_is_in_the_store_under_its_digest(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/t", program(GAMES, require_outputs=("games",), require_counts=("games",)))
            one.cluster.add("w", "t", work_type="selfplay")
            job = one.cluster.place("w", "n1")
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
            one.cluster.setting("template/t", program(code))
            one.cluster.add("w", "t", params={"games": "50"})
            job = one.cluster.place("w", "n1")
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
            one.cluster.setting("template/t", program(code))
            one.cluster.add("w", "t")
            job = one.cluster.place("w", "n1")
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
            one.cluster.setting("template/t", program(WAIT))
            one.cluster.add("w", "t")
            job = one.cluster.place("w", "n1")
            await one.says(job.job, "up")
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
            one.cluster.setting("template/t", program(KEEPS_A_PART))
            one.cluster.add("w", "t")
            job = one.cluster.place("w", "n1")
            await one.says(job.job, "up")
            one.cluster.must(StopJob(job.job, job.fence, "make room"))
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.STOPPED)
            assert one.cluster.state.jobs[job.job].counts == {"games": 2}

    run(go)


def test_a_cancelled_item_ends_its_process_and_publishes_nothing(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/t", program(STUBBORN, grace_ms=100))
            one.cluster.add("w", "t")
            job = one.cluster.place("w", "n1")
            await one.says(job.job, "up")
            one.cluster.must(CancelWork("w", "not needed"))
            await eventually(lambda: not one.agent.attempts)
            await eventually(lambda: not strays_of(tmp_path))
            assert one.cluster.work("w").status is WorkStatus.CANCELLED

    run(go)


def test_a_job_over_its_limit_is_stopped_and_fails_as_timeout(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/t", program(WAIT))
            one.cluster.add("w", "t", timeout_ms=300)
            job = one.cluster.place("w", "n1")
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.FAILED)
            assert one.cluster.state.jobs[job.job].error_class == "timeout"

    run(go)


def test_a_job_that_was_taken_away_is_killed_and_forgotten(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/t", program(STUBBORN))
            one.cluster.add("w", "t")
            job = one.cluster.place("w", "n1")
            await one.says(job.job, "up")
            one.cluster.must(FailJob(job.job, job.fence, "infrastructure", "said by somebody else"))
            await eventually(lambda: not one.agent.attempts)
            await eventually(lambda: not strays_of(tmp_path))

    run(go)


def test_jobs_survive_the_agent_and_are_adopted_by_the_next_one(tmp_path: Path) -> None:
    code = GAMES + "\nimport time\nprint('up', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.02)"

    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/t", program(code))
            one.cluster.add("w", "t")
            job = one.cluster.place("w", "n1")
            await one.says(job.job, "up")
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.RUNNING)
            pids = strays_of(tmp_path)
            await one.crash()
            assert sorted(strays_of(tmp_path)) == sorted(pids)
            await one.again()
            await one.joined()
            await eventually(lambda: one.agent.status().running == 1)
            assert sorted(strays_of(tmp_path)) == sorted(pids)
            (one.folder(job.job) / "go").touch()
            await eventually(lambda: one.cluster.work("w").status is WorkStatus.COMPLETED)
            assert len(one.cluster.jobs_of("w")) == 1

    run(go)


def test_an_end_that_nobody_saw_is_reported_by_the_next_agent(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/t", program("import time; time.sleep(0.3)\n" + GAMES))
            one.cluster.add("w", "t")
            job = one.cluster.place("w", "n1")
            await eventually(lambda: one.agent.status().running == 1)
            await one.crash()
            await eventually(lambda: (one.folder(job.job) / "exit.json").exists())
            await one.again()
            await eventually(lambda: one.cluster.work("w").status is WorkStatus.COMPLETED)

    run(go)


def test_a_job_that_is_not_wanted_any_more_is_killed_by_the_next_agent(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/t", program(STUBBORN))
            one.cluster.add("w", "t")
            job = one.cluster.place("w", "n1")
            await one.says(job.job, "up")
            await one.crash()
            one.cluster.must(FailJob(job.job, job.fence, "infrastructure", "lost meanwhile"))
            await one.again()
            await eventually(lambda: not strays_of(tmp_path))
            await eventually(lambda: not one.agent.attempts)

    run(go)


def test_a_keeper_that_is_killed_takes_its_program_with_it_and_is_reported(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/t", program(STUBBORN))
            one.cluster.add("w", "t")
            job = one.cluster.place("w", "n1")
            await one.says(job.job, "up")
            keeper = processes.keeper_of(one.folder(job.job), host.boot_id())
            assert keeper is not None
            os.kill(keeper.pid, signal.SIGKILL)
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.FAILED)
            assert one.cluster.state.jobs[job.job].error_class == "infrastructure"
            await eventually(lambda: not strays_of(tmp_path))

    run(go)


def test_a_keeper_whose_handle_was_not_saved_in_time_is_found_again(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/t", program(WAIT))
            one.cluster.add("w", "t")
            job = one.cluster.place("w", "n1")
            await one.says(job.job, "up")
            one.agent.bench.ledger.handle(job.job, job.fence, processes.Identity("", 0, 0))
            await one.crash()
            pids = strays_of(tmp_path)
            await one.again()
            await eventually(lambda: one.agent.status().running == 1)
            assert sorted(strays_of(tmp_path)) == sorted(pids)

    run(go)


def test_an_attempt_of_an_unknown_release_is_ended_and_not_adopted(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/t", program(STUBBORN))
            one.cluster.add("w", "t")
            job = one.cluster.place("w", "n1")
            await one.says(job.job, "up")
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.RUNNING)
            await one.crash()
            ledger = Ledger(tmp_path / "ledger.sqlite")
            (entry,) = ledger.entries()
            ledger.intend(job.job, job.fence, b"words of another time", entry.folder, host.boot_id(), 1.0)
            ledger.handle(job.job, job.fence, entry.process)
            ledger.close()
            await one.again()
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.FAILED)
            await eventually(lambda: not strays_of(tmp_path))

    run(go)


def test_after_a_reboot_nothing_is_adopted(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path, boot_id="first") as one:
            one.cluster.setting("template/t", program("import time; time.sleep(0.2)"))
            one.cluster.add("w", "t")
            job = one.cluster.place("w", "n1")
            await eventually(lambda: one.agent.status().running == 1)
            await one.crash()
            await eventually(lambda: (one.folder(job.job) / "exit.json").exists())
            one._options["boot_id"] = "second"
            await one.again()
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.LOST)
            await eventually(lambda: not one.agent.attempts)
            assert not one.agent.bench.ledger.entries()

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


def test_losing_the_cluster_ends_no_job_before_its_lease(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/t", program("import time; time.sleep(0.5)\n" + GAMES))
            one.cluster.add("w", "t")
            job = one.cluster.place("w", "n1")
            await eventually(lambda: one.agent.status().running == 1)
            one.cluster.cut = True
            await eventually(lambda: (one.folder(job.job) / "exit.json").exists())
            one.cluster.cut = False
            await eventually(lambda: one.cluster.work("w").status is WorkStatus.COMPLETED)

    run(go)


def test_a_lease_is_counted_from_the_moment_the_acknowledged_beat_was_sent(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/t", program(WAIT))
            one.cluster.add("w", "t")
            job = one.cluster.place("w", "n1")
            await one.says(job.job, "up")
            folder = str(one.folder(job.job))
            first = shim.read_lease(folder, 0.0)
            await eventually(lambda: shim.read_lease(folder, 0.0) > first)
            one.cluster.cut = True
            refused = one.cluster.refused
            await eventually(lambda: one.cluster.refused > refused + 3)
            end = shim.read_lease(folder, 0.0)
            assert end == pytest.approx(one.agent.bench.heard_s + job.lease_ms / 1000, abs=0.002)
            assert end < shim.boot_s() + job.lease_ms / 1000

    run(go)


def test_progress_reaches_the_cluster_while_the_program_runs(tmp_path: Path) -> None:
    code = """
import json, time
for n in range(1, 1000):
    print(json.dumps({"counts": {"games": n}, "total": {"games": 1000}}), file=open("progress.jsonl", "a"), flush=True)
    time.sleep(0.02)
"""

    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/t", program(code))
            one.cluster.add("w", "t")
            job = one.cluster.place("w", "n1")
            await eventually(lambda: one.cluster.state.jobs[job.job].counts.get("games", 0) > 3)
            assert one.cluster.state.jobs[job.job].total == {"games": 1000}

    run(go)


def known(cluster: MemoryCluster, data: bytes, address: str) -> str:
    """A file that another node holds."""
    digest = hashlib.sha256(data).hexdigest()
    if "n2" not in cluster.state.peers:
        cluster.must(JoinPeer("n2", 1, "boot-n2", "worker", address, PeerFacts()))
    cluster.must(RegisterArtifact(digest, len(data), "model", "hex8_2p", "n2"))
    return digest


COPY = """
import json, sys
paths = open(sys.argv[2]).read().split()
texts = [open(p).read() for p in [sys.argv[1], *paths]]
open("result.json", "w").write(json.dumps({"metrics": {"read": "|".join(texts)}}))
"""


def test_inputs_come_from_another_node_and_are_listed_for_the_program(tmp_path: Path) -> None:
    data = b"a model"
    holder = Holder(data)

    async def go() -> None:
        async with node(tmp_path) as one:
            digest = known(one.cluster, data, holder.address)
            template = program(COPY)
            template = Template(argv=(*template.argv, "{net}", "{inputs:old/}"))
            one.cluster.setting("template/t", template)
            one.cluster.add("w", "t", inputs=[Input("net", digest), Input("old/1", digest), Input("old/2", digest)])
            one.cluster.place("w", "n1")
            await eventually(lambda: one.cluster.work("w").status is WorkStatus.COMPLETED)
            assert one.cluster.work("w").metrics == {"read": "a model|a model|a model"}
            assert len(holder.ranges) == 1
            await eventually(lambda: one.cluster.state.artifacts[digest].holders == ("n1", "n2"))

    try:
        run(go)
    finally:
        holder.close()


def test_a_corrupted_input_is_refused_before_anything_starts(tmp_path: Path) -> None:
    data = b"a model"
    holder = Holder(b"a modem")

    async def go() -> None:
        async with node(tmp_path) as one:
            digest = known(one.cluster, data, holder.address)
            one.cluster.setting("template/t", program(GAMES))
            one.cluster.add("w", "t", inputs=[Input("net", digest)])
            job = one.cluster.place("w", "n1")
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.FAILED)
            row = one.cluster.state.jobs[job.job]
            assert row.error_class == "infrastructure"
            assert "other bytes" in row.error
            assert one.agent.status().started == 0
            assert one.agent.bench.blobs.path(digest) is None

    try:
        run(go)
    finally:
        holder.close()


def test_an_input_name_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            digest = one.agent.bench.blobs.add(b"x")
            one.cluster.must(RegisterArtifact(digest, 1, "model", "hex8_2p", "n1"))
            one.cluster.setting("template/t", program(GAMES))
            one.cluster.add("w", "t", inputs=[Input("a/../../../x", digest)])
            job = one.cluster.place("w", "n1")
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.FAILED)
            assert "no path below inputs/" in one.cluster.state.jobs[job.job].error

    run(go)


def test_a_checkpoint_is_there_for_the_next_attempt_and_goes_when_the_item_is_done(tmp_path: Path) -> None:
    code = """
import json, os, sys
if not os.path.exists("checkpoint/half"):
    open("checkpoint/half", "w").write("half")
    sys.exit(1)
open("result.json", "w").write(json.dumps({"metrics": {"found": open("checkpoint/half").read()}}))
"""

    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/t", program(code))
            one.cluster.add("w", "t")
            first = one.cluster.place("w", "n1")
            await eventually(lambda: one.cluster.state.jobs[first.job].actual is Actual.FAILED)

            def ready() -> bool:
                one.cluster.apply(ChangeSetting("timing", settings.encode(QUICK)))  # moves the clock
                return one.cluster.work("w").ready_at_ms <= one.cluster.state.now_ms

            await eventually(ready)
            one.cluster.place("w", "n1")
            await eventually(lambda: one.cluster.work("w").status is WorkStatus.COMPLETED)
            assert one.cluster.work("w").metrics == {"found": "half"}
            await eventually(lambda: not one.agent.attempts)
            assert not list((tmp_path / "checkpoints").iterdir())

    run(go)


def test_a_full_disk_hands_work_back_and_is_told_to_the_cluster(tmp_path: Path) -> None:
    full = Options(cpu_slots=2, tick_s=0.1, upkeep_every_s=0.1, disk_floor=DiskFloor(101.0, 2**60))

    async def go() -> None:
        async with node(tmp_path, options=full) as one:
            assert one.cluster.state.peers["n1"].facts.not_ready == "low disk"

    run(go)


def test_a_stop_leaves_jobs_for_adoption_and_another_stop_takes_them_along(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/t", program(WAIT))
            one.cluster.add("w", "t")
            job = one.cluster.place("w", "n1")
            await one.says(job.job, "up")
            await one.agent.stop()
            await one.task
            assert strays_of(tmp_path)
            await one.again()
            await one.joined()
            await eventually(lambda: one.agent.status().running == 1)
            await one.agent.stop(stop_jobs=True)
            await one.task
            await eventually(lambda: not strays_of(tmp_path))
            assert one.cluster.state.jobs[job.job].actual is Actual.STOPPED

    run(go)


def test_a_replaced_process_stops_and_says_so(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            row = one.cluster.state.peers["n1"]
            one.cluster.must(JoinPeer("n1", row.incarnation + 1, row.boot_id, "worker", row.address, row.facts))
            with pytest.raises(AgentRefused, match="newer process"):
                await one.task

    run(go)


def test_a_peer_that_was_forgotten_joins_again(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            del one.cluster.state.tables["peers"]["n1"]
            await eventually(lambda: "n1" in one.cluster.state.peers)

    run(go)


def test_a_view_older_than_one_acted_on_changes_nothing(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/t", program(WAIT))
            one.cluster.add("w", "t")
            job = one.cluster.place("w", "n1")
            await one.says(job.job, "up")
            passes = 0

            async def past(query: Callable[[State], Any]) -> tuple[Any, int]:
                nonlocal passes
                passes += 1
                return query(MemoryCluster().state), 1

            now, one.cluster.read = one.cluster.read, past  # type: ignore[method-assign, assignment]
            await eventually(lambda: passes > 3)
            assert one.agent.status().running == 1
            one.cluster.read = now  # type: ignore[method-assign]

    run(go)


def test_a_start_that_cannot_be_noted_leaves_no_process_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[processes.Identity] = []

    def full(_: Ledger, job: str, fence: int, process: processes.Identity) -> None:
        started.append(process)
        raise LedgerError("the ledger cannot be written: disk full; look at the disk")

    monkeypatch.setattr(Ledger, "handle", full)

    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/t", program(WAIT))
            one.cluster.add("w", "t")
            one.cluster.place("w", "n1")
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


def test_a_node_that_cannot_read_says_that_it_is_not_ready_and_takes_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "BLIND_S", 0.3)

    async def go() -> None:
        async with node(tmp_path) as one:
            facts = lambda: one.cluster.state.peers["n1"].facts  # noqa: E731
            assert facts().not_ready == ""

            async def nothing(query: Callable[[State], Any]) -> tuple[Any, int]:
                raise ClusterUnavailable("the test has taken the view away")

            now, one.cluster.read = one.cluster.read, nothing
            await eventually(lambda: facts().not_ready == admission.BLIND)
            one.cluster.read = now
            await eventually(lambda: facts().not_ready == "")
            one.cluster.unfit_because = "install the newer release here"
            await eventually(lambda: facts().not_ready == "install the newer release here")
            one.cluster.unfit_because = ""
            await eventually(lambda: facts().not_ready == "")

    run(go)


def test_grants_on_a_view_older_than_one_acted_on_are_handed_back_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "BLIND_S", 0.3)

    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/t", program(WAIT))
            one.cluster.add("runs", "t")
            one.cluster.add("late", "t")
            job = one.cluster.place("runs", "n1")
            await one.says(job.job, "up")

            async def past(query: Callable[[State], Any]) -> tuple[Any, int]:
                return query(one.cluster.state), 1

            now, one.cluster.read = one.cluster.read, past
            granted = one.cluster.place("late", "n1")
            given_back = ReleaseJob(granted.job, granted.fence, admission.BLIND)
            await eventually(lambda: given_back in one.cluster.commands)
            assert one.agent.status().running == 1
            one.cluster.read = now

            def runs_both() -> bool:
                # On a busy machine it may be blind again for a moment, and hands back what it was given.
                if one.cluster.work("late").status is WorkStatus.PENDING:
                    one.cluster.apply(PlaceWork("late", "n1", one.cluster.state.peers["n1"].incarnation))
                return one.agent.status().running == 2

            await eventually(runs_both)

    run(go)


def test_a_stop_of_jobs_before_anything_was_adopted_stops_what_an_earlier_process_left(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/t", program(WAIT))
            one.cluster.add("w", "t")
            job = one.cluster.place("w", "n1")
            await one.says(job.job, "up")
            await one.crash()
            assert strays_of(tmp_path)
            await one.again()
            await asyncio.sleep(0)  # it runs, and has adopted nothing yet
            assert not one.agent.attempts
            await one.agent.stop(stop_jobs=True)
            await one.task
            await eventually(lambda: not strays_of(tmp_path))

    run(go)


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.executors.memory import QUICK
from tests.executors.test_agent import Node, WAIT, first_steps
from tests.executors.memory import MemoryCluster, eventually

async def main():
    cluster = MemoryCluster()
    cluster.setting("timing", QUICK)
    one = Node(cluster, Path(sys.argv[1]))
    await one.joined()
    first_steps(cluster)
    await one.says("w.1", "up")
    await eventually(lambda: one.agent.status().running == 1)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def first_steps(cluster: MemoryCluster) -> None:
    cluster.setting("template/t", program(WAIT))
    cluster.add("w", "t")
    cluster.place("w", "n1")


def test_a_node_process_that_is_killed_leaves_its_job_running_for_the_next_one(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, capture_output=True, text=True, timeout=30, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    pids = strays_of(tmp_path)
    assert len(pids) == 3, "a keeper, its guard and the program"

    async def go() -> None:
        cluster = MemoryCluster()
        cluster.setting("timing", QUICK)
        cluster.must(JoinPeer("n1", 1, host.boot_id(), "worker", "http://n1:1", PeerFacts(cpu_slots=1)))
        first_steps(cluster)  # the same commands, so the same job under the same fence
        one = Node(cluster, tmp_path)
        await one.joined()
        await eventually(lambda: cluster.state.jobs["w.1"].actual is Actual.RUNNING)
        assert sorted(strays_of(tmp_path)) == sorted(pids)
        await one.agent.stop(stop_jobs=True)
        assert not strays_of(tmp_path)
        assert cluster.state.jobs["w.1"].actual is Actual.STOPPED

    run(go)


def test_a_gpu_is_not_used_again_before_its_memory_has_come_back(tmp_path: Path) -> None:
    async def go() -> None:
        gpus = ScriptedGpus()
        async with node(tmp_path, gpus=gpus) as one:
            one.cluster.setting("template/t", program(GAMES))
            for work in ("a", "b"):
                one.cluster.add(work, "t", needs=Needs(gpus=1))
            one.cluster.place("a", "n1", gpus=("GPU-0",))
            gpus.used = 70 << 30
            await eventually(lambda: one.cluster.work("a").status is WorkStatus.COMPLETED)
            await eventually(lambda: one.agent.upkeep.unsettled)
            one.cluster.place("b", "n1", gpus=("GPU-0",))
            passes = one.agent.status().index
            await eventually(lambda: one.agent.status().index > passes + 2)
            assert one.agent.status().started == 1
            gpus.used = 100 << 20
            await eventually(lambda: one.cluster.work("b").status is WorkStatus.COMPLETED)

    run(go)
