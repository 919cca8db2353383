"""A random history of one node: crashes, kills, stops, lost answers, a cluster that cannot be reached."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

from statemachine import settings
from statemachine.commands import AddWork, CancelWork, ChangeSetting, PlaceWork, StopJob
from statemachine.rows import LIVE_JOB, OPEN_WORK, Actual, WorkStatus
from statemachine.settings import Restart, Timing
from tests.executors.agents import Node, program, run, strays_of
from tests.executors.memory import MemoryCluster, eventually

ITEMS = 20
TIMING = Timing(
    heartbeat_ms=100,
    suspect_after_ms=60_000,
    dead_after_ms=120_000,
    lease_ms={"default": 60_000},
    grace_ms=2_000,
    backoff_ms=1,
    backoff_cap_ms=2,
)

MOODY = """
import json, os, random, signal, sys, time
mood = random.Random(os.environ["RINGRIFT_JOB_ID"])
games = 0
def finish(**more):
    open("new", "w").write(json.dumps({"counts": {"games": games}} | more))
    os.rename("new", "result.json")
def stop(*_):
    if not games or mood.random() < 0.5:
        sys.exit(143)
    finish(stopped=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
for games in range(1, mood.randrange(2, 10)):
    time.sleep(0.05)
if mood.random() < 0.15:
    sys.exit(1)
finish()
"""


def place_what_waits(cluster: MemoryCluster) -> None:
    cluster.must(ChangeSetting("timing", settings.encode(TIMING)))  # moves the clock
    for work in list(cluster.state.work.values()):
        live = sum(job.actual in LIVE_JOB for job in cluster.state.jobs.values())
        if work.status is WorkStatus.PENDING and work.ready_at_ms <= cluster.state.now_ms and live < 8:
            cluster.apply(PlaceWork(work.work, "n1", cluster.state.peers["n1"].incarnation))


async def trouble(one: Node, dice: random.Random) -> None:
    cluster, roll = one.cluster, dice.random()
    running = [job for job in cluster.state.jobs.values() if job.actual is Actual.RUNNING]
    if roll < 0.04:
        await one.crash()
        await one.again()
    elif roll < 0.10 and running:
        job = dice.choice(running)
        cluster.apply(StopJob(job.job, job.fence, "a test"))
    elif roll < 0.18:
        victims = strays_of(one.data_dir)
        with suppress(ProcessLookupError):
            if victims:
                os.kill(dice.choice(victims), signal.SIGKILL)
    elif roll < 0.21:
        cluster.lose_answers = 1
    elif roll < 0.23:
        cluster.apply(CancelWork(f"w{dice.randrange(ITEMS)}", "a test"))
    elif roll < 0.25:
        refused, cluster.cut = cluster.refused, True
        await eventually(lambda: cluster.refused > refused)
        cluster.cut = False


def test_whatever_happens_every_item_ends_once_and_no_process_is_left(tmp_path: Path) -> None:
    async def go() -> None:
        dice = random.Random(20)
        cluster = MemoryCluster()
        cluster.setting("timing", TIMING)
        cluster.setting("template/t", program(MOODY))
        again = Restart(attempts=2, on=("infrastructure", "user"), delay_ms=50, cap_ms=100)
        cluster.setting("template/again", program(MOODY, restart=again))
        one = Node(cluster, tmp_path)
        await one.joined()
        for number in range(ITEMS):
            template = "again" if number % 2 else "t"
            cluster.must(AddWork(f"w{number}", "selfplay", template=template, max_attempts=50))
        deadline = time.monotonic() + 30
        while any(work.status in OPEN_WORK for work in cluster.state.work.values()):
            assert time.monotonic() < deadline, [w for w in cluster.state.work.values() if w.status in OPEN_WORK]
            place_what_waits(cluster)
            await trouble(one, dice)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.03):
                    await cluster.wait_for(cluster.machine.index + 1, 1.0)
        await eventually(lambda: not one.agent.attempts)
        counted = sum(w.counts.get("games", 0) for w in cluster.state.work.values() if w.status is WorkStatus.COMPLETED)
        assert cluster.state.totals[""].games == counted
        assert not one.agent.bench.ledger.entries()
        restarted = [job for job in cluster.state.jobs.values() if job.times_restarted]
        assert restarted, "the dice of this test lead through restarts"
        assert all(job.times_restarted <= 2 for job in restarted)
        await eventually(lambda: not strays_of(tmp_path))
        await one.agent.stop()
        await one.task

    try:
        run(go)
    finally:
        for pid in strays_of(tmp_path):
            os.kill(pid, signal.SIGKILL)
