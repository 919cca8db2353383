from __future__ import annotations

import asyncio
import hashlib
import io
import random
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from ringrift_cluster.feed import FeedReplica, FeedRouter, FollowerConfig
from ringrift_cluster.feed import follower as follower_module
from ringrift_cluster.raft.window import Applied
from ringrift_cluster.replica import (
    Consistency,
    Halted,
    NoLeader,
    OutcomeUnknown,
    ReadOnly,
    Stale,
    on_behalf,
)
from statemachine.commands import AddWork, CreateToken, RaiseFeatureLevel, RevokeToken, encode_command
from statemachine.entries import encode_entry
from statemachine.errors import Done
from statemachine.machine import Machine
from statemachine.snapshot import freeze, header, read_header, write
from statemachine.values import Beat, Scope
from tests.support.feeding import Cluster

DEADLINE_S = 5.0


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 20.0))


def item(name: str) -> bytes:
    return encode_command(AddWork(work=name, work_type="selfplay"))


def config(cluster: Cluster, directory: Path, **changes: Any) -> FollowerConfig:
    base = FollowerConfig(
        node_id="f1",
        voters=cluster.urls,
        data_dir=directory,
        wait_s=0.3,
        backoff_s=0.005,
        backoff_cap_s=0.02,
        barrier_s=1.0,
    )
    return replace(base, **changes)


@asynccontextmanager
async def following(cluster: Cluster, directory: Path, **changes: Any) -> AsyncIterator[FeedReplica]:
    async with cluster.http() as http:
        replica = await FeedReplica.start(config(cluster, directory, **changes), http, rng=random.Random(1))
        try:
            yield replica
        finally:
            await replica.stop()


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not holds():
            await asyncio.sleep(0.002)


async def caught_up(replica: FeedReplica, cluster: Cluster) -> None:
    target = cluster.leader.machine.index
    assert await replica.wait_for(target, DEADLINE_S) >= target
    await eventually(lambda: replica.status().ready)
    assert replica.status().chain == cluster.leader.machine.chain.hex()


def test_a_follower_starts_from_a_snapshot_and_streams_what_comes_after(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        cluster.leader.commit([item("before")])
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            cluster.leader.commit([item("after")])
            await caught_up(replica, cluster)
            read = await replica.read(lambda state: sorted(state.work))
            assert read.value == ["after", "before"]
            assert read.index == 2
            status = replica.status()
            assert (status.role, status.leader_id, status.cluster_id) == ("follower", "a", "memory")
            assert status.voters == ("a", "b", "c")

    run(scenario())


def test_a_restarted_follower_continues_from_its_own_snapshot(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        cluster.leader.commit([item("w1")])
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
        for n in range(5):
            cluster.leader.commit([item(f"x{n}")])
        before = sum(v.snapshots for v in cluster.voters.values())
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            assert replica.snapshots_taken == 0
        assert sum(v.snapshots for v in cluster.voters.values()) == before

    run(scenario())


def _flipped(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def _of_another_cluster(_: bytes) -> bytes:
    machine, out = Machine(), io.BytesIO()
    machine.apply(1, 1, encode_entry(1, 0, [item("foreign")]))
    frozen = freeze(machine)
    write(frozen, header(frozen, "another", ("a",)), out)
    return out.getvalue()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a flipped bit in the magic": lambda data: _flipped(data, 2),
    "a flipped bit in the header": lambda data: _flipped(data, 20),
    "a flipped bit in a section": lambda data: _flipped(data, len(data) // 2),
    "a flipped bit in the digest": lambda data: _flipped(data, -1),
    "a truncated tail": lambda data: data[:-20],
    "a zeroed tail": lambda data: data[:-64] + bytes(64),
    "an empty file": lambda data: b"",
    "garbage": lambda data: bytes(i * 7919 % 251 for i in range(len(data))),
    "another cluster's": _of_another_cluster,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_own_snapshot_costs_a_new_one_and_nothing_else(tmp_path: Path, damage: str) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        cluster.leader.commit([item("w1")])
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
        file = tmp_path / "f" / "feed" / "follower.snap"
        file.write_bytes(DAMAGES[damage](file.read_bytes()))
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            assert replica.snapshots_taken == 1
            assert (await replica.read(lambda state: list(state.work))).value == ["w1"]

    run(scenario())


def test_a_follower_that_fell_out_of_the_window_takes_a_snapshot(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path, keep=10)
        cluster.leader.commit([item("w1")])
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
        for n in range(30):
            cluster.leader.commit([item(f"x{n}")])
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            assert replica.snapshots_taken == 1

    run(scenario())


def test_a_follower_of_another_history_drops_its_state(tmp_path: Path) -> None:
    async def scenario() -> None:
        for number, life in enumerate(("first", "second")):
            (tmp_path / life).mkdir()
            cluster = Cluster(tmp_path / life)
            for n in range(3):
                cluster.leader.commit([item(f"{life}-{n}")])
            async with following(cluster, tmp_path / "f") as replica:
                await caught_up(replica, cluster)
                assert sorted((await replica.read(lambda s: list(s.work))).value) == [f"{life}-{n}" for n in range(3)]
                assert replica.snapshots_taken == 1, number

    run(scenario())


def test_a_follower_of_another_cluster_drops_its_state(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        cluster.leader.commit([item("w1")])
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
        for voter in cluster.voters.values():
            voter.pretend(cluster_id="newer")
        async with following(cluster, tmp_path / "f") as replica:
            await eventually(lambda: replica.status().cluster_id == "newer" and replica.status().ready)
            assert replica.snapshots_taken == 1

    run(scenario())


def _tamper(cluster: Cluster, host: str) -> None:
    """From now on this voter's state differs from what its entries say."""
    voter = cluster.voters[host]
    voter.machine.chain = bytes(32)


def test_a_wrong_chain_costs_a_new_snapshot_from_another_voter(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        cluster.leader.commit([item("w1")])
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            bad = replica.voters.current
            _tamper(cluster, bad)
            cluster.leader.commit([item("w2")])
            await eventually(lambda: replica.snapshots_taken == 2 and replica.status().ready)
            assert replica.voters.current != bad
            good = next(v for n, v in cluster.voters.items() if n != bad)
            assert replica.status().chain == good.machine.chain.hex()

    run(scenario())


def test_a_second_wrong_chain_halts_the_follower_with_a_sentence(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        cluster.leader.commit([item("w1")])
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            for number in (2, 3):
                _tamper(cluster, replica.voters.current)
                taken = replica.snapshots_taken
                cluster.leader.commit([item(f"w{number}")])
                await eventually(lambda taken=taken: replica.snapshots_taken > taken or bool(replica.status().halted))
                if number == 2:
                    await eventually(lambda: replica.status().ready)
            await eventually(lambda: replica.status().halted is not None)
            assert "differed" in (replica.status().halted or "")
            with pytest.raises(Halted, match="second time"):
                await replica.read(lambda state: None)
            with pytest.raises(Halted):
                await replica.propose([item("w9")])

    run(scenario())


def test_a_dead_voter_is_left_for_another_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        cluster.leader.commit([item("w1")])
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            dead = replica.voters.current
            cluster.net.down.add(dead)
            cluster.leader.commit([item("w2")])
            await caught_up(replica, cluster)
            assert replica.voters.current != dead
            cluster.net.down = set(cluster.urls)
            await eventually(lambda: replica.status().voters_heard == ())
            cluster.net.down = set()
            cluster.leader.commit([item("w3")])
            await caught_up(replica, cluster)
            assert replica.snapshots_taken == 1

    run(scenario())


def test_a_voter_that_lost_its_leader_is_left_for_another_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            alone = replica.voters.current
            cluster.voters[alone].pretend(contact_age_ms=60_000)
            await eventually(lambda: replica.voters.current != alone and replica.status().contact_age_ms < 1_000)

    run(scenario())


def test_a_broken_download_is_continued_where_it_stopped(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        for n in range(50):
            cluster.leader.commit([item(f"w{n}")])
        cluster.net.cut = dict.fromkeys(cluster.urls, 1_000)
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
        ranges = [r.headers["range"] for r in cluster.net.requests if "range" in r.headers]
        assert ranges == ["bytes=1000-"]

    run(scenario())


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
            cluster.net.down.add("a")
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
            cluster.net.down = set(cluster.urls)
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


def test_a_follower_whose_token_is_revoked_is_shut_out_with_a_sentence(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path, token="right")
        own = CreateToken("node:f", Scope.NODE, hashlib.sha256(b"own").hexdigest(), "f")
        await cluster.leader.propose([encode_command(own)])
        async with following(cluster, tmp_path / "f", token="own") as replica:
            await caught_up(replica, cluster)
            await cluster.leader.propose([encode_command(RevokeToken("node:f", "sold"))])
            await eventually(lambda: replica.status().halted is not None)
            assert replica.status().halted == (
                "f1 is shut out of the cluster: token 'node:f' is over: revoked: sold; "
                "it needs another one to come back"
            )

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
            cluster.net.down = set(cluster.urls)
            with pytest.raises(NoLeader):
                await replica.read(lambda s: None, consistency=Consistency.LINEARIZABLE)

    run(scenario())


def test_a_fresh_read_is_refused_once_the_last_poll_is_too_old(tmp_path: Path) -> None:
    async def scenario() -> None:
        now = 0.0
        cluster = Cluster(tmp_path)
        async with cluster.http() as http:
            replica = await FeedReplica.start(config(cluster, tmp_path / "f"), http, clock=lambda: now)
            try:
                await caught_up(replica, cluster)
                assert (await replica.read(lambda s: 1, consistency=Consistency.FRESH)).value == 1
                cluster.net.down = set(cluster.urls)
                await eventually(lambda: replica.status().voters_heard == ())
                now = 10.0
                assert replica.status().contact_age_ms >= 6_000
                with pytest.raises(Stale, match="s old"):
                    await replica.read(lambda s: 1, consistency=Consistency.FRESH)
                assert (await replica.read(lambda s: 1)).value == 1
                cluster.net.down = set()
                assert (await replica.read(lambda s: 1, consistency=Consistency.FRESH, wait_s=3.0)).value == 1
            finally:
                await replica.stop()

    run(scenario())


def test_the_voters_own_contact_counts_into_the_age(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        for voter in cluster.voters.values():
            voter.pretend(contact_age_ms=2_500)
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            assert 2_500 <= replica.status().contact_age_ms < 4_500

    run(scenario())


def test_an_index_that_belongs_to_no_entry_of_ours_is_reached_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        cluster.leader.commit([item("w1")])
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            status = cluster.leader.status()
            for voter in cluster.voters.values():
                # A no-op was committed: applied moves, the machine does not.
                voter.status = lambda v=voter: replace(  # type: ignore[method-assign]
                    type(v).status(v), applied=status.applied + 1, commit=status.applied + 1
                )
            assert await replica.wait_for(status.applied + 1, DEADLINE_S) == status.applied + 1
            for voter in cluster.voters.values():
                del voter.status  # type: ignore[method-assign]
            cluster.leader.gap = 1
            cluster.leader.commit([item("w2")])
            await caught_up(replica, cluster)

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


def test_a_newer_feature_level_turns_an_older_release_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(follower_module, "SUPPORTED_FEATURE_LEVEL", 0)
        cluster = Cluster(tmp_path)
        cluster.leader.commit([item("w1")])
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            said = replica.status().read_only or ""
            assert "feature level 1 and f1 supports 0" in said
            with pytest.raises(ReadOnly, match="install the newer release"):
                await replica.propose([item("w2")])
            assert (await replica.read(lambda s: list(s.work), consistency=Consistency.LINEARIZABLE)).value == ["w1"]
            # It still applies what is decided, so the leases of what it runs may go on.
            assert await replica.record(Beat("f1", 7)) > 0

    run(scenario())


def test_an_entry_that_an_older_release_cannot_read_leaves_it_standing_and_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(follower_module, "SUPPORTED_FEATURE_LEVEL", 0)
        cluster = Cluster(tmp_path)
        cluster.leader.commit([item("w1")])
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            _feed_unreadable(cluster)
            await eventually(lambda: "stands still" in (replica.status().read_only or ""))
            assert (await replica.read(lambda s: list(s.work))).value == ["w1"]
            await no_heartbeat_is_acknowledged(cluster, replica, "stands still")

    run(scenario())


def test_an_entry_that_cannot_be_read_at_its_own_level_halts_the_follower(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        cluster.leader.commit([item("w1")])
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            _feed_unreadable(cluster)
            await eventually(lambda: replica.status().halted is not None)
            assert "cannot be read by this release" in (replica.status().halted or "")
            await no_heartbeat_is_acknowledged(cluster, replica, "cannot be read")

    run(scenario())


async def no_heartbeat_is_acknowledged(cluster: Cluster, replica: FeedReplica, why: str) -> None:
    """For a follower that stands still: it must not look alive and well to the cluster."""
    with pytest.raises(Halted, match=why):
        await replica.record(Beat("f1", 7))
    assert not any(v.beats for v in cluster.voters.values())


def _feed_unreadable(cluster: Cluster) -> None:
    for voter in cluster.voters.values():
        voter.window.append(Applied(voter.machine.index + 1, 1, b"\xc1", bytes(32)))
        voter.window.wake()


def test_a_follower_feeds_another_follower(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        cluster.leader.commit([item("w1")])
        async with following(cluster, tmp_path / "f1") as first, cluster.http() as http:
            await caught_up(first, cluster)
            cluster.net.add("f1", FeedRouter(first, coalesce_s=0.001))
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


def test_an_own_snapshot_is_written_every_so_many_entries(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        async with following(cluster, tmp_path / "f", snapshot_every_entries=10) as replica:
            await caught_up(replica, cluster)
            for n in range(25):
                cluster.leader.commit([item(f"w{n}")])
            await caught_up(replica, cluster)
            await eventually(lambda: _index_in(tmp_path / "f" / "feed" / "follower.snap") >= 10)

    run(scenario())


def _index_in(file: Path) -> int:
    with file.open("rb") as source:
        return read_header(source).index


def test_entries_out_of_order_are_a_reason_to_leave_a_voter_and_no_reason_to_halt(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        for n in range(3):
            cluster.leader.commit([item(f"w{n}")])
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            bad = cluster.voters[replica.voters.current]
            old = Applied(bad.machine.index, 1, b"", bytes(32))
            bad.feed_since = lambda index, limit=1000: [old]  # type: ignore[method-assign]
            bad.window.wake()
            await eventually(lambda: replica.voters.current != bad.says.node_id)
            cluster.leader.commit([item("w9")])
            await caught_up(replica, cluster)

    run(scenario())


def test_heartbeats_reach_any_voter_and_return_the_index(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            cluster.net.down.add(replica.voters.current)
            index = await replica.record(Beat("f1", 7))
            assert index == cluster.leader.machine.index or index > 0
            assert [b.incarnation for v in cluster.voters.values() for b in v.beats] == [7]
            cluster.net.down = set(cluster.urls)
            with pytest.raises(NoLeader):
                await replica.record(Beat("f1", 7), timeout_s=0.2)

    run(scenario())


def test_leadership_can_be_handed_over_from_a_follower(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            assert await replica.transfer_leadership("b") == "b"
            with pytest.raises(NoLeader, match="no voter"):
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


def test_a_cluster_whose_level_was_raised_is_followed_by_a_release_that_supports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            assert replica.status().read_only is None
            monkeypatch.setattr("statemachine.cluster.SUPPORTED_FEATURE_LEVEL", 2)
            (result,) = cluster.leader.commit([encode_command(RaiseFeatureLevel(2))]).results
            assert isinstance(result, Done)
            await caught_up(replica, cluster)
            assert "feature level 2" in (replica.status().read_only or "")

    run(scenario())


def test_garbage_from_a_voter_is_a_reason_to_leave_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async def garbage(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"\xc1nonsense"})

        cluster = Cluster(tmp_path)
        cluster.leader.commit([item("w1")])
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            bad = replica.voters.current
            cluster.net.apps[bad] = httpx.ASGITransport(garbage)
            cluster.leader.commit([item("w2")])
            await caught_up(replica, cluster)
            assert replica.voters.current != bad

    run(scenario())
