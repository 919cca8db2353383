"""The files that attempts on a host begin with, by sha256."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path
from typing import Any

from executors.drivers.outpost.root import Root


class WrongDigest(Exception):  # noqa: N818
    """The bytes that arrived are not those of their name."""


class Inputs:
    def __init__(self, root: Root) -> None:
        self._root = root

    def do_have(self, body: bytes, digest: str) -> dict[str, Any]:
        """Whether a file is here, and how much of it when it is on its way."""
        path = self._root.file(digest)
        if path.is_file():
            os.utime(path)
            return {"whole": True, "partial": 0}
        partial = path.with_suffix(".partial")
        return {"whole": False, "partial": partial.stat().st_size if partial.exists() else 0}

    def do_put(self, body: bytes, digest: str, offset: int) -> dict[str, Any]:
        handle = os.open(self._root.file(digest).with_suffix(".partial"), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(handle, body, offset)
        finally:
            os.close(handle)
        return {}

    def do_seal(self, body: bytes, digest: str, size: int) -> dict[str, Any]:
        """Make a file that has arrived one of the store; what is not what it should be is thrown away."""
        path = self._root.file(digest)
        partial = path.with_suffix(".partial")
        if path.is_file():
            return {}
        os.truncate(partial, size)
        if sha256(partial) != digest:
            partial.unlink()
            raise WrongDigest(f"what arrived of {digest} has other bytes")
        partial.chmod(0o444)
        partial.replace(path)
        return {}

    def tidy(self, most_bytes: int, partial_s: float) -> int:
        """Drop files that no attempt uses, used longest ago first, and what did not arrive; the bytes that are left."""
        found, now = [], time.time()
        with contextlib.suppress(FileNotFoundError):
            for path in self._root.files.iterdir():
                about = path.stat()
                found.append((about.st_mtime, about.st_size, about.st_nlink, path))
        total = sum(size for _, size, _, _ in found)
        for used, size, links, path in sorted(found):
            if links == 1 and (total > most_bytes or (path.suffix == ".partial" and now - used > partial_s)):
                path.unlink()
                total -= size
        return total


def sha256(path: Path) -> str:
    made = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1024 * 1024):
            made.update(chunk)
    return made.hexdigest()
