"""Who speaks for a host: gateways and agents that follow each other, and hosts that come and go."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from executors import shim
from executors.drivers.link import Link
from executors.gateway import Gateway, Keys
from executors.ledger import LedgerError
from statemachine import settings
from statemachine.commands import JoinPeer
from statemachine.rows import Actual, PeerStatus
from statemachine.values import PeerFacts
from tests.executors.agents import GAMES, KEEPS_A_PART, STUBBORN, WAIT, program
from tests.executors.hosts import Site, door, pulse, run, site
from tests.executors.memory import eventually
from tests.support.sshd import Sshd


def test_a_host_given_to_another_gateway_is_cleared_before_its_jobs_are_given_up(server: Sshd, tmp_path: Path) -> None:
    async def go() -> None:
        async with site(server, tmp_path) as one:
            job = one.place("w1", program(WAIT))
            await one.says(job.job, "up")
            await one.crash()
            one.data_dir = tmp_path / "other"
            one.cluster.must(JoinPeer("other", 1, "boot-2", "follower", "http://other:1", PeerFacts()))
            one.cluster.setting("host/h1", replace_gateway(one.host, "other"))
            one.begin("other")
            await eventually(lambda: one.cluster.state.peers["h1"].address == "http://other:1")
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.FAILED)
            assert not one.living()
            assert one.cluster.state.jobs[job.job].error_class == "lost"

    run(go)


async def taken_by_another(one: Site) -> int:
    """Have another agent claim the host; returns its incarnation."""
    incarnation = one.cluster.state.peers["h1"].incarnation + 1
    fields = {"root": f"{one.root}/c1/h1"}
    other = await Link.open(replace(door(one.server, one.root), **fields))
    await other.call("claim", incarnation=incarnation, held=None)
    await other.close()
    return incarnation


def owner(one: Site) -> int:
    return (shim.read_record(f"{one.root}/c1/h1/owner") or {})["incarnation"]


def test_a_gateway_that_the_cluster_does_not_hear_takes_no_host_back(
    server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("executors.gateway.REST_S", 0.1)

    async def go() -> None:
        async with site(server, tmp_path) as one:
            other, before = await taken_by_another(one), one.gateway.posts["h1"].agent
            one.cluster.cut = True
            one.proxy.cut()

            def anew() -> bool:
                agent = one.gateway.posts["h1"].agent
                return agent not in (None, before) and agent._adopted.is_set()

            await eventually(anew)
            assert one.gateway.posts["h1"].agent.heartbeat.incarnation > other
            assert owner(one) == other
            one.cluster.cut = False
            await eventually(lambda: owner(one) > other)

    run(go)


def test_an_agent_that_lost_the_host_is_followed_by_another_and_the_job_did_not_fail(
    server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("executors.gateway.REST_S", 0.1)

    async def go() -> None:
        async with site(server, tmp_path) as one:
            other = await taken_by_another(one)
            one.place("w1", program(GAMES))
            await one.ended("w1")
            assert one.cluster.state.work["w1"].attempts == 1
            assert owner(one) > other

    run(go)


def replace_gateway(host: settings.Host, gateway: str) -> settings.Host:
    return settings.Host(**{**{f: getattr(host, f) for f in host.__struct_fields__}, "gateway": gateway})


def test_a_host_that_was_started_anew_has_nothing_of_before(server: Sshd, tmp_path: Path) -> None:
    async def go() -> None:
        async with site(server, tmp_path) as one:
            job = one.place("w1", program(WAIT))
            await one.says(job.job, "up")
            post = one.gateway.posts["h1"]
            post.agent.bench.ledger._write("update attempt set boot_id = 'before'")
            post.driver._line.boot_id = "before"
            one.proxy.cut()
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.FAILED)
            assert one.cluster.state.jobs[job.job].error_class == "lost"
            assert not one.living()

    run(go)


def test_a_host_that_is_not_enabled_any_more_says_goodbye_with_its_jobs_stopped(server: Sshd, tmp_path: Path) -> None:
    async def go() -> None:
        async with site(server, tmp_path) as one:
            job = one.place("w1", program(KEEPS_A_PART))
            await one.says(job.job, "up")
            fields = {f: getattr(one.host, f) for f in one.host.__struct_fields__}
            one.cluster.setting("host/h1", settings.Host(**{**fields, "enabled": False}))
            await eventually(lambda: one.cluster.state.peers["h1"].left)
            assert one.cluster.state.peers["h1"].status is PeerStatus.DEAD
            assert one.cluster.state.jobs[job.job].counts == {"games": 2}
            assert not one.living()
            one.cluster.setting("host/h1", one.host)
            await eventually(lambda: not one.cluster.state.peers["h1"].left)

    run(go)


def test_no_goodbye_is_said_for_a_host_whose_jobs_could_not_be_stopped(server: Sshd, tmp_path: Path) -> None:
    async def go() -> None:
        async with site(server, tmp_path) as one:
            job = one.place("w1", program(STUBBORN))
            await one.says(job.job, "up")
            driver = one.gateway.posts["h1"].driver
            one.proxy.closed = True
            one.proxy.cut()
            await eventually(lambda: not driver.reached())
            fields = {f: getattr(one.host, f) for f in one.host.__struct_fields__}
            one.cluster.setting("host/h1", settings.Host(**{**fields, "enabled": False}))
            await eventually(lambda: "h1" not in one.gateway.posts)
            assert one.living()
            assert not one.cluster.state.peers["h1"].left
            assert one.cluster.state.jobs[job.job].actual is Actual.RUNNING
            one.proxy.closed = False
            await one.joined()
            assert len(one.attempts) == 1

    run(go)


def test_a_host_whose_agent_cannot_be_made_keeps_no_connection(
    server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("executors.gateway.REST_S", 0.1)
    drivers: list[Any] = []
    made = Gateway._agent

    def fails(gateway: Gateway, name: str, setting: settings.Host, data_dir: Path, driver: Any) -> Any:
        drivers.append(driver)
        if len(drivers) == 1:
            raise LedgerError("the disk is full")
        return made(gateway, name, setting, data_dir, driver)

    monkeypatch.setattr(Gateway, "_agent", fails)

    async def go() -> None:
        async with site(server, tmp_path):
            assert [driver._line._link.broken for driver in drivers] == ["it was closed", ""]

    run(go)


def test_all_hosts_together_run_no_more_than_the_gateway_may(server: Sshd, tmp_path: Path) -> None:
    async def go() -> None:
        async with site(server, tmp_path, Keys(jobs=1)) as one:
            first = one.place("w1", pulse(tmp_path / "go"))
            await one.says(first.job, "beat")
            second = one.place("w2", program(GAMES))
            await asyncio.sleep(0.5)
            assert one.cluster.state.jobs[second.job].actual is Actual.PENDING
            (tmp_path / "go").touch()
            await one.ended("w2")

    run(go)
