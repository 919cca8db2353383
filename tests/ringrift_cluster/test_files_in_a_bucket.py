"""A bucket as one more holder: nodes with access put files there and get them from there for all."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from executors import objectstore, offsite
from executors.objectstore import Bucket, ObjectStore
from ringrift_cluster.replica import on_behalf
from statemachine.commands import AddHolder, ForgetArtifact, ReleaseHolder
from tests.executors.memory import eventually
from tests.support import s3
from tests.support.stores import Behind, Node, Site, looked_after, site

RULES = '{"collect_ms": 50, "manifest_age_ms": 100, "push_after_ms": 3600000, "store_audit_ms": 50}'


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with s3.server("ours") as address:
        yield address


@pytest.fixture
def run(url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., None]:
    def run(test: Callable[[Site, Callable[[], ObjectStore]], Awaitable[None]]) -> None:
        place = Bucket("ours", request.node.name[:60], url, credentials=s3.credentials(tmp_path))

        async def go() -> None:
            async with site(tmp_path) as made:
                made.rules(RULES)
                await asyncio.wait_for(test(made, lambda: ObjectStore(place, "c1")), 40)

        asyncio.run(go())

    return run


def gone(node: Node) -> None:
    """The node's files are lost, and the rows know."""
    for digest in node.blobs.digests():
        node.blobs.place(digest).unlink()
        node.site.cluster.must(ReleaseHolder(digest, node.name))


def test_a_file_is_put_into_the_bucket_and_comes_back_from_there_when_no_node_has_it(run: Callable[..., None]) -> None:
    async def go(made: Site, bucket: Callable[[], ObjectStore]) -> None:
        gate, worker = made.node("gate", vault=bucket()), made.node("worker")
        data = os.urandom(200_000)
        digest = worker.make(data, "model")
        async with looked_after(gate):
            await eventually(lambda: gate.transfers.vault.name in made.row(digest).holders)
        for node in (gate, worker):
            gone(node)
        assert made.row(digest).holders == (gate.transfers.vault.name,)
        # A node with access gets it itself; one without asks the one that has, which is a holder then.
        near = made.node("near", vault=bucket())
        assert (await near.fetch(digest)).read_bytes() == data
        assert near.services.gate.sent_bytes == gate.services.gate.sent_bytes == 0
        near.blobs.place(digest).unlink()
        far = made.node("far")
        assert (await far.fetch(digest)).read_bytes() == data
        assert gate.services.gate.sent_bytes + near.services.gate.sent_bytes == len(data)

    run(go)


def test_a_file_that_somebody_asks_for_is_fetched_in_the_nodes_own_name(run: Callable[..., None]) -> None:
    """What it takes to make room is the node's to say; the caller's token may be good for reading alone."""

    async def go(made: Site, bucket: Callable[[], ObjectStore]) -> None:
        gate = made.node("gate", vault=bucket())
        on_behalf.set("Bearer of-a-reader")
        spoken: list[str] = []
        offsite = gate.storage.offsite
        assert offsite is not None

        async def restored(digest: str) -> None:
            spoken.append(on_behalf.get())

        offsite._restore = restored  # type: ignore[method-assign]
        gate.storage.restore("ab" * 32)
        await eventually(lambda: spoken == [""])

    run(go)


def test_other_bytes_in_the_bucket_are_found_doubted_and_put_right(run: Callable[..., None]) -> None:
    async def go(made: Site, bucket: Callable[[], ObjectStore]) -> None:
        store = bucket()
        gate, keeper = made.node("gate", vault=store), made.node("keeper", reachable=False)
        digest = keeper.make(b"the right ones", "model")
        wrong = keeper.blobs.root / "wrong"
        wrong.write_bytes(b"the wrong ones")
        await store.put(digest, wrong)
        made.cluster.must(AddHolder(digest, store.name))
        with pytest.raises(objectstore.BlobError, match="has other bytes"):
            await gate.transfers.round(digest, 14, (), made.gates(digest))
        async with looked_after(gate):
            await eventually(lambda: store.name in made.row(digest).doubted)
            gate.make(b"the right ones", "model")
            await eventually(lambda: made.row(digest).doubted == ())
        gone(gate)
        assert (await gate.fetch(digest)).read_bytes() == b"the right ones"

    run(go)


def test_the_bucket_is_compared_with_the_rows(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offsite, "STORED_S", -60.0)

    async def go(made: Site, bucket: Callable[[], ObjectStore]) -> None:
        store = bucket()
        gate = made.node("gate", vault=store)
        forgotten, missing, kept = (gate.make(bytes([n]) * 100) for n in range(3))
        async with looked_after(gate):
            await eventually(lambda: gate.storage.status().stored == 3)
        made.cluster.must(ForgetArtifact(forgotten))
        await store.delete(missing)
        # Only the audit looks now: the copy that is missing is not put there again.
        made.rules('{"copies": {"default": 0}, "collect_ms": 50, "store_audit_ms": 50}')
        async with looked_after(gate):
            await eventually(lambda: made.row(missing).holders == ("gate",))
            await eventually(lambda: store.name in made.row(kept).holders)
        assert [digest async for digest, _ in store.listed()] == [kept]

    run(go)


def test_a_comparison_that_fails_is_shown_and_comes_back_soon_and_not_after_a_day(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offsite, "AUDIT_AGAIN_S", 0.02)
    failures = 10**6
    tries = 0
    listed = ObjectStore.listed

    async def fails(store: ObjectStore) -> AsyncIterator[tuple[str, float]]:
        nonlocal tries
        tries += 1
        async for one in listed(store):
            yield one
            if tries <= failures:
                raise objectstore.StoreError(f"{store.name}: it took too long")

    monkeypatch.setattr(ObjectStore, "listed", fails)

    async def go(made: Site, bucket: Callable[[], ObjectStore]) -> None:
        nonlocal failures
        store = bucket()
        gate = made.node("gate", vault=store)
        kept, missing = (gate.make(bytes([n]) * 100) for n in range(2))
        await store.put(kept, gate.blobs.place(kept))
        made.rules('{"copies": {"default": 0}, "collect_ms": 50, "store_audit_ms": 86400000}')
        made.cluster.must(AddHolder(missing, store.name), AddHolder(kept, store.name))
        async with looked_after(gate):
            await eventually(lambda: tries >= 3)
            said = gate.storage.status().last_error
            assert "could not be compared with the rows" in said
            assert "it took too long" in said
            assert store.name in made.row(missing).holders
            failures = 0
            await eventually(lambda: made.row(missing).holders == ("gate",))
            await eventually(lambda: gate.storage.status().last_error == "")
        assert made.row(kept).holders == ("gate", store.name)

    run(go)


def test_a_node_whose_rows_are_old_deletes_nothing_from_the_bucket_that_the_log_knows(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offsite, "STORED_S", -60.0)

    async def go(made: Site, bucket: Callable[[], ObjectStore]) -> None:
        store = bucket()
        gate = made.node("gate", vault=store)
        known, unnamed = gate.make(b"known"), gate.blobs.add(b"unnamed")
        for digest in (known, unnamed):
            await store.put(digest, gate.blobs.place(digest))
        made.cluster.must(AddHolder(known, store.name))
        gate.bench.cluster = Behind(made.cluster, "gate", RULES)
        async with looked_after(gate):
            while [digest async for digest, _ in store.listed()] != [known]:
                await asyncio.sleep(0.01)
        assert made.row(known).holders == ("gate", store.name)

    run(go)


def test_a_file_that_the_bucket_should_have_and_has_not_is_said_so(run: Callable[..., None]) -> None:
    async def go(made: Site, bucket: Callable[[], ObjectStore]) -> None:
        store = bucket()
        gate = made.node("gate", vault=store)
        digest = gate.make(b"x", "model")
        made.rules('{"copies": {"default": 0, "model": 0}, "store_audit_ms": 3600000}')
        made.cluster.must(AddHolder(digest, store.name))
        gone(gate)
        with pytest.raises(objectstore.BlobError, match="does not have it"):
            await gate.transfers.round(digest, 1, (), made.gates(digest))
        async with looked_after(gate):
            await eventually(lambda: made.row(digest).holders == ())

    run(go)


def test_a_bucket_that_cannot_be_used_is_told_and_left_alone_for_a_while(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectstore, "RETRY", {"max_retries": 0})

    async def go(made: Site, bucket: Callable[[], ObjectStore]) -> None:
        nowhere = ObjectStore(Bucket("nowhere", "", made.url, credentials=s3.credentials(made.root)), "c1")
        gate = made.node("gate", vault=nowhere)
        digest = gate.make(b"x", "model")
        async with looked_after(gate):
            await eventually(lambda: "store:nowhere" in gate.storage.status().last_error)
            await eventually(lambda: gate.transfers.book.wait_s("store:nowhere") > 0)
        assert made.row(digest).holders == ("gate",)

    run(go)
