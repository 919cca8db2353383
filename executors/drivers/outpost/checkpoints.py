"""What attempts keep for the next one of their item, and the packed form in which it goes from host to host."""

from __future__ import annotations

import os
import shutil
import tarfile
import time
from pathlib import Path

from executors.drivers.outpost.root import Root

#: in a checkpoint's directory: the digest of the packed copy that it goes on from
SAVED = ".saved"
#: a packed checkpoint in an attempt's folder, and what one may hold
PACKED = "checkpoint.tar"
MOST_CHECKPOINT_FILES = 10_000
MOST_CHECKPOINT_BYTES = 4 * 1024**3


def pack(folder: Path) -> int:
    """Pack the checkpoint of an attempt into one file of its folder; its size, 0 when there is nothing to pack."""
    kept = (folder / "checkpoint").resolve()
    files = sorted(p for p in kept.rglob("*") if p.is_file() and not p.is_symlink() and p.name != SAVED)
    if not files or len(files) > MOST_CHECKPOINT_FILES:
        return 0
    if sum(path.stat().st_size for path in files) > MOST_CHECKPOINT_BYTES:
        return 0
    with tarfile.open(folder / PACKED, "w") as tar:
        for path in files:
            tar.add(path, str(path.relative_to(kept)), recursive=False)
    return (folder / PACKED).stat().st_size


def unpack(packed: Path, kept: Path, digest: str) -> None:
    """Put a packed checkpoint in the place of a directory that does not go on from it already.

    Only regular files below it are taken. Raises ValueError, tarfile.TarError and OSError.
    """
    if _read(kept / SAVED) == digest:
        return
    beside = kept.with_name(kept.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    with tarfile.open(packed, "r:") as tar:
        for member in tar:
            path = Path(member.name)
            source = tar.extractfile(member) if member.isreg() else None
            if source is None or path.is_absolute() or ".." in path.parts or not path.parts:
                raise ValueError(f"the checkpoint holds {member.name!r}, which is no file below it")
            (beside / path).parent.mkdir(parents=True, exist_ok=True)
            with source, (beside / path).open("wb") as file:
                shutil.copyfileobj(source, file, 1024 * 1024)
            os.utime(beside / path, (member.mtime, member.mtime))
    (beside / SAVED).write_text(digest)
    shutil.rmtree(kept, ignore_errors=True)
    beside.rename(kept)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def tidy(root: Root, kept_s: float) -> None:
    """Drop checkpoints that no attempt uses and that nobody wrote to for so long."""
    now = time.time()
    for path in root.checkpoints.iterdir():
        newest = max(one.lstat().st_mtime for one in (path, *path.rglob("*")))
        used_by = any((job / "checkpoint").resolve() == path.resolve() for job in root.jobs.iterdir())
        if now - newest > kept_s and not used_by:
            shutil.rmtree(path, ignore_errors=True)
