"""A bucket as a holder of files, against an S3-compatible server on loopback."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from executors import objectstore
from executors.blobs import TooLarge
from executors.objectstore import MARK, Bucket, Misplaced, ObjectStore, StoreError
from tests.support import s3

DATA = os.urandom(300_000)
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with s3.server("ours") as address:
        yield address


@pytest.fixture
def place(url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Bucket:
    prefix = hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    return Bucket("ours", prefix, url, credentials=s3.credentials(tmp_path))


async def listed(store: ObjectStore) -> list[str]:
    return [digest async for digest, age_s in store.listed() if age_s > -60]


def test_a_file_is_put_found_listed_and_deleted(place: Bucket, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(DATA)

    async def go() -> None:
        store = ObjectStore(place, "c1")
        assert store.name == f"store:ours/{place.prefix}"
        assert not await store.get(DIGEST, target, len(DATA))
        await store.put(DIGEST, source)
        assert await store.get(DIGEST, target, len(DATA))
        assert target.read_bytes() == DATA
        assert await listed(store) == [DIGEST]
        await store.delete(DIGEST)
        await store.delete(DIGEST)
        assert await listed(store) == []

    asyncio.run(go())


def test_a_large_file_goes_in_parts_and_is_there_whole_or_not_at_all(
    place: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectstore, "PART_BYTES", 5 * 1024 * 1024)
    data = os.urandom(11 * 1024 * 1024)
    source = tmp_path / "source"
    source.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()

    async def go() -> None:
        store = ObjectStore(place, "c1")
        await store.put(digest, source)
        assert await store.get(digest, tmp_path / "target", len(data))

    asyncio.run(go())
    assert (tmp_path / "target").read_bytes() == data


@pytest.mark.parametrize("how", ["cancelled", "failed"])
def test_an_upload_that_is_broken_off_leaves_no_parts_in_the_bucket(
    how: str, place: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectstore, "PART_BYTES", 5 * 1024 * 1024)
    (tmp_path / "source").write_bytes(os.urandom(11 * 1024 * 1024))
    half, go_on = threading.Event(), threading.Event()
    read = objectstore._Source.read

    def slow(file: objectstore._Source, size: int | None = -1, /) -> bytes:
        if file.tell() > 5 * 1024 * 1024:
            half.set()
            assert go_on.wait(30)
            if how == "failed":
                raise OSError("the disk is gone")
        return read(file, size)

    monkeypatch.setattr(objectstore._Source, "read", slow)
    outside = s3.client(place.endpoint)

    def unfinished() -> int:
        return len(outside.list_multipart_uploads(Bucket="ours", Prefix=place.prefix).get("Uploads", ()))

    async def go() -> None:
        upload = asyncio.create_task(ObjectStore(place, "c1").put(DIGEST, tmp_path / "source"))
        assert await asyncio.to_thread(half.wait, 30)
        assert await asyncio.to_thread(unfinished) == 1
        if how == "cancelled":
            upload.cancel()
            await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError if how == "cancelled" else OSError):
            await upload
        assert await listed(ObjectStore(place, "c1")) == []

    asyncio.run(go())
    assert unfinished() == 0


def test_more_bytes_than_a_file_has_are_not_taken(place: Bucket, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(DATA)

    async def go() -> None:
        store = ObjectStore(place, "c1")
        await store.put(DIGEST, tmp_path / "source")
        with pytest.raises(TooLarge):
            await store.get(DIGEST, tmp_path / "target", len(DATA) - 1)

    asyncio.run(go())


def test_a_prefix_belongs_to_one_cluster(place: Bucket, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(DATA)

    async def go() -> None:
        await ObjectStore(place, "c1").put(DIGEST, tmp_path / "source")
        with pytest.raises(Misplaced, match=f"belongs to cluster 'c1'.*{MARK}"):
            await ObjectStore(place, "c2").delete(DIGEST)
        assert await listed(ObjectStore(place, "c1")) == [DIGEST]

    asyncio.run(go())


def test_what_goes_wrong_is_said_in_one_line_without_the_credentials(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectstore, "RETRY", {"max_retries": 0})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = f"http://127.0.0.1:{listener.getsockname()[1]}"
    keys = s3.credentials(tmp_path)

    async def failing(place: Bucket) -> str:
        with pytest.raises(StoreError) as caught:
            await ObjectStore(place, "c1").get(DIGEST, tmp_path / "target", 0)
        return str(caught.value)

    for place in (Bucket("ours", "", closed, credentials=keys), Bucket("nowhere", "", url, credentials=keys)):
        text = asyncio.run(failing(place))
        assert text.startswith(f"{place.name}: ")
        assert "\n" not in text
        assert not {s3.KEY, s3.SECRET} & {word for word in (s3.KEY, s3.SECRET) if word in text}


def test_credentials_come_from_the_environment_or_a_file(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.SECRET)
    (tmp_path / "source").write_bytes(DATA)
    asyncio.run(ObjectStore(Bucket("ours", "by-environment", url), "c1").put(DIGEST, tmp_path / "source"))
    said = s3.client(url).list_objects_v2(Bucket="ours", Prefix="by-environment/")
    assert [row["Key"] for row in said["Contents"]] == [
        f"by-environment/{DIGEST[:2]}/{DIGEST}",
        f"by-environment/{MARK}",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("hush", "no file of credentials"),
        ("[default]\naws_access_key_id = hush\n", r"has no section \[default\] with"),
        ("[a]\naws_access_key_id = hush\n[b]\naws_access_key_id = hush\n", "has no section"),
    ],
)
def test_a_file_of_credentials_that_is_none_is_named_and_not_shown(
    text: str | None, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "credentials"
    if text is not None:
        path.write_text(text)
    with pytest.raises(Misplaced, match=words) as caught:
        objectstore.credentials_in(path)
    assert "hush" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [("s3://b-1/x/y/", ("b-1", "x/y")), ("bucket", ("bucket", "")), ("s3://bucket", ("bucket", ""))],
)
def test_a_bucket_is_named_by_its_address(url: str, expected: tuple[str, str]) -> None:
    assert objectstore.parse(url) == expected


@pytest.mark.parametrize(
    "url", ["", "https://b/x", "s3://", "s3://B", "s3://user:pass@b", "s3://b/a b", "s3://bk/" + "x" * 100]
)
def test_what_names_no_bucket_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must be s3"):
        objectstore.parse(url)
