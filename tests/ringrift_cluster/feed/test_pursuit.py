from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ringrift_cluster.raft.window import Applied
from statemachine.commands import ConfigureVoters, CreateToken, RevokeToken, encode_command
from statemachine.values import Scope, Voter
from tests.support.feeding import Cluster
from tests.support.following import caught_up, eventually, following, item, run


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


def test_a_dead_voter_is_left_for_another_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)
        cluster.leader.commit([item("w1")])
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            dead = replica.voters.current
            cluster.net.take_down(dead)
            cluster.leader.commit([item("w2")])
            await caught_up(replica, cluster)
            assert replica.voters.current != dead
            cluster.net.take_down(*cluster.urls)
            await eventually(lambda: replica.status().voters_heard == ())
            cluster.net.down = set()
            cluster.leader.commit([item("w3")])
            await caught_up(replica, cluster)
            assert replica.snapshots_taken == 1

    run(scenario())


def test_voters_that_have_all_moved_are_found_where_the_settings_say(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Cluster(tmp_path)

        def at(suffix: str) -> bytes:
            return encode_command(
                ConfigureVoters(tuple(Voter(v, f"{v}:1", f"http://{v}{suffix}:8770", f"log-{v}") for v in cluster.urls))
            )

        cluster.net.take_down(*(f"{voter}.old" for voter in cluster.urls))
        cluster.leader.commit([at(".old")])
        async with following(cluster, tmp_path / "f") as replica:
            await caught_up(replica, cluster)
            cluster.leader.commit([item("w1")])
            await caught_up(replica, cluster)
            cluster.leader.commit([at("")])
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
            cluster.net.add(bad, garbage)
            cluster.net.take_down(bad)
            cluster.net.down.clear()
            cluster.leader.commit([item("w2")])
            await caught_up(replica, cluster)
            assert replica.voters.current != bad

    run(scenario())
