from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ringrift_cluster.feed import mirror as mirror_module
from ringrift_cluster.feed.follower import FeedReplica
from ringrift_cluster.raft.window import Applied
from ringrift_cluster.replica import (
    Consistency,
    Halted,
    ReadOnly,
    Stale,
)
from statemachine.commands import RaiseFeatureLevel, encode_command
from statemachine.entries import encode_entry
from statemachine.errors import Done
from statemachine.machine import Machine
from statemachine.snapshot import freeze, header, read_header, write
from statemachine.values import Beat
from tests.support.feeding import Cluster
from tests.support.following import DEADLINE_S, caught_up, config, eventually, following, item, run


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


def test_a_newer_feature_level_turns_an_older_release_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(mirror_module, "SUPPORTED_FEATURE_LEVEL", 0)
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
        monkeypatch.setattr(mirror_module, "SUPPORTED_FEATURE_LEVEL", 0)
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


def test_a_fresh_read_is_refused_once_the_last_word_is_too_old(tmp_path: Path) -> None:
    async def scenario() -> None:
        now = 0.0
        cluster = Cluster(tmp_path)
        async with cluster.http() as http:
            replica = await FeedReplica.start(config(cluster, tmp_path / "f"), http, clock=lambda: now)
            try:
                await caught_up(replica, cluster)
                assert (await replica.read(lambda s: 1, consistency=Consistency.FRESH)).value == 1
                cluster.net.take_down(*cluster.urls)
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
