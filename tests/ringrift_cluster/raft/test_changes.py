"""Voters that come and go: real voters on loopback."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from ringrift_cluster.raft.conf import Limits, VoterConfig
from ringrift_cluster.raft.engine import RaftReplica
from ringrift_cluster.replica import ChangeRefused, NoLeader
from statemachine.values import Voter
from tests.ringrift_cluster.raft.loopback import FAST, SECRET, Loopback, add, free_ports, until


class Growing(Loopback):
    """A cluster to which voters can be added."""

    async def join(self, name: str) -> Voter:
        """Start a log that joins; returns what names it."""
        address = self.voters.setdefault(name, f"127.0.0.1:{free_ports(1)[0]}")
        config = VoterConfig(
            node_id=name,
            voters={},
            data_dir=self.directory / name,
            bind=address,
            secret=SECRET,
            timing=FAST,
            limits=self.limits,
        )
        self.running[name] = await asyncio.to_thread(
            RaftReplica.start, config, on_halt=lambda s, name=name: self.halted.update({name: s})
        )
        return Voter(name, address, f"http://{name}", self.running[name].log_id)

    async def all_count(self, *names: str) -> None:
        await until(
            lambda: all(r.status().voters == names and r.status().ready for r in self.running.values()),
            f"everyone counts {names}",
        )


def run(story) -> None:
    asyncio.run(asyncio.wait_for(story, 60))


def test_one_voter_becomes_three_and_one_again(tmp_path: Path):
    async def story():
        async with Growing(tmp_path, "a", limits=Limits(snapshot_entries=20, tail_entries=5)) as cluster:
            await cluster.start()
            leader = await cluster.leader()
            for i in range(60):
                await leader.propose([add(f"w{i}")])
            for name in "bc":
                voter = await cluster.join(name)
                assert cluster.running[name].status().role == "learner"
                adding = partial(RaftReplica.add_voter, voter=voter, request=f"r{name}")
                changed = await cluster.of_leader(adding)
                assert changed.of(name) == voter
                assert (await cluster.of_leader(adding)).index == changed.index
            await cluster.all_count("a", "b", "c")
            await until(lambda: all(r.is_voter for r in cluster.running.values()), "they know that they are voters")
            placed = await cluster.running["c"].propose([add("after")])
            seen = await cluster.running["b"].read(lambda s: len(s.work), at_least=placed.index, wait_s=5)
            assert seen.value == 61
            leader = await cluster.leader()
            first = leader.status().node_id
            with pytest.raises(NoLeader, match="handed leadership over"):
                await leader.remove_voter(first)
            second, last = (n for n in "cba" if n != first)
            for name in (first, second):
                await cluster.of_leader(partial(RaftReplica.remove_voter, name=name))
                await until(lambda name=name: cluster.running[name].removed is not None, f"{name} knows that it is out")
                await cluster.stop(name)
            leader = await cluster.leader()
            with pytest.raises(ChangeRefused, match="the last voter"):
                await leader.remove_voter(last)
            await leader.propose([add("alone")])
            assert leader.status().voters == (last,)

    run(story())


def test_voters_that_moved_are_found_where_the_settings_say_and_the_log_learns_their_addresses(tmp_path: Path):
    async def story():
        async with Growing(tmp_path, "abc") as cluster:
            await cluster.start()
            await (await cluster.leader()).propose([add("before")])
            await until(
                lambda: all(len(r.live_state().voters.voters) == 3 for r in cluster.running.values()), "the list"
            )
            before = cluster.running["a"].live_state().voters.voters
            for name in "abc":
                await cluster.stop(name)
            cluster.voters = {n: f"127.0.0.1:{p}" for n, p in zip("abc", free_ports(3), strict=True)}
            await cluster.start()
            await cluster.all_count("a", "b", "c")
            for was in before:
                now = Voter(was.node, cluster.voters[was.node], f"http://{was.node}.new", was.log_id)
                changed = await cluster.of_leader(partial(RaftReplica.add_voter, voter=now, request=f"r{was.node}"))
                assert changed.of(was.node) == now
                assert (await cluster.of_leader(partial(RaftReplica.add_voter, voter=now))).index == changed.index
            await cluster.all_count("a", "b", "c")

            # From now on one voter's settings may be as old as they are.
            await cluster.stop("c")
            address = cluster.voters["c"]
            cluster.voters = {"a": "127.0.0.1:1", "b": "127.0.0.1:1", "c": address}
            await cluster.start("c")
            await cluster.all_count("a", "b", "c")

    run(story())


def test_the_list_survives_a_restart_of_all_whatever_is_configured(tmp_path: Path):
    async def story():
        async with Growing(tmp_path, "ab") as cluster:
            await cluster.start()
            await cluster.of_leader(partial(RaftReplica.add_voter, voter=await cluster.join("c")))
            await cluster.all_count("a", "b", "c")
            for name in "abc":
                await cluster.stop(name)
            cluster.voters = {n: a for n, a in cluster.voters.items() if n != "b"} | {"z": "127.0.0.1:1"}
            voters = dict(cluster.voters)
            for name in "ac":
                cluster.voters = {**voters, name: voters[name]}
                await cluster.start(name)
            await cluster.leader()
            assert {r.status().voters for r in cluster.running.values()} == {("a", "b", "c")}

    run(story())
