"""The far end of a driver: runs on a host that has an SSH server and Python 3.8, for as long as one connection lives.

It reads requests from its standard input and answers on its standard output, and keeps nothing between two of
them: what matters is in files, and the keepers of attempts live in sessions of their own. A connection that is
cut ends it and nothing else.

    <root>/lib/DIGEST/...     this program, as sent by the release of that digest
    <root>/owner              the incarnation of the agent that may start anything here
    <root>/jobs/NAME/...      the folder of an attempt, as on a node
    <root>/checkpoints/...    kept across attempts
    <root>/files/DIGEST       inputs by sha256; DIGEST.partial is on its way

Frames are two lengths (big-endian, 4 bytes each), a JSON object and bytes. A request has `id` and `op`; its answer
has the `id`, and `error` with `text` when it failed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from executors import keepers, shim
from executors.keepers import Identity

HELLO = b"ringrift outpost 1\n"
LENGTHS = struct.Struct(">II")
MAX_HEADER_BYTES = 8 * 1024 * 1024
MAX_BODY_BYTES = 1024 * 1024
#: it ends by itself when nothing was asked for this long: a connection can die without anybody being told
IDLE_S = 120
#: of one file in one answer to `look`, and of all of them
LOOK_BYTES = 64 * 1024
ALL_LOOK_BYTES = 512 * 1024
#: SQLite keeps the newest rows of a database beside it
BESIDE = ("-wal", "-shm", "-journal")
MOST_FILES = 4096
#: in a checkpoint's directory: the digest of the packed copy that it goes on from
SAVED = ".saved"
#: a packed checkpoint in an attempt's folder, and what one may hold
PACKED = "checkpoint.tar"
MOST_CHECKPOINT_FILES = 10_000
MOST_CHECKPOINT_BYTES = 4 * 1024**3
#: what may take minutes, so many of them at a time
SLOW = ("furnish", "pack", "drop", "ask", "hash", "seal", "tidy")
SLOW_THREADS = 4
THREADS = 16


class Superseded(Exception):  # noqa: N818
    """Another agent has the host now."""


class WrongDigest(Exception):  # noqa: N818
    """The bytes that arrived are not those of their name."""


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """The next frame, None at the end of the stream."""
    lengths = stream.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    header_bytes, body_bytes = LENGTHS.unpack(lengths)
    if header_bytes > MAX_HEADER_BYTES or body_bytes > MAX_BODY_BYTES:
        return None
    header, body = stream.read(header_bytes), stream.read(body_bytes)
    if len(header) < header_bytes or len(body) < body_bytes:
        return None
    return json.loads(header), body


def frame(header: dict[str, Any], body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return LENGTHS.pack(len(text), len(body)) + text + body


class Outpost:
    """Answers requests; each method that begins with `do_` is one, on a thread of its own."""

    def __init__(self, root: str, out: BinaryIO) -> None:
        self._root = Path(root)
        self._jobs = self._root / "jobs"
        self._files = self._root / "files"
        self._checkpoints = self._root / "checkpoints"
        for directory in (self._root, self._jobs, self._files, self._checkpoints):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._out = out
        self._writing = threading.Lock()
        self._boot_id = _boot_id()
        self._incarnation = -1

    def serve(self, stream: BinaryIO) -> None:
        """Until the stream ends. A look waits for nothing else: leases depend on it."""
        looks, slow, rest = ThreadPoolExecutor(1), ThreadPoolExecutor(SLOW_THREADS), ThreadPoolExecutor(THREADS)
        with looks, slow, rest:
            while True:
                signal.alarm(IDLE_S)
                request = read_frame(stream)
                if request is None:
                    return
                op = request[0].get("op")
                threads = looks if op == "look" else slow if op in SLOW else rest
                threads.submit(self._answer, *request)

    def _answer(self, request: dict[str, Any], body: bytes) -> None:
        number, made = request.pop("id"), b""
        try:
            answer = getattr(self, f"do_{request.pop('op')}")(body=body, **request)
            answer, made = answer if isinstance(answer, tuple) else (answer, b"")
        except (
            OSError,
            ValueError,
            TypeError,
            AttributeError,
            LookupError,
            EOFError,
            tarfile.TarError,
            *_SAID,
        ) as error:
            kind = type(error).__name__ if isinstance(error, _SAID) else "OSError"
            answer = {"error": kind, "text": str(error)}
        with self._writing:
            self._out.write(frame({"id": number, **answer}, made))
            self._out.flush()

    def _folder(self, name: str) -> Path:
        if "/" in name or name in ("", ".", ".."):
            raise ValueError(f"{name!r} is no folder of an attempt")
        return self._jobs / name

    @contextlib.contextmanager
    def _alone(self, what: str = "owner") -> Iterator[None]:
        """While nobody else does the same: an outpost whose connection is dead may not have noticed yet.

        Of an attempt's lock and the owner's, the attempt's is taken first.
        """
        path = self._root / f"{what}.lock"
        while True:
            with path.open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                try:
                    if not os.path.samestat(path.stat(), os.fstat(file.fileno())):
                        continue
                except FileNotFoundError:
                    continue  # who had it before removed it; those who come now make another
                try:
                    yield
                finally:
                    path.unlink()
                return

    # --- the host ---------------------------------------------------------------------------------

    def do_hello(self, body: bytes) -> dict[str, Any]:
        ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        secret = ("SSH_", "RINGRIFT_")
        return {
            "boot_id": self._boot_id,
            "boot_s": shim.boot_s(),
            "root": str(self._root),
            "python": sys.executable,
            "version": platform.python_version(),
            "hostname": platform.node(),
            "platform": f"{sys.platform}-{platform.machine()}",
            "cores": len(os.sched_getaffinity(0)),
            "ram_bytes": ram,
            "disk": self._disk(),
            "environ": {k: v for k, v in os.environ.items() if not k.startswith(secret)},
            "gpus": self.do_gpus(b"")["gpus"],
        }

    def _disk(self) -> tuple[int, int]:
        usage = shutil.disk_usage(self._root)
        return usage.free, usage.total

    def do_gpus(self, body: bytes) -> dict[str, Any]:
        """What nvidia-smi says of every device; an empty text where there is none."""
        fields = "uuid,name,memory.total,memory.used,utilization.gpu,temperature.gpu,driver_version"
        try:
            said = subprocess.run(
                ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=20,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return {"gpus": ""}
        return {"gpus": said.stdout.decode("utf-8", "replace")}

    def do_claim(self, body: bytes, incarnation: int, held: list[str] | None) -> dict[str, Any]:
        """Be the one that starts here. With `held`, end and drop every attempt that is not named there."""
        with self._alone():
            owner = shim.read_record(str(self._root / "owner")) or {}
            if owner.get("incarnation", -1) > incarnation:
                raise Superseded(f"incarnation {owner['incarnation']} has this host, newer than {incarnation}")
            shim.write_whole(str(self._root / "owner"), json.dumps({"incarnation": incarnation}))
            self._incarnation = incarnation
        strangers = [] if held is None else [one for one in self._jobs.iterdir() if one.name not in held]
        for folder in strangers:
            self.do_drop(b"", folder.name)
        return {"dropped": len(strangers)}

    def do_tidy(self, body: bytes, files_bytes: int, checkpoints_s: float) -> dict[str, Any]:
        """Drop inputs that no attempt uses, used longest ago first, and old checkpoints."""
        found, now = [], time.time()
        with contextlib.suppress(FileNotFoundError):
            for path in self._files.iterdir():
                about = path.stat()
                found.append((about.st_mtime, about.st_size, about.st_nlink, path))
        total = sum(size for _, size, _, _ in found)
        for used, size, links, path in sorted(found):
            if links == 1 and (total > files_bytes or (path.suffix == ".partial" and now - used > checkpoints_s)):
                path.unlink()
                total -= size
        for path in self._checkpoints.iterdir():
            newest = max(one.lstat().st_mtime for one in (path, *path.rglob("*")))
            used_by = any((job / "checkpoint").resolve() == path.resolve() for job in self._jobs.iterdir())
            if now - newest > checkpoints_s and not used_by:
                shutil.rmtree(path, ignore_errors=True)
        return {"files_bytes": total}

    # --- inputs -----------------------------------------------------------------------------------

    def _file(self, digest: str) -> Path:
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise ValueError(f"{digest!r} is no sha256")
        return self._files / digest

    def do_have(self, body: bytes, digest: str) -> dict[str, Any]:
        """Whether a file is here, and how much of it when it is on its way."""
        path = self._file(digest)
        if path.is_file():
            os.utime(path)
            return {"whole": True, "partial": 0}
        partial = path.with_suffix(".partial")
        return {"whole": False, "partial": partial.stat().st_size if partial.exists() else 0}

    def do_put(self, body: bytes, digest: str, offset: int) -> dict[str, Any]:
        handle = os.open(self._file(digest).with_suffix(".partial"), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(handle, body, offset)
        finally:
            os.close(handle)
        return {}

    def do_seal(self, body: bytes, digest: str, size: int) -> dict[str, Any]:
        """Make a file that has arrived one of the store; what is not what it should be is thrown away."""
        path = self._file(digest)
        partial = path.with_suffix(".partial")
        if path.is_file():
            return {}
        os.truncate(partial, size)
        if _sha256(partial) != digest:
            partial.unlink()
            raise WrongDigest(f"what arrived of {digest} has other bytes")
        partial.chmod(0o444)
        partial.replace(path)
        return {}

    # --- an attempt -------------------------------------------------------------------------------

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
        with self._alone(self._folder(name).name):
            self._furnish(self._folder(name), private, tree, checkpoint, packed, texts, links)
        return {}

    def _furnish(
        self,
        folder: Path,
        private: list[str],
        tree: str,
        checkpoint: str,
        packed: str,
        texts: dict[str, str],
        links: dict[str, str],
    ) -> None:
        if (folder / "order.json").exists():
            raise ValueError(f"{folder.name} has started already")  # this is a repeat that waited in a dead connection
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(mode=0o700)
        kept = self._checkpoints / self._folder(checkpoint).name
        if packed and _read(kept / SAVED) != packed:
            _unpack(self._file(packed), kept, packed)
        keepers.lay_out(folder, private, tree, kept)
        for file, text in texts.items():
            (folder / file).write_text(text)
        for file, digest in links.items():
            target = folder / "inputs" / file
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(self._file(digest), target)

    def do_start(self, body: bytes, name: str, order: dict[str, Any], lease: float) -> dict[str, Any]:
        """Start the keeper, once: a repeat is answered with what the first one started."""
        folder = self._folder(name)
        with self._alone(folder.name), self._alone():
            owner = shim.read_record(str(self._root / "owner")) or {}
            if owner.get("incarnation") != self._incarnation:
                raise Superseded("another agent has this host now")
            if (folder / "order.json").exists():
                if found := keepers.keeper_of(folder, self._boot_id):
                    return {"pid": found.pid, "ticks": found.ticks}
                if (folder / "exit.json").exists():
                    return {"pid": os.getpid(), "ticks": 0}
            made = keepers.start(folder, order, lease, self._boot_id)
        threading.Thread(target=_see_off, args=(made.pid,), daemon=True).start()
        return {"pid": made.pid, "ticks": made.ticks}

    def do_find(self, body: bytes, name: str, pid: int, ticks: int) -> dict[str, Any]:
        """The living keeper of an attempt, by its handle, or by its mark when that is 0."""
        folder = self._folder(name)
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
            folder = self._folder(name)
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
        answer = {"boot_id": self._boot_id, "boot_s": shim.boot_s(), "disk": self._disk(), "jobs": seen}
        return answer, b"".join(parts)

    def do_end(self, body: bytes, name: str, pid: int, ticks: int, obey: bool) -> dict[str, Any]:
        """End an attempt, with the help of its keeper unless that is known not to obey."""
        folder, process = self._folder(name), Identity(self._boot_id, pid, ticks)
        order = keepers.end if obey else keepers.put_down
        return {"ended": order(process, folder, self._boot_id)}

    def do_end_leftovers(self, body: bytes, name: str) -> dict[str, Any]:
        return {"ended": keepers.end_leftovers(self._folder(name), self._boot_id)}

    def do_drop(self, body: bytes, name: str, checkpoint: str = "") -> dict[str, Any]:
        """End what is left of an attempt and delete its folder."""
        folder = self._folder(name)
        with self._alone(folder.name):  # not while it is being furnished or started
            if folder.exists():
                if found := keepers.keeper_of(folder, self._boot_id):
                    keepers.end(found, folder, self._boot_id)
                keepers.end_leftovers(folder, self._boot_id)
                shutil.rmtree(folder, ignore_errors=True)
        if checkpoint:
            shutil.rmtree(self._checkpoints / self._folder(checkpoint).name, ignore_errors=True)
        return {}

    def do_pack(self, body: bytes, name: str) -> dict[str, Any]:
        """Pack what an ended attempt has in its checkpoint into one file of its folder; size 0 when it has nothing."""
        with self._alone(self._folder(name).name):
            return {"size": self._pack(self._folder(name))}

    def _pack(self, folder: Path) -> int:
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

    # --- what it left -----------------------------------------------------------------------------

    def do_manifest(self, body: bytes, name: str, globs: list[str]) -> dict[str, Any]:
        """Regular files below the folder that fit a pattern, and what SQLite keeps beside them, with their sizes."""
        folder, found = self._folder(name), {}
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
        with (self._folder(name) / path).open("rb") as file:
            file.seek(offset)
            return {}, file.read(min(most, MAX_BODY_BYTES))

    def do_hash(self, body: bytes, name: str, path: str) -> dict[str, Any]:
        return {"sha256": _sha256(self._folder(name) / path)}

    def do_ask(self, body: bytes, name: str, argv: list[str], limit_s: float) -> tuple[dict[str, Any], bytes]:
        return {}, keepers.ask(self._folder(name), argv, limit_s, MAX_BODY_BYTES)


def _see_off(pid: int) -> None:
    """Wait for a keeper of ours, or it would stay a zombie while the connection lasts."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _boot_id() -> str:
    """What changes with every boot; empty on a machine that is no Linux."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _unpack(packed: Path, kept: Path, digest: str) -> None:
    """Put a packed checkpoint in the place of a directory; only regular files below it are taken."""
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


def _sha256(path: Path) -> str:
    made = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1024 * 1024):
            made.update(chunk)
    return made.hexdigest()


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


_SAID = (Superseded, WrongDigest, keepers.NoTree, keepers.Unanswered)


def main(root: str, stream: BinaryIO, out: BinaryIO) -> None:
    """Serve one connection."""
    out.write(HELLO)
    out.flush()
    Outpost(root, out).serve(stream)
