"""A new cluster from what is left of an old one, and from a backup."""

from __future__ import annotations

import asyncio
import shutil
from functools import partial
from pathlib import Path

import pytest

from ringrift_cluster.raft.anew import Begun, Refused, recover, restore, survivor
from ringrift_cluster.raft.datadir import DataDir
from ringrift_cluster.raft.engine import RaftReplica
from ringrift_cluster.raft.errors import DataDirLocked
from ringrift_cluster.raft.snapshots import load
from ringrift_cluster.raft.verify import verify
from statemachine.values import Voter
from tests.ringrift_cluster.raft.loopback import Loopback, add, until
from tests.ringrift_cluster.raft.test_changes import Growing

B = Voter("b", "x:1")


def run(story):
    asyncio.run(story)


async def three_with_work(root: Path) -> tuple[Loopback, int]:
    """A cluster that took some work and ended; the index of the last acknowledged command."""
    async with Loopback(root) as cluster:
        await cluster.start()
        leader = await cluster.leader()
        for n in range(20):
            proposed = await leader.propose([add(f"w{n}")])
        await until(lambda: all(r.status().applied >= proposed.index for r in cluster.running.values()), "all have it")
    return cluster, proposed.index


async def serve_alone(root: Path, name: str, begun: Begun) -> None:
    """The new cluster's one voter leads, holds the work, and takes more."""
    async with Loopback(root, name) as alone:
        await alone.start()
        leader = await alone.leader()
        status = leader.status()
        assert status.cluster_id == begun.cluster_id
        assert status.term > begun.term
        placed = await leader.propose([add("new")])
        assert placed.index > begun.index
        held = await leader.read(lambda state: set(state.work))
        assert held.value == {*(f"w{n}" for n in range(20)), "new"}


class TestRecover:
    def test_one_of_three_goes_on_with_everything_that_it_had(self, tmp_path):
        async def story():
            _, last = await three_with_work(tmp_path)
            found = survivor(tmp_path / "b", "b")
            assert not found.lost
            assert found.machine.index >= last
            begun = recover(tmp_path / "b", B, found)
            assert begun.old_cluster_id not in ("", begun.cluster_id)
            assert not verify(tmp_path / "b").damages
            await serve_alone(tmp_path, "b", begun)
            assert not verify(tmp_path / "b").damages

        run(story())

    def test_it_grows_back_to_three(self, tmp_path):
        async def story():
            await three_with_work(tmp_path)
            found = survivor(tmp_path / "b", "b")
            async with Growing(tmp_path, "b") as cluster:
                recover(tmp_path / "b", Voter("b", cluster.voters["b"]), found)
                await cluster.start()
                for name in "ac":
                    # What the others still have is of the old cluster: it is moved away.
                    (tmp_path / name / "raft").rename(tmp_path / name / "raft.old")
                    await cluster.of_leader(partial(RaftReplica.add_voter, voter=await cluster.join(name)))
                await cluster.all_count("a", "b", "c")
                placed = await cluster.running["c"].propose([add("new")])
                held = await cluster.running["a"].read(lambda s: set(s.work), at_least=placed.index, wait_s=5)
                assert held.value == {*(f"w{n}" for n in range(20)), "new"}

        run(story())

    def test_the_old_files_stay_as_they_were(self, tmp_path):
        async def story():
            await three_with_work(tmp_path)
            shutil.copytree(tmp_path / "b", tmp_path / "copy")
            begun = recover(tmp_path / "b", B, survivor(tmp_path / "b", "b"))
            kept, copy = Path(begun.kept), tmp_path / "copy" / "raft"
            assert kept.parent == tmp_path / "b"
            assert (kept / "journal.db").read_bytes() == (copy / "journal.db").read_bytes()

        run(story())

    def test_a_voter_of_the_old_cluster_is_not_let_in(self, tmp_path):
        async def story():
            cluster, _ = await three_with_work(tmp_path)
            begun = recover(tmp_path / "b", B, survivor(tmp_path / "b", "b"))
            async with Loopback(tmp_path, "abc") as mixed:
                mixed.voters = {"b": cluster.voters["b"]}
                await mixed.start("b")
                leader = await mixed.leader()
                mixed.voters = cluster.voters
                await mixed.start("a", "c")
                old = mixed.running["a"]
                await until(lambda: old.status().leader_id in ("a", "c"), "the others still are the old cluster")
                assert old.status().cluster_id == begun.old_cluster_id
                assert leader.status().cluster_id == begun.cluster_id
                assert leader.status().voters == ("b",)

        run(story())

    def test_a_journal_that_lost_its_end_is_used_only_when_that_is_accepted(self, tmp_path):
        async def story():
            await three_with_work(tmp_path)
            old = tmp_path / "b" / "raft" / "journal.db"
            data = old.read_bytes()
            at = data.rindex(b"w15")
            old.write_bytes(data[:at] + b"W" + data[at + 1 :])
            found = survivor(tmp_path / "b", "b")
            assert any(sentence.endswith("does not match its checksum") for sentence in found.lost)
            assert set(found.machine.state.work) == {f"w{n}" for n in range(15)}

        run(story())

    def test_a_directory_of_another_voter_or_of_a_running_node_is_refused(self, tmp_path):
        async def story():
            await three_with_work(tmp_path)
            found = survivor(tmp_path / "b", "b")
            with pytest.raises(Refused, match="belongs to voter b, not a"):
                survivor(tmp_path / "b", "a")
            held = DataDir(tmp_path / "b").lock()
            with pytest.raises(DataDirLocked, match="stop it first"):
                recover(tmp_path / "b", B, found)
            held.close()
            with pytest.raises(Refused, match="holds no voter's files"):
                survivor(tmp_path / "nobody", "b")
            DataDir(tmp_path / "empty").create()
            with pytest.raises(Refused, match="nothing to begin with"):
                survivor(tmp_path / "empty", "b")

        run(story())


class TestRestore:
    async def _backup(self, root: Path) -> Path:
        async with Loopback(root / "old") as cluster:
            await cluster.start()
            leader = await cluster.leader()
            for n in range(20):
                await leader.propose([add(f"w{n}")])
            file = await leader.snapshot_file(0)
            return Path(shutil.copy(file.path, root / "backup"))

    def test_a_fresh_cluster_goes_on_from_a_backup(self, tmp_path):
        async def story():
            file = await self._backup(tmp_path)
            head, machine = load(file)
            begun = restore(tmp_path / "new" / "n", Voter("n", "x:1"), head, machine)
            assert begun.index == head.index
            assert begun.cluster_id != head.cluster_id
            await serve_alone(tmp_path / "new", "n", begun)
            assert not verify(tmp_path / "new" / "n").damages

        run(story())

    def test_a_directory_with_a_voter_is_left_alone(self, tmp_path):
        async def story():
            head, machine = load(await self._backup(tmp_path))
            with pytest.raises(Refused, match="holds a voter's files already"):
                restore(tmp_path / "old" / "a", Voter("a", "x:1"), head, machine)

        run(story())


def test_a_snapshot_of_now_is_not_one_that_was_begun_before(tmp_path):
    async def story():
        async with Loopback(tmp_path, "a") as cluster:
            await cluster.start()
            leader = await cluster.leader()

            async def backup(n: int) -> None:
                placed = await leader.propose([add(f"w{n}")])
                file = await leader.snapshot_file(0)
                assert file.index >= placed.index, f"w{n} is not in the file"

            await asyncio.gather(*[backup(n) for n in range(30)])

    run(story())
