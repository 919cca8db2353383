"""What happens to a program that failed, on its own node: the decision, and whole lives of real processes."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from executors import host, processes
from executors.ledger import Ledger
from executors.logs import Logs
from executors.processes import Exit
from executors.restarts import NEVER, Again, Failed, GiveUp, by_itself, decide, told_of, wait_s
from statemachine.commands import CancelWork, ChangeSetting, DrainGpu, DrainPeer, FailJob, JoinPeer, RestartJob, StopJob
from statemachine.rows import Actual, Job, WorkStatus
from statemachine.settings import Restart
from statemachine.values import Needs, PeerFacts
from tests.executors.agents import GAMES, OPTIONS, WAIT, Node, node, program, run, strays_of
from tests.executors.memory import QUICK, MemoryCluster, eventually
from tests.executors.test_gpus import ScriptedGpus

POLICY = Restart(attempts=3, on=("infrastructure", "cuda", "user"), delay_ms=1_000, cap_ms=3_000, jitter_percent=50)
NOW = 1_000.0


def failed(error_class: str = "cuda", **more: Any) -> Failed:
    return Failed(error_class, **({"restarts": 0, "by_itself": True, "gone": True, "lease_ends_s": NOW + 60} | more))


# --- the decision -----------------------------------------------------------------------------------

TABLE = [
    ("a class that may pass", POLICY, failed(), "1"),
    ("a class the template names", POLICY, failed("user"), "1"),
    ("a class it does not name", replace(POLICY, on=("cuda",)), failed("user"), "no restart after user"),
    ("no policy", None, failed(), "asks for no restart"),
    ("a policy of none", replace(POLICY, attempts=0), failed(), "asks for no restart"),
    ("told to stop, or by its lease", POLICY, failed(by_itself=False), "told to end"),
    ("with processes that are left", POLICY, failed(gone=False), "did not disappear"),
    ("memory", POLICY, failed("oom"), "memory would run out again"),
    ("somebody else's SIGTERM", POLICY, failed("preempted"), "wants it gone"),
    ("its limit", POLICY, failed("timeout"), "its time is over"),
    ("made nothing, or a verdict without its files", POLICY, failed("no_output"), "would make nothing again"),
    ("lost", POLICY, failed("lost"), "no process of it is left"),
    ("stopped", POLICY, failed("stopped"), "told to stop"),
    ("the last start of its budget", POLICY, failed(restarts=2), "3"),
    ("the budget is used up", POLICY, failed(restarts=3), "started again 3 times, as often as"),
    ("its lease is over", POLICY, failed(lease_ends_s=NOW), "its lease is over"),
    ("no time for another", POLICY, failed(limit_s=NOW + 1), "its time would be over"),
    ("time for another", POLICY, failed(limit_s=NOW + 1.1), "1"),
]


@pytest.mark.parametrize(("policy", "what", "answer"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_the_table_of_restarts(policy: Restart | None, what: Failed, answer: str) -> None:
    found = decide(policy, what, NOW, 0.0)
    if isinstance(found, GiveUp):
        assert answer in found.reason
    else:
        assert f"{found.delay_s:g}" == answer


@pytest.mark.parametrize(
    ("restarts", "draw", "waits"),
    [(0, 0.0, 1.0), (0, 0.5, 1.25), (1, 0.0, 2.0), (2, 0.0, 3.0), (3, 0.0, 3.0), (19, 0.9, 4.35)],
)
def test_a_wait_doubles_up_to_its_cap_and_then_comes_the_jitter(restarts: int, draw: float, waits: float) -> None:
    assert wait_s(POLICY, restarts, draw) == pytest.approx(waits)


policies = st.builds(
    Restart,
    attempts=st.integers(0, 20),
    on=st.lists(st.sampled_from(("infrastructure", "cuda", "user")), unique=True, min_size=1).map(tuple),
    delay_ms=st.integers(0, 600_000),
    cap_ms=st.integers(0, 600_000),
    jitter_percent=st.integers(0, 100),
)
failures = st.builds(
    Failed,
    error_class=st.sampled_from((*NEVER, "infrastructure", "cuda", "user", "poisoned", "hung")),
    restarts=st.integers(0, 25),
    by_itself=st.booleans(),
    gone=st.booleans(),
    lease_ends_s=st.floats(0, 2_000),
    limit_s=st.one_of(st.just(0.0), st.floats(0, 5_000)),
)


@given(policy=policies, what=failures, now_s=st.floats(0, 2_000), draw=st.floats(0, 1, exclude_max=True))
def test_a_restart_is_within_its_budget_its_bounds_its_lease_and_its_time(
    policy: Restart, what: Failed, now_s: float, draw: float
) -> None:
    found = decide(policy, what, now_s, draw)
    if isinstance(found, GiveUp):
        assert found.reason
        return
    assert what.restarts < policy.attempts
    assert what.error_class in policy.on
    assert what.error_class not in NEVER
    assert what.by_itself
    assert what.gone
    assert now_s < what.lease_ends_s
    longest = policy.cap_ms * (1 + policy.jitter_percent / 100) / 1000
    assert min(policy.delay_ms, policy.cap_ms) / 1000 <= found.delay_s <= longest
    assert not what.limit_s or now_s + found.delay_s < what.limit_s


@given(policy=policies)
def test_no_program_is_started_again_more_often_than_its_template_allows(policy: Restart) -> None:
    starts = 0
    while isinstance(decide(policy, failed(policy.on[0], restarts=starts), NOW, 0.0), Again):
        starts += 1
    assert starts == policy.attempts


def test_who_ended_a_program_is_told_by_its_keeper() -> None:
    assert by_itself(Exit(1, 0, "exited"), "")
    assert by_itself(Exit(127, 0, "spawn"), "")
    assert by_itself(None, ""), "whoever killed the keeper told the program nothing"
    assert not by_itself(Exit(1, 0, "exited"), "asked")
    assert not any(by_itself(Exit(0, 15, cause), "") for cause in ("stop", "kill", "lease"))


def test_the_last_words_say_how_many_restarts_came_before_them() -> None:
    assert told_of(0, "it broke") == "it broke"
    assert told_of(1, "it broke") == "after 1 restart on its node: it broke"
    assert told_of(2, "it broke") == "after 2 restarts on its node: it broke"


# --- whole lives ------------------------------------------------------------------------------------

#: fails until it has been started as often as its parameter says; the count is kept outside of its folders
FLAKY = """
import json, os, sys
tries = os.environ["TRIES"]
open(tries, "a").write(os.environ["RINGRIFT_JOB_DIR"] + chr(10))
number = len(open(tries).readlines())
os.makedirs("out", exist_ok=True)
assert not os.listdir("out"), "a folder of its own"
open("out/games.bin", "w").write("games of start " + str(number))
open("checkpoint/steps", "a").write(str(number))
print("start", number, flush=True)
open("progress.jsonl", "w").write(json.dumps({"counts": {"games": 3}}) + chr(10))
if number < int(os.environ["GOOD"]):
    print("CUDA error: start", number, "was in vain", file=sys.stderr)
    sys.exit(1)
outputs = [{"path": "games.bin", "kind": "games", "counts": {"games": 5}}]
steps = open("checkpoint/steps").read()
open("result.json", "w").write(json.dumps({"counts": {"games": 5}, "outputs": outputs, "metrics": {"steps": steps}}))
"""

SOON = Restart(attempts=2, on=("cuda",), delay_ms=20, cap_ms=20)
LATER = Restart(attempts=2, on=("cuda",), delay_ms=600_000, cap_ms=600_000)


def place(one: Node | MemoryCluster, tmp_path: Path, good: int, restart: Restart | None, **more: Any) -> Job:
    cluster = one.cluster if isinstance(one, Node) else one
    env = {"TRIES": str(tmp_path / "tries"), "GOOD": str(good)}
    cluster.setting("template/t", program(FLAKY, env=env, restart=restart, **more))
    cluster.add("w", "t", work_type="selfplay")
    return cluster.place("w", "n1")


def starts(tmp_path: Path) -> list[str]:
    path = tmp_path / "tries"
    return [Path(line).name for line in path.read_text().splitlines()] if path.exists() else []


def restarting(one: Node, count: int = 1) -> bool:
    """Whether it waits for this restart, and the cluster and the ledger know it."""
    row = one.cluster.state.jobs["w.1"]
    return row.times_restarted == count and one.agent.status().waiting == 1


def test_a_program_that_fails_twice_and_then_does_well_is_one_job_that_counts_once(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            job = place(one, tmp_path, 3, SOON)
            await eventually(lambda: one.cluster.work("w").status is WorkStatus.COMPLETED)
            work, row = one.cluster.work("w"), one.cluster.state.jobs[job.job]
            assert (work.attempts, work.counts, work.failed_on) == (1, {"games": 5}, ())
            assert len(one.cluster.jobs_of("w")) == 1
            assert row.restarts.count == 2
            assert row.restarts.error_class == "cuda"
            assert "start 2 was in vain" in row.restarts.error
            (output,) = row.outputs
            made = one.agent.bench.blobs.path(output.digest)
            assert made is not None
            assert made.read_text() == "games of start 3"
            assert len(one.cluster.state.artifacts) == 1, "what the failed ones made is nowhere"
            folders = [f"w.1-{job.fence}", f"w.1-{job.fence}.1", f"w.1-{job.fence}.2"]
            assert starts(tmp_path) == folders, "each in a folder of its own"
            assert work.metrics == {"steps": "123"}, "and from the checkpoint of the one before"
            assert not any((tmp_path / "jobs" / name / "out").exists() for name in folders)
            assert one.cluster.state.peers["n1"].failures == 0
            status = one.agent.status()
            assert (status.started, status.restarted, status.completed, status.failed) == (1, 2, 1, 0)
            assert Logs(tmp_path).tail("w.1") == "start 3\n"
            await eventually(lambda: not one.agent.attempts)
            assert not one.agent.bench.ledger.entries()

    run(go)


def test_a_program_that_never_does_well_is_reported_once_with_the_evidence_of_its_last_start(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            job = place(one, tmp_path, 99, SOON)
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.FAILED)
            row = one.cluster.state.jobs[job.job]
            assert row.error_class == "cuda"
            assert row.error.startswith("after 2 restarts on its node: it exited with code 1")
            assert "start 3 was in vain" in row.error
            assert len(starts(tmp_path)) == 3
            assert (one.cluster.work("w").attempts, one.cluster.work("w").failed_on) == (1, ("n1",))
            assert one.cluster.state.peers["n1"].failures == 1, "one attempt, one failure"
            assert one.agent.status().failed == 1

    run(go)


ONCE = [
    ("user", "import sys; sys.exit(3)", Restart(delay_ms=0, cap_ms=0), None),
    ("oom", "raise MemoryError('big')", Restart(delay_ms=0, cap_ms=0), None),
    ("no_output", "import sys; sys.exit(1)", Restart(delay_ms=0, cap_ms=0), {1: "verdict"}),
    ("preempted", "import os; os.kill(os.getpid(), 15)", Restart(delay_ms=0, cap_ms=0), None),
    ("infrastructure", "import os; os.kill(os.getpid(), 9)", None, None),
]


@pytest.mark.parametrize(("error_class", "code", "restart", "codes"), ONCE, ids=[row[0] for row in ONCE])
def test_what_would_end_like_that_again_is_reported_at_once(
    tmp_path: Path, error_class: str, code: str, restart: Restart | None, codes: dict[int, Any] | None
) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            text = msgspec.json.encode(program(code, restart=restart, exit_codes=codes or {})).decode()
            one.cluster.must(ChangeSetting("template/t", text))
            one.cluster.add("w", "t")
            job = one.cluster.place("w", "n1")
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.FAILED)
            assert one.cluster.state.jobs[job.job].error_class == error_class
            assert not any(isinstance(command, RestartJob) for command in one.cluster.commands)

    run(go)


def test_a_killed_keeper_is_followed_by_another_only_when_its_program_is_gone(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/t", program(WAIT, restart=Restart(attempts=1, delay_ms=0, cap_ms=0)))
            one.cluster.add("w", "t")
            job = one.cluster.place("w", "n1")
            await one.says(job.job, "up")
            first = tmp_path / "jobs" / f"w.1-{job.fence}"
            keeper = processes.keeper_of(first, host.boot_id())
            assert keeper is not None
            os.kill(keeper.pid, signal.SIGKILL)
            await eventually(lambda: (tmp_path / "jobs" / f"w.1-{job.fence}.1" / "pids.json").exists())
            assert not processes.marked(first, "RINGRIFT_JOB_DIR")
            assert one.cluster.state.jobs[job.job].actual is Actual.RUNNING

    run(go)


def test_a_restart_waits_until_the_memory_of_its_gpu_has_come_back(tmp_path: Path) -> None:
    async def go() -> None:
        gpus = ScriptedGpus()
        async with node(tmp_path, gpus=gpus) as one:
            env = {"TRIES": str(tmp_path / "tries"), "GOOD": "2"}
            one.cluster.setting("template/t", program(FLAKY, env=env, restart=SOON))
            one.cluster.add("w", "t", needs=Needs(gpus=1))
            gpus.used = 70 << 30
            one.cluster.place("w", "n1", gpus=("GPU-0",))
            await eventually(lambda: restarting(one))
            await eventually(lambda: one.agent.upkeep.unsettled)
            passes = one.agent.status().index
            await eventually(lambda: one.agent.status().index > passes + 2)
            assert len(starts(tmp_path)) == 1
            gpus.used = 100 << 20
            await eventually(lambda: one.cluster.work("w").status is WorkStatus.COMPLETED)

    run(go)


def test_a_program_whose_gpu_is_drained_goes_on_elsewhere(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path, gpus=ScriptedGpus()) as one:
            env = {"TRIES": str(tmp_path / "tries"), "GOOD": "2"}
            one.cluster.setting("template/t", program(FLAKY, env=env, restart=LATER))
            one.cluster.add("w", "t", needs=Needs(gpus=1))
            one.cluster.place("w", "n1", gpus=("GPU-0",))
            await eventually(lambda: restarting(one))
            one.cluster.must(DrainGpu("n1", "GPU-0", True, "xid 79"))
            await eventually(lambda: one.cluster.state.jobs["w.1"].actual is Actual.FAILED)
            assert "its GPU GPU-0 gets no new work" in one.cluster.state.jobs["w.1"].error

    run(go)


def fail_others(one: Node, job: Job) -> None:
    """Let so much fail on the node that it is held back."""
    one.cluster.must(ChangeSetting("limits", '{"failures_before_hold":1}'))
    one.cluster.add("other", "t")
    other = one.cluster.place("other", "n1")
    one.cluster.must(FailJob(other.job, other.fence, "oom", "a test"))


ENDS = [
    ("a stop", lambda one, job: one.cluster.must(StopJob(job.job, job.fence, "make room")), "make room"),
    ("a drain", lambda one, job: one.cluster.must(DrainPeer("n1", True, "maintenance")), "drained"),
    ("a node that is held back", fail_others, "held back"),
    ("a cancelled item", lambda one, job: one.cluster.must(CancelWork("w", "not needed")), "not needed"),
    ("an agent that stops its jobs", lambda one, job: one.agent._stop_all("the node is stopping"), "is stopping"),
]


@pytest.mark.parametrize(("end", "words"), [row[1:] for row in ENDS], ids=[row[0] for row in ENDS])
def test_the_end_of_a_wait_is_the_report_of_the_failure_that_was_waited_for(
    tmp_path: Path, end: Any, words: str
) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            job = place(one, tmp_path, 2, LATER)
            await eventually(lambda: restarting(one))
            end(one, job)
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.FAILED)
            row = one.cluster.state.jobs[job.job]
            assert row.error_class == "cuda"
            assert "it was not started again (" in row.error
            assert words in row.error
            assert "start 1 was in vain" in row.error
            assert len(starts(tmp_path)) == 1
            await eventually(lambda: not one.agent.attempts)
            saved = [a.kind for a in one.cluster.state.artifacts.values()]
            assert saved == ([] if one.cluster.work("w").status is WorkStatus.CANCELLED else ["checkpoint"])

    run(go)


def test_a_job_that_is_given_away_while_it_waits_is_forgotten(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            job = place(one, tmp_path, 2, LATER)
            await eventually(lambda: restarting(one))
            one.cluster.must(FailJob(job.job, job.fence, "infrastructure", "said by somebody else"))
            await eventually(lambda: not one.agent.attempts)
            assert len(starts(tmp_path)) == 1
            assert not one.agent.bench.ledger.entries()

    run(go)


def test_a_lease_that_lapses_while_it_waits_ends_the_wait(tmp_path: Path) -> None:
    short = replace(QUICK, lease_ms={"default": 5_200}, grace_ms=100)
    soon = Restart(attempts=2, on=("cuda",), delay_ms=1_500, cap_ms=1_500, jitter_percent=0)
    narrow = dataclasses.replace(OPTIONS, margin_s=4.7)

    async def go() -> None:
        async with node(tmp_path, timing=short, options=narrow) as one:
            place(one, tmp_path, 2, soon)
            await eventually(lambda: restarting(one))
            one.cluster.cut = True
            await eventually(lambda: one.agent.status().waiting == 0)
            assert one.agent.status().reporting == 1
            one.cluster.cut = False
            await eventually(lambda: one.cluster.state.jobs["w.1"].actual is Actual.FAILED)
            assert "its lease is over" in one.cluster.state.jobs["w.1"].error
            assert len(starts(tmp_path)) == 1

    run(go)


def test_a_restart_asks_the_log_first_though_the_nodes_view_still_shows_the_job(tmp_path: Path) -> None:
    soon = Restart(attempts=2, on=("cuda",), delay_ms=300, cap_ms=300, jitter_percent=0)

    async def go() -> None:
        async with node(tmp_path) as one:
            job = place(one, tmp_path, 2, soon)
            await eventually(lambda: restarting(one))
            read, old = one.cluster.read, await one.cluster.read(lambda state: None)
            stale = {}

            async def behind(query: Any) -> Any:
                if "view" not in stale:
                    stale["view"] = await read(query)
                return stale["view"]

            one.cluster.read = behind
            await eventually(lambda: "view" in stale)
            assert old[1] <= stale["view"][1]
            one.cluster.must(FailJob(job.job, job.fence, "infrastructure", "said by somebody else"))
            await eventually(lambda: one.agent.status().waiting == 0)
            await eventually(lambda: one.agent.status().preparing == 0)
            one.cluster.read = read
            await eventually(lambda: not one.agent.attempts)
            assert len(starts(tmp_path)) == 1

    run(go)


# --- a node process that dies ---------------------------------------------------------------------


def test_an_agent_that_is_started_anew_goes_on_waiting_and_does_not_forget_what_was_used_up(tmp_path: Path) -> None:
    soon = Restart(attempts=2, on=("cuda",), delay_ms=700, cap_ms=700, jitter_percent=0)

    async def go() -> None:
        async with node(tmp_path) as one:
            place(one, tmp_path, 99, soon)
            for count in (1, 2):
                await eventually(lambda count=count: restarting(one, count))
                await one.crash()
                await one.again()
                await one.joined()
            await eventually(lambda: one.cluster.state.jobs["w.1"].actual is Actual.FAILED)
            assert len(starts(tmp_path)) == 3
            row = one.cluster.state.jobs["w.1"]
            assert row.error.startswith("after 2 restarts on its node:")
            assert "start 3 was in vain" in row.error
            announced = [c.count for c in one.cluster.commands if isinstance(c, RestartJob)]
            assert announced == [1, 2]

    run(go)


def test_a_wait_that_ends_after_the_agent_was_started_anew_still_knows_the_failure(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            job = place(one, tmp_path, 2, LATER)
            await eventually(lambda: restarting(one))
            await one.crash()
            await one.again()
            await one.joined()
            await eventually(lambda: restarting(one))
            one.cluster.must(StopJob(job.job, job.fence, "make room"))
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.FAILED)
            assert "start 1 was in vain" in one.cluster.state.jobs[job.job].error

    run(go)


def test_a_restart_that_died_with_its_agent_before_its_keeper_was_there_has_its_turn_once_more(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            job = place(one, tmp_path, 2, LATER)
            await eventually(lambda: restarting(one))
            await one.crash()
            ledger = Ledger(tmp_path / "ledger.sqlite")
            (entry,) = ledger.entries()
            folder = tmp_path / "jobs" / f"w.1-{job.fence}.1"
            ledger.intend(job.job, job.fence, entry.assignment, str(folder), host.boot_id(), 1.0)
            (intended,) = ledger.entries()
            assert intended.started_at_s == entry.started_at_s
            ledger.close()
            await one.again()
            await eventually(lambda: one.cluster.work("w").status is WorkStatus.COMPLETED)
            assert starts(tmp_path) == [f"w.1-{job.fence}", folder.name]

    run(go)


FAILS_UNSEEN = """
import os, sys, time
if not os.listdir("checkpoint"):
    open("checkpoint/begun", "w").close()
    print("up", flush=True)
    while not os.path.exists("go"): time.sleep(0.02)
    sys.exit("CUDA error: nobody saw it")
"""


def test_a_failure_while_no_agent_was_there_is_followed_by_a_restart_of_the_next_one(tmp_path: Path) -> None:
    async def go() -> None:
        async with node(tmp_path) as one:
            one.cluster.setting("template/t", program(FAILS_UNSEEN + GAMES, restart=SOON))
            one.cluster.add("w", "t")
            job = one.cluster.place("w", "n1")
            await one.says(job.job, "up")
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.RUNNING)
            await one.crash()
            folder = one.folder(job.job)
            (folder / "go").touch()
            await eventually(lambda: (folder / "exit.json").exists())
            tried, propose, one.cluster.cut = list[Any](), one.cluster.propose, True

            async def proposed(commands: Any) -> Any:
                tried.extend(commands)
                return await propose(commands)

            one.cluster.propose = proposed
            await one.again()
            # It is judged before the cluster has heard of this agent, whose leases count from then on.
            await eventually(lambda: any(isinstance(c, RestartJob | FailJob) for c in tried))
            one.cluster.cut = False
            await eventually(lambda: one.cluster.work("w").status is WorkStatus.COMPLETED)
            row = one.cluster.state.jobs[job.job]
            assert "nobody saw it" in row.restarts.error
            assert row.times_restarted == 1

    run(go)


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.executors.memory import QUICK, MemoryCluster, eventually
from tests.executors.agents import Node
from tests.executors.test_restarts import LATER, place, restarting

async def main():
    cluster = MemoryCluster()
    cluster.setting("timing", QUICK)
    one = Node(cluster, Path(sys.argv[1]))
    await one.joined()
    place(one, Path(sys.argv[1]), 2, LATER)
    await eventually(lambda: restarting(one))
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_a_node_process_that_is_killed_while_a_restart_waits_is_followed_by_one_that_makes_it(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, capture_output=True, text=True, timeout=30, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not strays_of(tmp_path), "nothing runs while it waits"
    ledger = Ledger(tmp_path / "ledger.sqlite")
    (entry,) = ledger.entries()
    assert (entry.restarts, entry.reported) == (1, False)
    # Nobody waits ten minutes here; what is tested is that the wait is the ledger's.
    ledger.waits(entry.job, entry.fence, entry.restarts, host.HostClock().boot_s() + 0.2, entry.failure)
    ledger.close()

    async def go() -> None:
        cluster = MemoryCluster()
        cluster.setting("timing", QUICK)
        cluster.must(JoinPeer("n1", 1, host.boot_id(), "worker", "http://n1:1", PeerFacts(cpu_slots=1)))
        job = place(cluster, tmp_path, 2, LATER)  # the same commands, so the same job under the same fence
        cluster.must(RestartJob(job.job, job.fence, 1, "cuda", "CUDA error"))
        one = Node(cluster, tmp_path)
        await one.joined()
        await eventually(lambda: cluster.work("w").status is WorkStatus.COMPLETED)
        assert len(starts(tmp_path)) == 2
        assert cluster.state.jobs["w.1"].restarts.count == 1
        await eventually(lambda: not one.agent.attempts)
        await one.agent.stop()
        await asyncio.gather(one.task, return_exceptions=True)

    run(go)


def test_a_ledger_of_an_earlier_release_learns_the_new_columns(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    old = sqlite3.connect(path)
    old.execute(
        "create table attempt (job text not null, fence integer not null, assignment blob not null, folder text not "
        "null, boot_id text not null, pid integer not null default 0, ticks integer not null default 0, started_at_s "
        "real not null default 0, stop_cause text not null default '', reported integer not null default 0, "
        "primary key (job, fence))"
    )
    old.execute("insert into attempt (job, fence, assignment, folder, boot_id) values ('w.1', 7, x'00', 'f', 'b')")
    old.commit()
    old.close()
    for _ in range(2):
        ledger = Ledger(path)
        (entry,) = ledger.entries()
        assert (entry.restarts, entry.due_s, entry.failure) == (0, 0.0, b"")
        ledger.close()
