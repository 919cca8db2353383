"""The attempts of a host: making their folders, starting and ending their keepers, and what they left."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import threading
import time
from pathlib import Path
from typing import Any

from executors import keepers, shim
from executors.drivers.outpost import checkpoints
from executors.drivers.outpost.frames import MAX_BODY_BYTES
from executors.drivers.outpost.inputs import sha256
from executors.drivers.outpost.root import Root
from executors.keepers import Identity

#: of one file in one answer to `look`, and of all of them
LOOK_BYTES = 64 * 1024
ALL_LOOK_BYTES = 512 * 1024
#: SQLite keeps the newest rows of a database beside it
BESIDE = ("-wal", "-shm", "-journal")
MOST_FILES = 4096


class Attempts:
    def __init__(self, root: Root, boot_id: str) -> None:
        self._root = root
        self._boot_id = boot_id

    def do_furnish(
        self,
        body: bytes,
        name: str,
        private: list[str],
        tree: str,
        checkpoint: str,
        packed: str,
        texts: dict[str, str],
        links: dict[str, str],
    ) -> dict[str, Any]:
        """Make the folder of an attempt that has not started: directories, small files, inputs by digest."""
        folder = self._root.job(name)
        with self._root.alone(folder.name):
            if (folder / "order.json").exists():
                raise ValueError(
                    f"{folder.name} has started already"
                )  # this is a repeat that waited in a dead connection
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(mode=0o700)
            kept = self._root.checkpoint(checkpoint)
            if packed:
                checkpoints.unpack(self._root.file(packed), kept, packed)
            keepers.lay_out(folder, private, tree, kept)
            for file, text in texts.items():
                (folder / file).write_text(text)
            for file, digest in links.items():
                target = folder / "inputs" / file
                target.parent.mkdir(parents=True, exist_ok=True)
                keepers.lend(self._root.file(digest), target)
        return {}

    def do_start(self, body: bytes, name: str, order: dict[str, Any], lease: float) -> dict[str, Any]:
        """Start the keeper, once: a repeat is answered with what the first one started."""
        folder = self._root.job(name)
        with self._root.alone(folder.name), self._root.owned():
            if (folder / "order.json").exists():
                time.sleep(shim.UNMARKED_S)  # a keeper that was started this moment has no mark to be found by yet
                if found := keepers.keeper_of(folder, self._boot_id):
                    return {"pid": found.pid, "ticks": found.ticks}
                if (folder / "exit.json").exists():
                    return {"pid": os.getpid(), "ticks": 0}
            made = keepers.start(folder, order, lease, self._boot_id)
        threading.Thread(target=_see_off, args=(made.pid,), daemon=True).start()
        return {"pid": made.pid, "ticks": made.ticks}

    def do_find(self, body: bytes, name: str, pid: int, ticks: int) -> dict[str, Any]:
        """The living keeper of an attempt, by its handle, or by its mark when that is 0."""
        folder = self._root.job(name)
        known = Identity(self._boot_id, pid, ticks)
        found = known if keepers.alive(known, self._boot_id) else None
        if not pid:
            found = keepers.keeper_of(folder, self._boot_id)
        ended = (folder / "exit.json").exists()
        return {"pid": found.pid if found else 0, "ticks": found.ticks if found else 0, "ended": ended}

    def do_look(self, body: bytes, jobs: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], bytes]:
        """One look at attempts: leases and signals are passed on, what was added to their files is brought.

        What cannot be done for one of them, or read of it, keeps nothing from the others.
        """
        seen, parts, room = {}, [], ALL_LOOK_BYTES
        for name, asked in jobs.items():
            folder = self._root.job(name)
            process = Identity(self._boot_id, asked["pid"], asked["ticks"])
            alive = keepers.alive(process, self._boot_id)  # before the files: nothing is written after its end
            if alive and asked["lease"]:
                with contextlib.suppress(OSError):
                    shim.write_lease(str(folder), asked["lease"])
            if alive and asked["signal"]:
                order = keepers.stop if asked["signal"] == "stop" else keepers.kill
                with contextlib.suppress(OSError):
                    order(process, self._boot_id)
            files = {}
            for file, offset in asked["files"].items():
                size, start, data = _added(folder / file, offset, min(LOOK_BYTES, room))
                room -= len(data)
                parts.append(data)
                files[file] = (start, len(data), size)
            seen[name] = {"alive": alive, "files": files}
        answer = {"boot_id": self._boot_id, "boot_s": shim.boot_s(), "disk": self._root.disk(), "jobs": seen}
        return answer, b"".join(parts)

    def do_end(self, body: bytes, name: str, pid: int, ticks: int, obey: bool) -> dict[str, Any]:
        """End an attempt, with the help of its keeper unless that is known not to obey."""
        folder, process = self._root.job(name), Identity(self._boot_id, pid, ticks)
        order = keepers.end if obey else keepers.put_down
        return {"ended": order(process, folder, self._boot_id)}

    def do_end_leftovers(self, body: bytes, name: str) -> dict[str, Any]:
        return {"ended": keepers.end_leftovers(self._root.job(name), self._boot_id)}

    def do_drop(self, body: bytes, name: str, checkpoint: str = "") -> dict[str, Any]:
        """End what is left of an attempt and delete its folder."""
        folder = self._root.job(name)
        with self._root.alone(folder.name):  # not while it is being furnished or started
            if folder.exists():
                if found := keepers.keeper_of(folder, self._boot_id):
                    keepers.end(found, folder, self._boot_id)
                keepers.end_leftovers(folder, self._boot_id)
                keepers.remove(folder)
        if checkpoint:
            keepers.remove(self._root.checkpoint(checkpoint))
        return {}

    def do_pack(self, body: bytes, name: str) -> dict[str, Any]:
        """Pack what an ended attempt has in its checkpoint into one file of its folder; size 0 when it has nothing."""
        with self._root.alone(self._root.job(name).name):
            return {"size": checkpoints.pack(self._root.job(name))}

    def do_manifest(self, body: bytes, name: str, globs: list[str]) -> dict[str, Any]:
        """Regular files below the folder that fit a pattern, and what SQLite keeps beside them, with their sizes."""
        folder, found = self._root.job(name), {}
        inside = folder.resolve()
        for pattern in globs:
            for path in folder.glob(pattern):
                for one in (path, *(path.with_name(path.name + suffix) for suffix in BESIDE)):
                    if one.is_file() and not one.is_symlink() and inside in one.resolve().parents:
                        found[one.relative_to(folder).as_posix()] = one.stat().st_size
        if len(found) > MOST_FILES:
            raise ValueError(f"it left {len(found)} files that fit, at most {MOST_FILES} are fetched")
        return {"files": found}

    def do_get(self, body: bytes, name: str, path: str, offset: int, most: int) -> tuple[dict[str, Any], bytes]:
        with (self._root.job(name) / path).open("rb") as file:
            file.seek(offset)
            return {}, file.read(min(most, MAX_BODY_BYTES))

    def do_hash(self, body: bytes, name: str, path: str) -> dict[str, Any]:
        return {"sha256": sha256(self._root.job(name) / path)}

    def do_ask(self, body: bytes, name: str, argv: list[str], limit_s: float) -> tuple[dict[str, Any], bytes]:
        return {}, keepers.ask(self._root.job(name), argv, limit_s, MAX_BODY_BYTES)


def _see_off(pid: int) -> None:
    """Wait for a keeper of ours, or it would stay a zombie while the connection lasts."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _added(path: Path, offset: int, most: int) -> tuple[int, int, bytes]:
    """Size of a file, a position and what is there: from `offset`, or from 0 when the file was begun anew.

    Nothing when it cannot be read, or is none: a program may put anything in its place.
    """
    try:
        with open(path, "rb", opener=_at_once) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                return 0, 0, b""
            size = about.st_size
            start = offset if size >= offset else 0
            file.seek(start)
            return size, start, file.read(most)
    except OSError:
        return 0, 0, b""


def _at_once(path: str, flags: int) -> int:
    """Open without waiting for the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)
