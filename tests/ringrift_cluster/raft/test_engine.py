"""Real voters: threads, sockets, files."""

from __future__ import annotations

import asyncio
import shutil
import threading

import pytest

from ringrift_cluster.raft.conf import Limits, VoterConfig
from ringrift_cluster.raft.engine import RaftReplica
from ringrift_cluster.raft.errors import DataDirLocked, DiskFailed, MembersContradict, PortTaken
from ringrift_cluster.raft.offline import read_offline
from ringrift_cluster.raft.snapshots import digest, load
from ringrift_cluster.raft.verify import verify
from ringrift_cluster.replica import Consistency, Halted, NoLeader, Stale
from statemachine.errors import Done
from statemachine.machine import Machine
from tests.ringrift_cluster.raft.loopback import Loopback, add, free_ports, until


def run(story) -> None:
    asyncio.run(asyncio.wait_for(story, 40))


def test_commands_are_committed_at_any_voter_and_seen_at_all(tmp_path):
    async def story():
        async with Loopback(tmp_path) as cluster:
            await cluster.start()
            leader, others = await cluster.leader(), await cluster.others()
            placed = [await leader.propose([add("w1"), add("w2")]), await others[0].propose([add("w3")])]
            assert [len(p.results) for p in placed] == [2, 1]
            assert all(isinstance(r, Done) for p in placed for r in p.results)
            for replica in cluster.running.values():
                seen = await replica.read(lambda s: sorted(s.work), at_least=placed[1].index, wait_s=5)
                assert seen.value == ["w1", "w2", "w3"]
                assert seen.index >= placed[1].index
            seen = await others[1].read(lambda s: len(s.work), consistency=Consistency.LINEARIZABLE)
            assert seen.value == 3
            ids = {r.status().cluster_id for r in cluster.running.values()}
            assert len(ids) == 1
            assert ids != {""}

    run(story())


def test_many_callers_on_several_loops_share_entries(tmp_path):
    async def story():
        async with Loopback(tmp_path) as cluster:
            await cluster.start()
            leader = await cluster.leader()

            async def many(prefix: str) -> set[int]:
                placed = await asyncio.gather(*[leader.propose([add(f"{prefix}{i}")]) for i in range(200)])
                return {p.index for p in placed}

            indexes: list[set[int]] = []
            other = threading.Thread(target=lambda: indexes.append(asyncio.run(many("x"))))
            other.start()
            indexes.append(await many("y"))
            await asyncio.to_thread(other.join)
            assert len(set().union(*indexes)) < 100
            assert (await leader.read(lambda s: len(s.work))).value == 400

    run(story())


def test_everything_acknowledged_survives_a_restart_of_all(tmp_path):
    async def story():
        async with Loopback(tmp_path, limits=Limits(snapshot_entries=20, tail_entries=5)) as cluster:
            await cluster.start()
            leader = await cluster.leader()
            for i in range(60):
                await leader.propose([add(f"w{i}")])
            before = await leader.read(lambda s: sorted(s.work))
            await until(lambda: leader.counters.snapshots_written > 0, "a snapshot")
            for name in list(cluster.running):
                await cluster.stop(name)
            assert all(not verify(tmp_path / n).damages for n in "abc")
            await cluster.start()
            leader = await cluster.leader()
            after = await leader.read(lambda s: sorted(s.work), consistency=Consistency.LINEARIZABLE)
            assert after.value == before.value

    run(story())


def test_a_leader_that_goes_is_replaced_and_returns(tmp_path):
    async def story():
        async with Loopback(tmp_path) as cluster:
            await cluster.start()
            leader = await cluster.leader()
            await cluster.others()
            gone = leader.status().node_id
            await leader.propose([add("w1")])
            await cluster.stop(gone)
            with pytest.raises(Halted):
                await leader.propose([add("w2")])
            survivor = next(iter(cluster.running.values()))
            await survivor.propose([add("w3")])
            await cluster.start(gone)
            back = cluster.running[gone]
            await until(lambda: back.status().ready, "the voter is back")
            assert sorted((await back.read(lambda s: list(s.work))).value) == ["w1", "w3"]

    run(story())


def test_leadership_moves_under_load_and_no_command_fails(tmp_path):
    async def story():
        async with Loopback(tmp_path) as cluster:
            await cluster.start()
            leader, others = await cluster.leader(), await cluster.others()
            target = others[0].status().node_id
            done = False

            async def load(number: int) -> int:
                count = 0
                while not done:
                    await leader.propose([add(f"w{number}.{count}")])
                    count += 1
                return count

            workers = [asyncio.create_task(load(i)) for i in range(8)]
            await until(lambda: leader.status().commit > 20, "some load")
            assert await others[1].transfer_leadership(target) == target
            at = leader.status().commit
            await until(lambda: leader.status().commit > at + 20, "load after the change")
            done = True
            total = sum(await asyncio.gather(*workers))
            seen = await leader.read(lambda s: len(s.work), consistency=Consistency.LINEARIZABLE)
            assert seen.value == total
            with pytest.raises(NoLeader, match="not taken over"):
                await leader.transfer_leadership("nobody")

    run(story())


def test_followers_get_a_feed_and_a_snapshot_that_lead_to_the_same_state(tmp_path):
    async def story():
        async with Loopback(tmp_path, "a", limits=Limits(window_entries=30)) as cluster:
            await cluster.start()
            leader = await cluster.leader()
            woken = threading.Event()
            ticket = leader.subscribe(woken.set)
            for i in range(10):
                await leader.propose([add(f"w{i}")])
            assert woken.is_set()
            leader.unsubscribe(ticket)
            machine = Machine()
            feed = leader.feed_since(0)
            assert feed is not None
            for one in feed:
                machine.apply(one.index, one.term, one.entry)
                assert machine.chain == one.chain
            for i in range(40):
                await leader.propose([add(f"x{i}")])
            assert leader.feed_since(0) is None
            file = await leader.snapshot_file(0)
            assert digest(file.path) == file.sha256
            head, machine = load(file.path)
            assert head.cluster_id == leader.status().cluster_id
            for one in leader.feed_since(head.index) or []:
                machine.apply(one.index, one.term, one.entry)
            assert len(machine.state.work) == 50
            assert leader.feed_since(10**9) == []

    run(story())


def test_a_voter_that_was_away_longer_than_the_tail_gets_a_snapshot(tmp_path):
    async def story():
        limits = Limits(snapshot_entries=20, tail_entries=5, part_bytes=1000)
        async with Loopback(tmp_path, limits=limits) as cluster:
            await cluster.start()
            leader, others = await cluster.leader(), await cluster.others()
            away = others[0].status().node_id
            await cluster.stop(away)
            for i in range(80):
                await leader.propose([add(f"w{i}")])
            await until(lambda: leader.counters.snapshots_written > 1, "compaction")
            await cluster.start(away)
            back = cluster.running[away]
            seen = await back.read(lambda s: len(s.work), at_least=leader.status().commit, wait_s=10)
            assert seen.value == 80
            assert back.counters.snapshots_installed == 1

    run(story())


def test_offline_the_same_state_is_read(tmp_path):
    async def story():
        async with Loopback(tmp_path, "a") as cluster:
            await cluster.start()
            leader = await cluster.leader()
            placed = [await leader.propose([add(f"w{i}")]) for i in range(5)]
            await cluster.stop("a")
            chain = leader.status().chain
            assert read_offline(tmp_path / "a").chain.hex() == chain
            assert len(read_offline(tmp_path / "a", placed[2].index).state.work) == 3

    run(story())


def test_a_minority_says_what_it_cannot_do(tmp_path):
    async def story():
        async with Loopback(tmp_path) as cluster:
            await cluster.start()
            await cluster.others()
            for name in ("a", "b"):
                await cluster.stop(name)
            alone = cluster.running["c"]
            await until(lambda: alone.status().leader_id is None, "it noticed")
            with pytest.raises(NoLeader):
                await alone.propose([add("w")])
            with pytest.raises((Stale, NoLeader)):
                await alone.read(lambda s: 1, consistency=Consistency.LINEARIZABLE)
            assert (await alone.read(lambda s: len(s.work))).value == 0
            assert not alone.status().ready
            assert await alone.wait_for(10**6, 0.05) == alone.status().applied

    run(story())


def test_a_wait_ends_with_its_entry_or_with_the_voter(tmp_path):
    async def story():
        async with Loopback(tmp_path, "a") as cluster:
            await cluster.start()
            leader = await cluster.leader()
            seen = leader.status().applied
            assert await leader.wait_for(seen, 0.0) == seen, "what is applied is not waited for"
            waiting = asyncio.create_task(leader.wait_for(seen + 1, 30))
            await asyncio.sleep(0)
            await leader.propose([add("w")])
            assert await waiting > seen
            waiting = asyncio.create_task(leader.wait_for(10**6, 30))
            await asyncio.sleep(0)
            await cluster.stop("a")
            with pytest.raises(Halted):
                await waiting
            with pytest.raises(Halted):
                await leader.wait_for(10**6, 30)

    run(story())


def test_a_query_that_fails_fails_its_caller_alone(tmp_path):
    async def story():
        async with Loopback(tmp_path, "a") as cluster:
            await cluster.start()
            leader = await cluster.leader()
            with pytest.raises(ZeroDivisionError):
                await leader.read(lambda s: 1 // 0)
            await leader.propose([add("w")])

    run(story())


def test_a_wiped_voter_is_told_and_stops(tmp_path):
    async def story():
        async with Loopback(tmp_path) as cluster:
            await cluster.start()
            leader, others = await cluster.leader(), await cluster.others()
            wiped = others[0].status().node_id
            await leader.propose([add("w")])
            await cluster.stop(wiped)
            shutil.rmtree(tmp_path / wiped)
            await cluster.start(wiped)
            await until(lambda: wiped in cluster.halted, "the wiped voter stops")
            assert f"`ringrift-node voters remove {wiped}`" in cluster.halted[wiped]
            halted = cluster.running[wiped]
            assert halted.status().halted == cluster.halted[wiped]
            with pytest.raises(Halted):
                await halted.propose([add("x")])
            rest = [r for r in cluster.running.values() if r is not halted]
            await until(lambda: any(wiped in r.status().refused for r in rest), "the status to say so")
            await leader.propose([add("y")])

    run(story())


@pytest.mark.parametrize("orderly", [False, True], ids=["halts", "stops"])
def test_a_disk_that_fails_while_a_voter_closes_keeps_nobody_waiting_for_its_end(tmp_path, orderly):
    """As when a snapshot ends just when the journal could not be written."""

    def fail(*_):
        raise DiskFailed("the disk is gone")

    async def story():
        async with Loopback(tmp_path, "a") as cluster:
            await cluster.start()
            voter = await cluster.leader()
            thread = voter._thread
            if orderly:
                thread._store.write = fail
                thread.call(lambda: (thread.node.journal._note("odd", "1"), thread.stop()))
            else:
                thread._calls.extend([fail, fail])
                thread.call(lambda: None)
            assert await asyncio.to_thread(thread.ended.wait, 10)
            said = {} if orderly else {"a": "the disk is gone"}
            await until(lambda: cluster.halted == said, "whoever must end the process is told")

    run(story())


def test_a_voter_put_back_from_an_older_copy_is_excluded_and_the_status_says_so(tmp_path):
    async def story():
        async with Loopback(tmp_path) as cluster:
            await cluster.start()
            leader, others = await cluster.leader(), await cluster.others()
            old = others[0].status().node_id
            first = await leader.propose([add("w1")])
            await until(lambda: others[0].status().applied >= first.index, "it has the first one")
            await cluster.stop(old)
            # Its mark is as old as its journal, so the voter itself cannot know.
            shutil.copytree(tmp_path / old, tmp_path / "copy")
            await cluster.start(old)
            for n in range(5):
                last = await leader.propose([add(f"x{n}")])
            await until(lambda: cluster.running[old].status().applied >= last.index, "it acknowledged them all")
            await cluster.stop(old)
            shutil.rmtree(tmp_path / old)
            shutil.copytree(tmp_path / "copy", tmp_path / old)
            await cluster.start(old)
            await until(lambda: old in leader.status().refused, "it is excluded")
            assert "its disk lost data" in leader.status().refused[old]
            await leader.propose([add("y")])
            assert "y" not in (await cluster.running[old].read(lambda state: set(state.work))).value

    run(story())


def test_a_voter_without_the_secret_is_not_let_in(tmp_path):
    async def story():
        async with Loopback(tmp_path) as cluster:
            await cluster.start("a", "b")
            await cluster.leader()
            config = cluster.config("c", secret=b"another")
            cluster.running["c"] = await asyncio.to_thread(RaftReplica.start, config)
            stranger = cluster.running["c"]
            await until(lambda: stranger.counters.refusals["wrong_secret"] > 1, "the refusals")
            assert stranger.status().leader_id is None
            assert stranger.counters.connections == 0

    run(story())


class TestStarting:
    def config(self, tmp_path, port: int, **changes) -> VoterConfig:
        return VoterConfig(**{"node_id": "a", "voters": {"a": f"127.0.0.1:{port}"}, "data_dir": tmp_path, **changes})

    def test_a_taken_port_is_one_sentence(self, tmp_path):
        first = RaftReplica.start(self.config(tmp_path / "1", (port := free_ports(1)[0])))
        with pytest.raises(PortTaken, match=f"127.0.0.1:{port} of a cannot be used.*configure another port"):
            RaftReplica.start(self.config(tmp_path / "2", port))
        asyncio.run(first.stop())
        asyncio.run(RaftReplica.start(self.config(tmp_path / "2", port)).stop())

    def test_a_directory_in_use_is_one_sentence(self, tmp_path):
        one, two = free_ports(2)
        first = RaftReplica.start(self.config(tmp_path, one))
        with pytest.raises(DataDirLocked, match="in use by process"):
            RaftReplica.start(self.config(tmp_path, two))
        asyncio.run(first.stop())

    def test_another_voters_directory_is_one_sentence(self, tmp_path):
        port = free_ports(1)[0]
        asyncio.run(RaftReplica.start(self.config(tmp_path, port)).stop())
        with pytest.raises(MembersContradict, match="belongs to voter a, but this node is b"):
            RaftReplica.start(self.config(tmp_path, port, node_id="b", voters={"b": f"127.0.0.1:{port}"}))

    def test_the_node_must_be_a_voter(self, tmp_path):
        with pytest.raises(ValueError, match="not among the voters"):
            self.config(tmp_path, 1, node_id="z")
