"""Both clients against the real application over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ringrift_cluster.api.app import create_app
from ringrift_cluster.api.work import WorkFilter
from ringrift_cluster.client import AsyncClient, Client, Conflict, NewWork, NotFound, Unauthorized
from ringrift_cluster.raft.conf import Limits
from ringrift_cluster.replica import Proposed
from statemachine.values import JobProgress
from tests.support.feeding import Voter, services_of
from tests.support.served import served


@pytest.fixture
def voter(tmp_path: Path) -> Voter:
    return Voter("a", tmp_path)


@pytest.fixture
def url(voter: Voter) -> Iterator[str]:
    with served(create_app(services_of(voter, {}))) as url:
        yield url


def test_an_item_goes_from_the_queue_to_its_end_by_a_blocking_client(url: str, voter: Voter) -> None:
    with Client(url) as cluster:
        added = cluster.work_add(NewWork(work_type="selfplay", config="hex8_2p", params={"games": 5}))
        assert cluster.work_add(NewWork(work_type="other", work_id="o1")).repeat is False
        assert cluster.pending().total == 2
        assert "claim" in cluster.why(added.work_id).sentence
        claimed = cluster.work_claim("w1", work_types=["selfplay"])
        assert claimed.work is not None
        job, fence = claimed.work.job, claimed.work.fence
        assert cluster.work_start(job, fence).result == "run"
        assert cluster.work_renew([JobProgress(job, fence, counts={"games": 2})]).result == {"over": [], "stop": []}
        assert [j.job for j in cluster.jobs().active_jobs] == [job]
        assert cluster.job(job).job.fence == fence
        cluster.work_complete(job, fence, counts={"games": 5})
        assert cluster.work(added.work_id).work.status == "completed"
        with pytest.raises(Conflict) as caught:
            cluster.work_complete(job, fence + 1)
        assert caught.value.code == "stale_fence"
        assert cluster.status().totals["hex8_2p"].games == 5
        cluster.work_cancel("o1", "no longer wanted")
        assert cluster.work_retry("o1").result == "pending"
        kinds = [event.kind for event in cluster.events()]
        assert kinds[0] == "WorkQueued"
        assert "WorkCompleted" in kinds
        dump = cluster.dump("work")
        assert (dump.index, dump.digest) == (voter.machine.index, voter.machine.chain.hex())
        assert set(dump.tables["work"]) == {added.work_id, "o1"}


def test_many_items_are_answered_each_for_itself(url: str) -> None:
    with Client(url) as cluster:
        items = [NewWork(work_type="x", work_id=f"w{n}") for n in range(5)]
        assert cluster.work_add_many(items).count == 5
        again = cluster.work_add_many([NewWork(work_type="x", work_id="w0", priority=1), *items[1:2]])
        assert (again.rejected, again.results[0].code, again.results[1].repeat) == (1, "conflict", True)
        assert len(cluster.work_list(WorkFilter(limit=3)).items) == 3


def test_as_many_items_as_a_call_takes_leave_in_proposals_that_an_entry_holds(url: str, voter: Voter) -> None:
    sizes: list[int] = []
    commit = voter.commit

    def counting(commands: Sequence[bytes]) -> Proposed:
        sizes.append(len(commands))
        return commit(commands)

    voter.commit = counting  # type: ignore[method-assign]
    with Client(url) as cluster:
        assert cluster.work_add_many([NewWork(work_type="x", work_id=f"w{n}") for n in range(1000)]).count == 1000
    assert sum(sizes) == 1000
    assert max(sizes) <= Limits().commands_per_entry


def test_settings_peers_and_switches(url: str) -> None:
    with Client(url) as cluster:
        cluster.change_setting("timing", {"heartbeat_ms": 1000, "suspect_after_ms": 5000, "dead_after_ms": 9000})
        changed = cluster.setting("timing")
        assert (changed.version, b"5000" in bytes(changed.value)) == (1, True)
        with pytest.raises(Conflict):
            cluster.change_setting("timing", {}, expected_version=7)
        assert "limits" in {s.name for s in cluster.settings().settings}
        with pytest.raises(NotFound):
            cluster.drain("nobody")
        cluster.pause(True, "power work")
        assert cluster.status().paused
        cluster.pause(False)
        assert cluster.peers().total == 0
        assert cluster.models().models == []
        assert cluster.elo().configs == {}
        assert cluster.gauntlet_results().gauntlets == []
        assert cluster.raft_state().role == "leader"
        assert cluster.transfer_leadership("b").leader_id == "b"


def test_an_awaiting_client_does_the_same(url: str) -> None:
    async def scenario() -> None:
        async with AsyncClient([url]) as cluster:
            added = await cluster.work_add(NewWork(work_type="selfplay", work_id="w1"))
            assert added.work_id == "w1"
            found = await asyncio.gather(*(cluster.work("w1") for _ in range(5)))
            assert {f.work.status for f in found} == {"pending"}
            with pytest.raises(NotFound):
                await cluster.work("w2")
            assert [event.key async for event in cluster.events()] == ["w1"]

    asyncio.run(scenario())


def test_events_are_followed_as_they_happen(url: str) -> None:
    async def scenario() -> None:
        async with AsyncClient(url) as cluster, asyncio.timeout(20):
            await cluster.work_add(NewWork(work_type="x", work_id="w0"))
            seen = []
            async for event in cluster.events(follow=True):
                seen.append(event.key)
                if len(seen) == 3:
                    break
                await cluster.work_add(NewWork(work_type="x", work_id=f"w{len(seen)}"))
            assert seen == ["w0", "w1", "w2"]

    asyncio.run(scenario())


def test_a_token_is_sent_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    with served(create_app(services_of(Voter("a", tmp_path), {}, token="right"))) as url:
        with Client(url, token="right") as cluster:
            cluster.work_add(NewWork(work_type="x", work_id="w1"))
        with Client(url, token="wrong") as cluster, pytest.raises(Unauthorized) as caught:
            cluster.work_add(NewWork(work_type="x", work_id="w2"))
        assert caught.value.code == "unauthorized"


def test_a_write_to_a_voter_that_knows_no_leader_is_repeated_until_there_is_one(url: str, voter: Voter) -> None:
    async def scenario() -> None:
        voter.pretend(leader_id=None, role="candidate")
        async with AsyncClient(url) as cluster, asyncio.timeout(20):
            task = asyncio.create_task(cluster.work_add(NewWork(work_type="x", work_id="w1")))
            await cluster.status()
            assert not task.done()
            voter.pretend(leader_id="a", role="leader")
            assert (await task).work_id == "w1"

    asyncio.run(scenario())
