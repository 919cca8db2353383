"""The checkpoint of an unfinished item, on its way from one attempt to the next one, on whatever node that is.

    <data>/checkpoints/<work>/         what the program keeps there, whichever attempt it is
    <data>/checkpoints/<work>/.saved   the digest of the packed copy that the cluster knows, which it goes on from

An attempt that ends without a result packs the directory into one file of the store and registers it. The next
attempt fetches and unpacks it, unless it is on a node whose directory goes on from that very copy.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO, cast

from executors.blobs import Blobs, TooLarge
from executors.folder import file_name

#: what a node takes in one upload
MAX_BYTES = 4 * 1024**3
MAX_FILES = 10_000
SAVED = ".saved"


class BadCheckpoint(Exception):  # noqa: N818
    """A packed checkpoint cannot be used; the text says why."""


class Checkpoint:
    """One item's directory on this node. All calls block on the disk."""

    def __init__(self, data_dir: Path, work: str, blobs: Blobs) -> None:
        self.path = data_dir / "checkpoints" / file_name(work)
        self._work = work
        self._blobs = blobs

    def goes_on_from(self, digest: str) -> bool:
        """Whether the directory is that packed copy, or what an attempt here made of it."""
        try:
            return (self.path / SAVED).read_text() == digest
        except OSError:
            return False

    def saved(self, digest: str) -> None:
        """Note that the cluster knows this copy. Raises OSError."""
        (self.path / SAVED).write_text(digest)

    def pack(self) -> tuple[str, int] | None:
        """(digest, bytes) of the packed directory in the store; None when there is nothing in it.

        Raises OSError, and BadCheckpoint when it is too large.
        """
        files = sorted(p for p in self.path.rglob("*") if p.is_file() and not p.is_symlink() and p.name != SAVED)
        if not files:
            return None
        if len(files) > MAX_FILES:
            raise BadCheckpoint(f"it has {len(files)} files, {MAX_FILES} are taken")
        writer = self._blobs.writer(MAX_BYTES)
        try:
            # The item's name makes the bytes its own: the file goes when the item does.
            headers = {"comment": self._work}
            with tarfile.open(fileobj=cast("IO[bytes]", writer), mode="w|", pax_headers=headers) as tar:
                for path in files:
                    info = tar.gettarinfo(path, str(path.relative_to(self.path)))
                    info.uid = info.gid = 0
                    info.uname = info.gname = ""
                    with path.open("rb") as file:
                        tar.addfile(info, file)
        except TooLarge as error:
            writer.abandon()
            raise BadCheckpoint(str(error)) from error
        except BaseException:
            writer.abandon()
            raise
        return writer.commit(), writer.size_bytes

    def unpack(self, packed: Path, digest: str) -> None:
        """Put a packed copy in the place of the directory; what was there stays when the copy is of no use.

        Raises OSError and BadCheckpoint.
        """
        beside = self.path.with_name(self.path.name + ".partial")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        try:
            with tarfile.open(packed, "r:") as tar:
                for number, member in enumerate(tar):
                    if number >= MAX_FILES:
                        raise BadCheckpoint(f"it has more than {MAX_FILES} files")
                    _extract(tar, member, beside)
        except (tarfile.TarError, EOFError) as error:
            raise BadCheckpoint(str(error)) from error
        (beside / SAVED).write_text(digest)
        shutil.rmtree(self.path, ignore_errors=True)
        beside.rename(self.path)


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Write one regular file below a folder, whatever the archive says of its place."""
    path = PurePosixPath(member.name)
    source = tar.extractfile(member) if member.isreg() else None
    if source is None or path.is_absolute() or ".." in path.parts or not path.parts:
        raise BadCheckpoint(f"it holds {member.name!r}, which is no file below it")
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with source, target.open("wb") as file:
        shutil.copyfileobj(source, file, 1024 * 1024)
    with contextlib.suppress(OSError, OverflowError):
        # Programs choose the newest of their checkpoints.
        os.utime(target, (member.mtime, member.mtime))
