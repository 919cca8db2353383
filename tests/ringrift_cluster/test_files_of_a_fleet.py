"""Files between nodes: spreading, sending, evicting and reading again, with real bytes over loopback."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from executors.transfers import HoldersGone, Patience
from statemachine import copies
from statemachine.commands import AddHolder, DoubtHolder, DropHolder, ForgetArtifact, ReleaseHolder, RequestSync
from tests.executors.memory import eventually
from tests.support.stores import EAGER, Behind, Site, looked_after, site

RULES = '{"collect_ms": 50, "manifest_age_ms": 100, "push_after_ms": %d}'


def run(root: Path, test: Callable[[Site], Awaitable[None]], seconds: float = 40) -> None:
    async def go() -> None:
        async with site(root) as made:
            await asyncio.wait_for(test(made), seconds)

    asyncio.run(go())


def spoil(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"?" + path.read_bytes()[1:])


# --- spreading ------------------------------------------------------------------------------------------------------


def test_fifty_nodes_get_one_file_and_nobody_sends_it_more_than_three_times(tmp_path: Path) -> None:
    async def go(made: Site) -> None:
        source = made.node("source")
        nodes = [made.node(f"n{i}") for i in range(50)]
        digest = source.make(os.urandom(3_000_000), "model")
        made.rules('{"copies": {"default": 0, "model": 0}}')
        async with looked_after(*nodes):
            paths = await asyncio.gather(*(node.fetch(digest) for node in nodes))
            await eventually(lambda: len(made.row(digest).holders) == 51)
        assert all(path.stat().st_size == 3_000_000 for path in paths)
        copies = {node.name: node.services.gate.sent_bytes / 3_000_000 for node in (source, *nodes)}
        assert copies["source"] <= 3.01
        assert max(copies.values()) <= 3.01
        assert sum(copies.values()) == pytest.approx(50, abs=0.01)

    run(tmp_path, go, 150)


def test_a_busy_holder_is_waited_for_and_no_failure_is_counted(tmp_path: Path) -> None:
    async def go(made: Site) -> None:
        source, other = made.node("source"), made.node("other")
        digest = source.make(b"a model")
        made.rules('{"uploads_per_holder": 1}')
        with source.services.gate.transfer("ab" * 32):
            fetching = asyncio.create_task(other.fetch(digest))
            await eventually(lambda: source.services.gate.refused)
            assert not fetching.done()
        assert (await fetching).read_bytes() == b"a model"
        assert other.transfers.book.wait_s("source") == 0.0

    run(tmp_path, go)


def test_a_node_that_cannot_reach_the_other_holders_gets_it_from_the_busy_one(tmp_path: Path) -> None:
    async def go(made: Site) -> None:
        source, other = made.node("source"), made.node("other")
        made.node("hidden", reachable=False)
        digest = source.make(b"a model")
        made.rules('{"copies_per_holder": 1}')
        made.cluster.must(AddHolder(digest, "hidden"))
        with source.services.gate.transfer(digest) as one:
            one.sent_bytes = 7
        assert (await other.fetch(digest)).read_bytes() == b"a model"

    run(tmp_path, go)


# --- copies on storage nodes ----------------------------------------------------------------------------------------


def test_a_storage_node_fetches_what_is_planned_for_it(tmp_path: Path) -> None:
    async def go(made: Site) -> None:
        made.rules(RULES % 60_000)
        worker, one, two = made.node("w"), made.node("s1", "storage"), made.node("s2", "storage")
        games, model = worker.make(b"games"), worker.make(b"weights", "model")
        async with looked_after(worker, one, two):
            await eventually(lambda: set(made.row(model).holders) == {"w", "s1", "s2"})
            await eventually(lambda: len(made.row(games).holders) == 2)
        assert one.blobs.path(model) is not None
        assert worker.storage.status().sent == 0

    run(tmp_path, go)


def test_a_node_that_nobody_reaches_sends_its_files_and_the_storage_node_serves_them(tmp_path: Path) -> None:
    async def go(made: Site) -> None:
        made.rules(RULES % 100)
        hidden, storage, reader = made.node("hidden", reachable=False), made.node("s", "storage"), made.node("r")
        data = os.urandom(2_500_000)
        hidden.storage.copying._sender._piece_bytes = 1_000_000
        digest = hidden.make(data)
        async with looked_after(hidden, storage):
            assert (await reader.fetch(digest)).read_bytes() == data
            await eventually(lambda: hidden.storage.status().sent)
        assert made.row(digest).holders == ("hidden", "s")
        assert (hidden.storage.status().sent, storage.storage.status().sent) == (1, 0)
        assert not list((tmp_path / "s" / "partial").glob("push-*"))

    run(tmp_path, go)


def test_a_broken_upload_goes_on_where_it_stopped(tmp_path: Path) -> None:
    async def go(made: Site) -> None:
        made.rules(RULES % 0)
        hidden, storage = made.node("hidden", reachable=False), made.node("s", "storage")
        data = os.urandom(900_000)
        hidden.storage.copying._sender._piece_bytes = 300_000
        digest = hidden.make(data)
        url = f"{made.url}/s/artifacts/{digest}"
        first = {"Content-Range": f"bytes 0-299999/{len(data)}"}
        assert (await made.http.put(url, content=data[:300_000], headers=first)).status_code == 202
        assert (await made.http.get(f"{url}/upload")).json() == {"received_bytes": 300_000, "stored": False}
        seen: list[str] = []
        handle = storage.app

        async def watched(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
            seen.extend(value.decode() for name, value in scope["headers"] if name == b"content-range")
            await handle(scope, receive, send)

        storage.app = watched
        async with looked_after(hidden):
            await eventually(lambda: "s" in made.row(digest).holders)
        assert seen[0].startswith("bytes 300000-")
        assert storage.blobs.place(digest).read_bytes() == data

    run(tmp_path, go)


def test_a_sync_that_is_asked_for_happens_at_once_on_every_node(tmp_path: Path) -> None:
    async def go(made: Site) -> None:
        made.rules('{"collect_ms": 3600000, "push_after_ms": 3600000}')
        hidden, storage = made.node("hidden", reachable=False), made.node("s", "storage")
        async with looked_after(hidden, storage):
            await eventually(lambda: storage.storage.status().listed_at_ms and hidden.storage.status().listed_at_ms)
            digest = hidden.make(b"games")
            made.cluster.must(RequestSync("by hand"))
            await eventually(lambda: "s" in made.row(digest).holders)

    run(tmp_path, go)


def test_a_machine_whose_end_is_near_sends_its_newest_files_in_the_same_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies.plan_copies, "__defaults__", (0, 2))

    async def go(made: Site) -> None:
        made.rules('{"collect_ms": 3600000, "push_after_ms": 3600000}')
        hidden, _ = made.node("hidden", reachable=False), made.node("s", "storage")
        digests = [hidden.make(bytes([n])) for n in range(7)]
        hidden.storage.hurry()
        async with looked_after(hidden):
            # A machine that is told of its end again and again never gets to its next look.
            while not all("s" in made.row(digest).holders for digest in digests):
                hidden.storage.hurry()
                await asyncio.sleep(0.01)

    run(tmp_path, go)


def test_a_copy_becomes_due_whatever_part_of_the_rows_it_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies.plan_copies, "__defaults__", (0, 2))

    async def go(made: Site) -> None:
        made.rules(RULES % 300)
        hidden, _ = made.node("hidden", reachable=False), made.node("s", "storage")
        digests = [hidden.make(bytes([n])) for n in range(5)]
        async with looked_after(hidden):
            await eventually(lambda: all("s" in made.row(digest).holders for digest in digests))
            await eventually(lambda: not hidden.storage.copying._missing_s)

    run(tmp_path, go)


def test_copies_that_fail_each_time_leave_a_turn_to_the_others(tmp_path: Path) -> None:
    rules = '{"collect_ms": 50, "manifest_age_ms": 3600000, "push_after_ms": %d, "files_per_job": 2}'

    async def go(made: Site) -> None:
        made.rules(rules % 3_600_000)
        hidden, worker = made.node("hidden", reachable=False), made.node("worker")
        lost, keeper = made.node("lost", "storage", reachable=False), made.node("keeper", "storage")
        held = [(hidden, hidden.make(bytes([n, 0]))) for n in range(8)]
        held += [(worker, worker.make(bytes([n, 1]))) for n in range(8)]
        plan = {copy.digest: copy.target for copy in copies.plan_copies(made.cluster.state).copies}
        fetched = [digest for node, digest in held if node is worker and plan[digest] == keeper.name]
        sent = [digest for node, digest in held if node is hidden and plan[digest] == keeper.name]
        assert min(len(held) // 2 - len(fetched), len(fetched), len(sent), 8 - len(sent)) >= 2, plan
        async with looked_after(keeper):
            await eventually(lambda: all(keeper.name in made.row(digest).holders for digest in fetched))
        made.rules(rules % 0)
        async with looked_after(hidden):
            await eventually(lambda: all(keeper.name in made.row(digest).holders for digest in sent))
        assert lost.blobs.digests() == set()

    run(tmp_path, go)


# --- quota ----------------------------------------------------------------------------------------------------------


def test_what_was_used_longest_ago_is_evicted_first_and_never_the_last_copy(tmp_path: Path) -> None:
    async def go(made: Site) -> None:
        made.rules(RULES % 60_000)
        keeper, small = made.node("keeper", "storage"), made.node("small", quota_bytes=2_500)
        old, older, only, pinned = (bytes([n]) * 1_000 for n in range(4))
        digests = {data[:1]: small.make(data) for data in (old, older, only, pinned)}
        for data in (old, older, pinned):
            keeper.make(data)
        for age, data in ((10, pinned), (8, only), (5, older), (1, old)):
            path = small.blobs.place(digests[data[:1]])
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
        await asyncio.to_thread(small.blobs.used_bytes)
        # The plan must not copy the only one elsewhere first.
        made.rules('{"copies": {"default": 0}, "collect_ms": 3600000}')
        with small.blobs.pinned([digests[pinned[:1]]]):
            async with looked_after(small):
                await eventually(lambda: small.storage.status().evicted == 2)
        assert small.blobs.digests() == {digests[only[:1]], digests[pinned[:1]]}
        assert made.row(digests[only[:1]]).holders == ("small",)
        assert made.row(digests[older[:1]]).holders == ("keeper",)

    run(tmp_path, go)


def test_two_nodes_that_evict_the_same_file_at_once_leave_one_copy(tmp_path: Path) -> None:
    async def go(made: Site) -> None:
        made.rules('{"copies": {"default": 0}}')
        nodes = [made.node(name, quota_bytes=10) for name in "ab"]
        (digest,) = {node.make(bytes(1_000)) for node in nodes}
        for node in nodes:
            await asyncio.to_thread(node.blobs.used_bytes)
        async with looked_after(*nodes):
            await eventually(lambda: sum(node.storage.status().evicted for node in nodes) == 1)
            await eventually(
                lambda: all(node.storage.inventory._kept_s or node.storage.status().evicted for node in nodes)
            )
        (left,) = made.row(digest).holders
        assert [node.name for node in nodes if node.blobs.path(digest)] == [left]

    run(tmp_path, go)


def test_the_last_copy_stays_also_when_its_row_does_not_name_it(tmp_path: Path) -> None:
    async def go(made: Site) -> None:
        made.rules('{"copies": {"default": 0}}')
        one = made.node("one", quota_bytes=10)
        digest = one.make(b"x" * 100)
        await asyncio.to_thread(one.blobs.used_bytes)
        proposed = made.cluster.propose

        async def withdrawn(commands):  # type: ignore[no-untyped-def]
            if isinstance(commands[0], ReleaseHolder) and "one" in made.row(digest).holders and not asked:
                made.cluster.must(DropHolder(digest, "one"))
            asked.extend(type(command) for command in commands)
            return await proposed(commands)

        asked: list[type] = []
        made.cluster.propose = withdrawn  # type: ignore[method-assign]
        async with looked_after(one):
            await eventually(lambda: digest in one.storage.inventory._kept_s)
        assert asked[:3] == [ReleaseHolder, AddHolder, ReleaseHolder]
        assert one.blobs.path(digest) is not None

    run(tmp_path, go)


def test_a_file_that_is_stored_again_while_it_is_released_stays(tmp_path: Path) -> None:
    async def go(made: Site) -> None:
        made.rules('{"copies": {"default": 0}}')
        one, other = made.node("one", quota_bytes=10), made.node("other")
        digest = one.make(b"x" * 100)
        other.make(b"x" * 100)
        await asyncio.to_thread(one.blobs.used_bytes)
        proposed = made.cluster.propose
        source = tmp_path / "again"
        source.write_bytes(b"x" * 100)

        async def meanwhile(commands):  # type: ignore[no-untyped-def]
            results = await proposed(commands)
            if type(commands[0]).__name__ == "ReleaseHolder":
                one.blobs.adopt(source)
                one.blobs.quota_bytes = 0
            return results

        made.cluster.propose = meanwhile  # type: ignore[method-assign]
        async with looked_after(one):
            await eventually(lambda: not one.blobs.quota_bytes and "one" in made.row(digest).holders)
        assert one.blobs.path(digest) is not None

    run(tmp_path, go)


def test_a_full_storage_node_says_so_and_takes_nothing_more(tmp_path: Path) -> None:
    async def go(made: Site) -> None:
        made.rules(RULES % 0)
        worker, full = made.node("w"), made.node("s", "storage", quota_bytes=1_500)
        full.make(bytes(1_000))
        await asyncio.to_thread(full.blobs.used_bytes)
        digest = worker.make(b"y" * 1_000)
        async with looked_after(worker, full):
            await eventually(lambda: "no room" in full.storage.status().last_error)
            await eventually(lambda: "507" in worker.storage.status().last_error)
        assert made.row(digest).holders == ("w",)

    run(tmp_path, go)


# --- bad copies -----------------------------------------------------------------------------------------------------


def test_a_copy_that_went_bad_is_taken_out_withdrawn_and_fetched_again(tmp_path: Path) -> None:
    async def go(made: Site) -> None:
        made.rules('{"scrub_ms": 20}')
        one, other = made.node("one"), made.node("other")
        data = os.urandom(50_000)
        digest = one.make(data)
        other.make(data)
        spoil(one.blobs.place(digest))
        async with looked_after(one):
            await eventually(lambda: one.storage.status().quarantined == 1)
            await eventually(lambda: (one.blobs.path(digest) or other.blobs.place("0" * 64)).exists())
            await eventually(lambda: made.row(digest).holders == ("one", "other"))
        assert one.blobs.place(digest).read_bytes() == data
        assert len(list((tmp_path / "one" / "quarantine").iterdir())) == 1

    run(tmp_path, go)


def test_the_last_copy_when_it_went_bad_is_not_claimed_any_more(tmp_path: Path) -> None:
    async def go(made: Site) -> None:
        made.rules('{"scrub_ms": 20}')
        one = made.node("one")
        digest = one.make(os.urandom(50_000))
        spoil(one.blobs.place(digest))
        async with looked_after(one):
            await eventually(lambda: made.row(digest).holders == ())
        assert one.blobs.path(digest) is None

    run(tmp_path, go)


def test_a_holder_that_is_caught_lying_reads_its_copy_and_withdraws_it(tmp_path: Path) -> None:
    async def go(made: Site) -> None:
        liar, honest, reader = made.node("liar"), made.node("honest"), made.node("reader")
        data = os.urandom(50_000)
        digest = liar.make(data)
        honest.make(data)
        spoil(liar.blobs.place(digest))
        reader.transfers._order = lambda digest, holders: sorted(holders, reverse=True)  # type: ignore[method-assign]
        async with looked_after(reader, liar):
            assert (await reader.fetch(digest)).read_bytes() == data
            await eventually(lambda: made.row(digest).doubted == () and "reader" in made.row(digest).holders)
            await eventually(lambda: liar.storage.status().quarantined == 1)
        assert "honest" in made.row(digest).holders

    run(tmp_path, go)


def test_a_holder_that_is_doubted_wrongly_is_cleared_by_reading_its_copy(tmp_path: Path) -> None:
    async def go(made: Site) -> None:
        one = made.node("one")
        digest = one.make(b"fine")
        made.cluster.must(DoubtHolder(digest, "one", "somebody"))
        async with looked_after(one):
            await eventually(lambda: made.row(digest).doubted == ())
        assert made.row(digest).holders == ("one",)

    run(tmp_path, go)


# --- rows and directory ---------------------------------------------------------------------------------------------


def test_the_directory_and_the_rows_are_brought_together(tmp_path: Path) -> None:
    async def go(made: Site) -> None:
        made.rules(RULES % 60_000)
        one = made.node("one", options=replace(EAGER, blob_min_age_s=0.0))
        missing, unnamed, stray = one.make(b"missing"), one.make(b"unnamed"), made.node("two").make(b"stray")
        one.blobs.place(missing).unlink()
        made.cluster.must(ForgetArtifact(unnamed))
        one.blobs.add(b"stray")
        async with looked_after(one):
            await eventually(lambda: made.row(missing).holders == ())
            await eventually(lambda: one.blobs.path(unnamed) is None)
            await eventually(lambda: made.row(stray).holders == ("one", "two"))

    run(tmp_path, go)


def test_a_node_whose_rows_are_old_deletes_no_file_that_the_log_knows(tmp_path: Path) -> None:
    async def go(made: Site) -> None:
        one = made.node("one", options=replace(EAGER, blob_min_age_s=0.0))
        known, unnamed = one.make(b"known"), one.blobs.add(b"unnamed")
        one.bench.cluster = Behind(made.cluster, "one", RULES % 60_000)
        made.cluster.cut = True
        async with looked_after(one):
            await eventually(lambda: "cut the cluster off" in one.storage.status().last_error)
            assert one.blobs.digests() == {known, unnamed}
            made.cluster.cut = False
            await eventually(lambda: one.blobs.digests() == {known})

    run(tmp_path, go)


def test_news_that_could_not_be_told_are_told_later(tmp_path: Path) -> None:
    async def go(made: Site) -> None:
        one, two = made.node("one"), made.node("two")
        digest = one.make(b"a model")
        made.cluster.cut = True
        async with looked_after(two):
            await two.fetch(digest)
            await eventually(lambda: "cut the cluster off" in two.storage.status().last_error)
            made.cluster.cut = False
            await eventually(lambda: made.row(digest).holders == ("one", "two"))

    run(tmp_path, go)


def test_a_file_that_nobody_delivers_is_given_up_with_a_sentence(tmp_path: Path) -> None:
    async def go(made: Site) -> None:
        hidden, one = made.node("hidden", reachable=False), made.node("one")
        one.transfers.patience = Patience(0.2, 0.2, 0.01)
        digest = hidden.make(b"x")
        with pytest.raises(HoldersGone, match="hidden"):
            await one.fetch(digest)

    run(tmp_path, go)
