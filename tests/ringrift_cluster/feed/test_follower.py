from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from ringrift_cluster.feed.follower import FeedReplica
from ringrift_cluster.feed.router import FeedRouter
from ringrift_cluster.replica import (
    Consistency,
    NoLeader,
    OutcomeUnknown,
    ReadOnly,
    Stale,
    on_behalf,
)
from statemachine.errors import Done
from statemachine.values import Beat
from tests.support.feeding import Cluster
from tests.support.following import DEADLINE_S, caught_up, config, eventually, following, item, run


def test_what_a_proposal_answered_can_be_read_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            proposed = await replica.propose([item("mine"), item("mine-too")])
            assert all(isinstance(r, Done) for r in proposed.results)
            assert (await replica.read(lambda s: "mine" in s.work)).value
            assert replica.status().applied >= proposed.index

    run(scenario())


def test_a_proposal_goes_to_the_leader_first_and_to_the_others_when_it_is_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            await replica.propose([item("w1")])
            cluster.net.take_down("a")
            await replica.propose([item("w2")])
        hosts = [r.url.host for r in cluster.net.requests if r.url.path == "/propose"]
        assert hosts[:2] == ["a", "a"]
        assert hosts[2] in ("b", "c")

    run(scenario())


def test_only_an_answer_that_was_lost_is_an_unknown_outcome(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            cluster.net.deaf.add("a")
            with pytest.raises(OutcomeUnknown, match="voter a took the proposal"):
                await replica.propose([item("w1")])
            cluster.net.deaf.clear()
            cluster.net.take_down(*cluster.urls)
            with pytest.raises(NoLeader, match="does not answer"):
                await replica.propose([item("w2")], timeout_s=0.3)
            assert "w2" not in cluster.leader.machine.state.work

    run(scenario())


def test_no_leader_is_waited_for_within_the_timeout(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            cluster.leader.refusing = NoLeader("an election is on")
            task = asyncio.create_task(replica.propose([item("w1")]))
            await eventually(lambda: sum(r.url.path == "/propose" for r in cluster.net.requests) >= 3)
            cluster.leader.refusing = None
            assert (await task).index > 0
            cluster.leader.refusing = NoLeader("an election is on")
            with pytest.raises(NoLeader, match="an election is on"):
                await replica.propose([item("w2")], timeout_s=0.2)

    run(scenario())


def test_without_a_token_that_is_good_for_it_a_follower_neither_follows_nor_proposes(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path, token="right")
        async with following(cluster, tmp_path / "f1", token="wrong") as replica:
            await eventually(lambda: "no such token" in replica.last_error)
            with pytest.raises(ReadOnly, match="a token that is good for it"):
                await replica.propose([item("w1")])
            assert replica.status().halted is None
        async with following(cluster, tmp_path / "f2", token="right") as replica:
            await caught_up(replica, cluster)
            assert (await replica.propose([item("w1")])).index > 0

    run(scenario())


def test_what_a_caller_asks_for_goes_to_the_voters_under_the_callers_own_token(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path, token="right")
        async with following(cluster, tmp_path / "f", token="right") as replica:
            await caught_up(replica, cluster)
            on_behalf.set("Bearer nobody")
            with pytest.raises(ReadOnly, match="no such token"):
                await replica.propose([item("w1")])
            on_behalf.set("")
            assert (await replica.propose([item("w1")])).index > 0

    run(scenario())


def test_a_linearizable_read_waits_for_a_barrier_through_the_log(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            before = cluster.leader.machine.index
            cluster.leader.commit([item("w1")])
            read = await replica.read(lambda s: "w1" in s.work, consistency=Consistency.LINEARIZABLE)
            assert read.value
            assert read.index >= before + 2
            cluster.net.take_down(*cluster.urls)
            with pytest.raises(NoLeader):
                await replica.read(lambda s: None, consistency=Consistency.LINEARIZABLE)

    run(scenario())


def test_a_view_that_is_not_there_yet_is_waited_for_and_then_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        cluster.leader.commit([item("w1")])
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            task = asyncio.create_task(replica.read(lambda s: len(s.work), at_least=2, wait_s=DEADLINE_S))
            cluster.leader.commit([item("w2")])
            assert (await task).value == 2
            with pytest.raises(Stale, match="entry 99 is not applied here yet"):
                await replica.read(lambda s: None, at_least=99, wait_s=0.01)

    run(scenario())


def test_a_follower_feeds_another_follower(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        cluster.leader.commit([item("w1")])
        async with following(cluster, tmp_path / "f1") as first, cluster.http() as http:
            await caught_up(first, cluster)
            cluster.net.add("f1", FeedRouter(first, beat_s=0.05))
            second_config = replace(config(cluster, tmp_path / "f2"), node_id="f2", voters={"f1": "http://f1:8770"})
            second = await FeedReplica.start(second_config, http)
            try:
                await caught_up(second, cluster)
                cluster.leader.commit([item("w2")])
                await caught_up(second, cluster)
                assert second.status().contact_age_ms >= 0
                assert second.status().leader_id == "a"
            finally:
                await second.stop()

    run(scenario())


def test_heartbeats_reach_any_voter_and_return_the_index(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            cluster.net.take_down(replica.voters.current)
            index = await replica.record(Beat("f1", 7))
            assert index == cluster.leader.machine.index or index > 0
            assert [b.incarnation for v in cluster.voters.values() for b in v.beats] == [7]
            cluster.net.take_down(*cluster.urls)
            with pytest.raises(NoLeader):
                await replica.record(Beat("f1", 7), timeout_s=0.2)

    run(scenario())


def test_leadership_can_be_handed_over_from_a_follower(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            assert await replica.transfer_leadership("b") == "b"
            with pytest.raises(NoLeader, match="zz is not a voter"):
                await replica.transfer_leadership("zz")

    run(scenario())


def test_its_methods_may_be_awaited_on_another_loop(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            seen: list[object] = []

            def elsewhere() -> None:
                async def use() -> None:
                    seen.append((await replica.propose([item("w1")])).index)
                    seen.append((await replica.read(lambda s: "w1" in s.work)).value)

                asyncio.run(use())

            thread = threading.Thread(target=elsewhere)
            thread.start()
            await eventually(lambda: not thread.is_alive())
            assert seen == [cluster.leader.machine.index, True]

    run(scenario())
