"""A bucket as one more holder of files: objects named by sha256 below a prefix. The only file that knows obstore.

    PREFIX/ringrift-cluster     the id of the cluster that the prefix belongs to
    PREFIX/ab/abcdef...         a whole file; an object appears at once or not at all

Credentials come from the environment (AWS_ACCESS_KEY_ID and the like, or the machine's role) or from a file in the
form of ~/.aws/credentials. Nothing here puts them into a text.
"""

from __future__ import annotations

import asyncio
import configparser
import io
import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.blobs import BlobError, TooLarge
from statemachine.rows import STORE

if TYPE_CHECKING:
    from obstore.store import S3Store

MARK = "ringrift-cluster"
#: bytes of one part of a large object
PART_BYTES = 16 * 1024 * 1024
PARTS_AT_A_TIME = 4
#: a cancelled upload has this long to take its parts back
TAKE_BACK_S = 5.0
TIMEOUT = timedelta(seconds=60)
CONNECT_TIMEOUT = timedelta(seconds=5)
RETRY = {"max_retries": 3, "retry_timeout": timedelta(seconds=60)}
_URL = re.compile(r"(?:s3://)?([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/[A-Za-z0-9._-]+)*)/?")
_KEYS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "region")


class StoreError(BlobError):
    """The object store did not do what it was asked; the text says what it answered."""


class Misplaced(StoreError):  # noqa: N818
    """The store cannot be used as it is configured; the text says what to change."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where a store is. `endpoint` is empty for Amazon's own."""

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = ""
    credentials: Path | None = None

    @property
    def name(self) -> str:
        """What the store is called among holders, and the label of the nodes that have access to it."""
        return f"{STORE}{self.bucket}{'/' if self.prefix else ''}{self.prefix}"


def parse(url: str) -> tuple[str, str]:
    """(bucket, prefix) of s3://BUCKET/PREFIX, or of a bucket's name alone. Raises ValueError."""
    match = _URL.fullmatch(url)
    if match is None or len(url) > 100:
        raise ValueError("must be s3://BUCKET or s3://BUCKET/PREFIX")
    return match[1], match[2].strip("/")


def credentials_in(path: Path) -> dict[str, str]:
    """The keys of the section `default`, or of the only one. Raises Misplaced, which never shows what is in it."""
    parser = configparser.ConfigParser(interpolation=None, default_section="\0")
    try:
        parser.read_string(path.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise Misplaced(f"the credentials file {path} cannot be read ({error.strerror})") from None
    except (configparser.Error, UnicodeDecodeError):
        raise Misplaced(f"{path} is no file of credentials; write it like ~/.aws/credentials") from None
    sections = parser.sections()
    section = "default" if "default" in sections else sections[0] if len(sections) == 1 else ""
    found = {key: parser[section][key].strip() for key in _KEYS if section and key in parser[section]}
    if not {"aws_access_key_id", "aws_secret_access_key"} <= found.keys():
        raise Misplaced(f"{path} has no section [default] with aws_access_key_id and aws_secret_access_key")
    return found


class _Source(io.FileIO):
    """A file to be put, whose further reads fail once it is `ended`."""

    ended = False

    def read(self, size: int | None = -1, /) -> bytes:
        if self.ended:
            raise InterruptedError("the upload was cancelled")
        return super().read(size)


class ObjectStore:
    """One bucket, for one cluster. Belongs to one event loop. All calls raise StoreError."""

    def __init__(self, place: Bucket, cluster_id: str) -> None:
        """Raises Misplaced."""
        self.name = place.name
        self._cluster_id = cluster_id
        self._ours = False
        self._store = _connect(place)

    async def get(self, digest: str, target: Path, size_bytes: int) -> bool:
        """Write an object to `target`, at most `size_bytes` of it (0: any); false when it is not there."""
        await self._claim()
        import obstore
        from obstore.exceptions import NotFoundError

        with self._told():
            try:
                found = await obstore.get_async(self._store, _key(digest))
            except (FileNotFoundError, NotFoundError):
                return False
            received = 0
            with target.open("wb") as file:
                async for chunk in found.stream(min_chunk_size=2 * 1024 * 1024):
                    received += len(chunk)
                    if size_bytes and received > size_bytes:
                        raise TooLarge(f"more than the {size_bytes} bytes it should have came from {self.name}")
                    await asyncio.to_thread(file.write, chunk)
        return True

    async def put(self, digest: str, source: Path) -> None:
        """Store a verified file. It is in the store when this returns, and is not there in part before.

        Of an upload that fails or is cancelled no parts are left in the store, unless it does not answer.
        """
        await self._claim()
        import obstore

        with _Source(source) as file, self._told():
            putting = obstore.put_async(
                self._store, _key(digest), file, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_A_TIME
            )
            upload = asyncio.ensure_future(putting)
            try:
                await asyncio.shield(upload)
            except asyncio.CancelledError:
                # The library takes the parts back of an upload that fails, and leaves those of one that is cancelled.
                file.ended = True
                await asyncio.wait([upload], timeout=TAKE_BACK_S)
                raise

    async def listed(self) -> AsyncIterator[tuple[str, float]]:
        """(digest, age in seconds) of every file in the store."""
        await self._claim()
        import obstore

        now = datetime.now(UTC)
        with self._told():
            async for page in obstore.list(self._store):
                for one in page:
                    digest = one["path"].rpartition("/")[2]
                    if one["path"] == _key(digest):
                        yield digest, (now - one["last_modified"]).total_seconds()

    async def delete(self, digest: str) -> None:
        await self._claim()
        import obstore
        from obstore.exceptions import NotFoundError

        with self._told():
            try:
                await obstore.delete_async(self._store, _key(digest))
            except (FileNotFoundError, NotFoundError):
                return

    async def _claim(self) -> None:
        """See that the prefix is this cluster's; two clusters in one would delete each other's files."""
        if self._ours:
            return
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotFoundError

        async def owned_by() -> bytes:
            return bytes(await (await obstore.get_async(self._store, MARK)).bytes_async())

        with self._told():
            try:
                found = await owned_by()
            except (FileNotFoundError, NotFoundError):
                with suppress(AlreadyExistsError):
                    mark = self._cluster_id.encode()
                    await obstore.put_async(self._store, MARK, mark, mode="create", use_multipart=False)
                found = await owned_by()
        owner = found.decode("utf-8", "replace")
        if owner != self._cluster_id:
            raise Misplaced(
                f"{self.name} belongs to cluster {owner[:64]!r}, this is {self._cluster_id!r}; give this cluster a "
                f"prefix of its own, or delete the object {MARK} there if the other one is gone"
            )
        self._ours = True

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the library raises as a StoreError in one line, without the addresses and headers it may show."""
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        try:
            yield
        except (PermissionDeniedError, UnauthenticatedError) as error:
            text = f"{self.name} refuses this node's credentials ({type(error).__name__})"
            raise StoreError(f"{text}; see AWS_ACCESS_KEY_ID or object_store_credentials_file") from None
        except (BaseError, FileNotFoundError) as error:
            raise StoreError(f"{self.name}: {_plain(str(error))}") from None


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def _key(digest: str) -> str:
    return f"{digest[:2]}/{digest}"


def _plain(text: str) -> str:
    """The first line of an error, with what looks like a signed address or a header cut out."""
    line = text.strip().partition("\n")[0]
    return re.sub(r"(?i)([?&]|x-amz-|authorization|credential|signature)\S*", "", line)[:300]


def checked(place: Bucket) -> None:
    """See that a store could be connected to, as far as files and packages go. Raises Misplaced."""
    _connect(place)


def _connect(place: Bucket) -> S3Store:
    try:
        from obstore.store import S3Store
    except ImportError:
        raise Misplaced("an object store needs the package obstore; install ringrift-cluster[s3]") from None
    keys = credentials_in(place.credentials) if place.credentials is not None else {}
    config: dict[str, Any] = {"bucket": place.bucket, **keys}
    config["region"] = place.region or keys.get("region") or _region()
    if place.endpoint:
        config["endpoint"] = place.endpoint
    options: Mapping[str, Any] = {
        "timeout": TIMEOUT,
        "connect_timeout": CONNECT_TIMEOUT,
        "allow_http": place.endpoint.startswith("http://"),
    }
    return S3Store(prefix=place.prefix or None, config=config, client_options=options, retry_config=RETRY)  # type: ignore[arg-type]
