from __future__ import annotations

import asyncio
import random
import stat
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from executors.blobs import Blobs, TooLarge, WrongDigest
from executors.transfers import HoldersGone, Transfers
from tests.executors.holders import DATA, DIGEST, Holder


def fetch(blobs: Blobs, *addresses: str, size: int = len(DATA), times: int = 1) -> Path:
    holders = [(f"n{i}", address) for i, address in enumerate(addresses)]

    async def go() -> list[Path]:
        async with httpx.AsyncClient(timeout=5.0) as client:
            transfers = Transfers(blobs, client, rng=random.Random(1))
            monkey = transfers._order
            transfers._order = lambda digest, given: sorted(monkey(digest, given))  # type: ignore[method-assign]
            return await asyncio.gather(*(transfers.round(DIGEST, size, holders) for _ in range(times)))

    return asyncio.run(go())[0]


def test_bytes_are_found_again_by_their_digest(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    assert blobs.add(DATA) == DIGEST
    path = blobs.path(DIGEST)
    assert path is not None
    assert path.read_bytes() == DATA
    assert not stat.S_IMODE(path.stat().st_mode) & 0o222
    assert blobs.digests() == {DIGEST}


def test_a_name_that_is_no_digest_is_refused(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    for name in ("", "../../etc/passwd", "A" * 64, "a" * 63):
        with pytest.raises(ValueError, match="no sha256"):
            blobs.path(name)


def test_an_upload_with_other_bytes_than_announced_leaves_nothing(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    writer = blobs.writer()
    writer.write(b"other")
    with pytest.raises(WrongDigest):
        writer.commit(expected=DIGEST)
    assert not blobs.digests()
    assert not list((tmp_path / "partial").iterdir())


def test_an_upload_over_its_limit_is_cut_off(tmp_path: Path) -> None:
    writer = Blobs(tmp_path).writer(most=10)
    writer.write(b"0123456789")
    with pytest.raises(TooLarge):
        writer.write(b"x")
    writer.abandon()
    assert not list((tmp_path / "partial").iterdir())


def test_an_output_is_linked_into_the_store_and_stays_where_it_was(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "store")
    source = tmp_path / "model.pt"
    source.write_bytes(DATA)
    assert blobs.adopt(source) == (DIGEST, len(DATA))
    assert blobs.adopt(source) == (DIGEST, len(DATA))
    path = blobs.path(DIGEST)
    assert path is not None
    assert path.samefile(source)


def test_a_file_is_fetched_and_verified(tmp_path: Path, holder: Callable[..., Holder]) -> None:
    assert fetch(Blobs(tmp_path), holder().address).read_bytes() == DATA


def test_a_file_that_is_here_is_not_fetched(tmp_path: Path, holder: Callable[..., Holder]) -> None:
    blobs, one = Blobs(tmp_path), holder()
    blobs.add(DATA)
    assert fetch(blobs, one.address).read_bytes() == DATA
    assert one.ranges == []


def test_a_file_that_several_jobs_want_is_fetched_once(tmp_path: Path, holder: Callable[..., Holder]) -> None:
    one = holder()
    fetch(Blobs(tmp_path), one.address, times=5)
    assert len(one.ranges) == 1


def test_the_rest_comes_from_the_next_holder_when_one_is_lost(tmp_path: Path, holder: Callable[..., Holder]) -> None:
    lost, good = holder(break_after=120_000), holder()
    assert fetch(Blobs(tmp_path), lost.address, good.address).read_bytes() == DATA
    (asked,) = good.ranges
    assert asked is not None
    assert 0 < int(asked.removeprefix("bytes=").rstrip("-")) <= 120_000


def test_a_holder_that_ignores_ranges_is_read_from_the_beginning(tmp_path: Path, holder: Callable[..., Holder]) -> None:
    lost, good = holder(break_after=120_000), holder(ignore_range=True)
    assert fetch(Blobs(tmp_path), lost.address, good.address).read_bytes() == DATA


def test_wrong_bytes_are_refused_and_the_next_holder_is_asked_for_everything(
    tmp_path: Path, holder: Callable[..., Holder]
) -> None:
    wrong, good = holder(DATA[:-1] + b"?"), holder()
    assert fetch(Blobs(tmp_path), wrong.address, good.address).read_bytes() == DATA
    assert good.ranges == [None]


def test_wrong_bytes_from_every_holder_store_nothing(tmp_path: Path, holder: Callable[..., Holder]) -> None:
    blobs = Blobs(tmp_path)
    with pytest.raises(HoldersGone, match="other bytes"):
        fetch(blobs, holder(DATA[:-1] + b"?").address)
    assert not blobs.digests()
    assert not list((tmp_path / "partial").iterdir())


def test_a_holder_that_sends_too_much_is_cut_off(tmp_path: Path, holder: Callable[..., Holder]) -> None:
    with pytest.raises(HoldersGone, match="more than the 300000 bytes"):
        fetch(Blobs(tmp_path), holder(grow=10_000_000).address)


def test_the_error_says_what_each_holder_answered(tmp_path: Path, holder: Callable[..., Holder]) -> None:
    gone = holder()
    address = gone.address
    gone.close()
    with pytest.raises(HoldersGone) as error:
        fetch(Blobs(tmp_path), address, holder(status=404).address, "not an address")
    assert all(word in str(error.value) for word in ("n0", "n1", "404", "n2"))


def test_no_holder_at_all_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(HoldersGone, match="no live node holds it"):
        fetch(Blobs(tmp_path))


def test_the_sweep_spares_what_is_named_pinned_or_young(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    named, pinned, nobody = (blobs.add(text) for text in (b"named", b"pinned", b"nobody"))
    assert blobs.unnamed({named}, min_age_s=3600) == blobs.sweep([nobody], min_age_s=3600) == []
    with blobs.pinned([pinned]):
        assert blobs.unnamed({named}, min_age_s=0) == [nobody]
        assert blobs.sweep([pinned, nobody], min_age_s=0) == [nobody]
    assert blobs.digests() == {named, pinned}
    assert blobs.sweep(blobs.unnamed({named}, min_age_s=0), min_age_s=0) == [pinned]
