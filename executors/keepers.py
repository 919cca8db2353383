"""Starting, finding, signalling and ending keepers: what a machine needs beside `shim` to run attempts.

The standard library alone, and nothing newer than Python 3.8: this file and the keeper's are sent to hosts that
have no agent. A process is named by (boot id, pid, start ticks), never by a pid alone: a pid is given to somebody
else sooner or later, the triple is not.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from executors import shim

#: a keeper that was told to end its program at once has this long
OBEY_S = 5.0
#: the first bytes of a SQLite database
SQLITE = b"SQLite format 3\0"
#: the variable that marks a keeper with its attempt's folder
KEEPER = "RINGRIFT_KEEPER"


class NoTree(Exception):  # noqa: N818
    """The source tree that a template names is not on the machine."""


class Identity(NamedTuple):
    """One process of one boot. `ticks` is its start time in the kernel's own unit."""

    boot_id: str
    pid: int
    ticks: int


def start_ticks(pid: int) -> int:
    """The start time of a process, 0 when it is gone; a zombie is gone."""
    stat = shim.proc_stat(pid)
    if stat is not None:
        return 0 if stat[0] in "ZX" else stat[1]
    if platform.system() == "Linux":
        return 0
    import psutil  # not on a host without an agent, which runs Linux

    try:
        process = psutil.Process(pid)
        return 0 if process.status() == psutil.STATUS_ZOMBIE else int(process.create_time() * 1000)
    except psutil.NoSuchProcess:
        return 0


def alive(process: Identity, boot_id: str) -> bool:
    """Whether exactly this process still runs."""
    return process.boot_id == boot_id and process.ticks != 0 and start_ticks(process.pid) == process.ticks


def lay_out(job_dir: Path, private: Sequence[str], tree: str, checkpoint: Path) -> None:
    """Make an attempt's folder with its private corners, its copy of a source tree and its checkpoint's link.

    Raises NoTree and OSError.
    """
    (job_dir / "out").mkdir(parents=True)
    (job_dir / "inputs").mkdir()
    for directory in private:
        Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
    if tree:
        _copy_tree(tree, job_dir / "tree")
    checkpoint.mkdir(parents=True, exist_ok=True)
    (job_dir / "checkpoint").symlink_to(checkpoint, target_is_directory=True)


def _copy_tree(tree: str, target: Path) -> None:
    if not Path(tree).is_dir():
        raise NoTree(f"the template's tree {tree} is no directory on {platform.node()}; put the programs there")
    try:
        shutil.copytree(tree, target, symlinks=True, ignore=shutil.ignore_patterns(".git", "__pycache__"))
    except shutil.Error as error:
        # It is one long list of (source, target, reason).
        raise OSError(f"{tree} could not be copied: {error.args[0][0][2]}") from error


def lend(source: Path, target: Path) -> None:
    """Put a stored file at an attempt's `target`: a link, but of a SQLite database a copy. Raises OSError.

    Who opens a database to read it often writes to it (its journal mode, a table that an older one lacks), and what is
    written through a link is written to the store.
    """
    with source.open("rb") as file:
        writes = file.read(len(SQLITE)) == SQLITE
    if writes:
        _copy(source, target)
    else:
        link_or_copy(source, target)


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system allows one, else a copy written beside and renamed. Raises OSError."""
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    beside = target.with_name(target.name + ".partial")
    shutil.copyfile(source, beside)
    beside.replace(target)


def remove(folder: Path) -> None:
    """Delete a folder with all in it, also what a program made read-only; what cannot go stays."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.is_symlink() or not folder.is_dir():
        return
    with contextlib.suppress(OSError):
        folder.chmod(0o700)
    for root, names, _ in os.walk(folder):
        for path in (Path(root) / name for name in names):
            if not path.is_symlink():  # what it leads to is not ours
                with contextlib.suppress(OSError):
                    path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def start(job_dir: Path, order: Mapping[str, Any], lease_ends_at_s: float, boot_id: str) -> Identity:
    """Start a keeper for the program in a session of its own. Raises OSError.

    The folder must exist; the order and the lease are written to it before the keeper starts.
    """
    shim.write_lease(str(job_dir), lease_ends_at_s)
    shim.write_whole(str(job_dir / "order.json"), json.dumps(order))
    log = str(job_dir / "shim.log")
    # None of the node's secrets, and a mark by which a keeper is found whose handle was not saved in time.
    bare = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "HOME")}
    bare[KEEPER] = str(job_dir)
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", shim.__file__, str(job_dir)],
        bare,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD),
    )
    return Identity(boot_id, pid, start_ticks(pid))


def marked(job_dir: Path, name: str) -> list[int]:
    """Processes that carry an attempt's folder in the environment variable `name`."""
    if Path("/proc/self/environ").exists():
        return shim.strays(str(job_dir), name)
    import psutil

    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(name) == str(job_dir):
                found.append(process.pid)
    return found


def keeper_of(job_dir: Path, boot_id: str) -> Identity | None:
    """The living keeper of an attempt, found by its mark; its guard has the mark as well, and leads no session."""
    for pid in marked(job_dir, KEEPER):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == pid and (ticks := start_ticks(pid)):
                return Identity(boot_id, pid, ticks)
    return None


def stop(process: Identity, boot_id: str) -> bool:
    """Ask the keeper to end its program with grace; False when the keeper is gone."""
    return _signal(process, boot_id, signal.SIGTERM)


def kill(process: Identity, boot_id: str) -> bool:
    """Ask the keeper to end its program at once; False when the keeper is gone."""
    return _signal(process, boot_id, signal.SIGUSR1)


def put_down(process: Identity, job_dir: Path, boot_id: str) -> bool:
    """End a keeper that does not obey, and its program; blocks. False when something survived SIGKILL."""
    _signal(process, boot_id, signal.SIGKILL)
    return end_leftovers(job_dir, boot_id)


def end(process: Identity, job_dir: Path, boot_id: str) -> bool:
    """End a keeper and its program at once, with the keeper's help as long as it gives any; blocks.

    The keeper goes first: one that is killed between fork and exec leaves a child that nothing marks yet.
    Returns False when something survived SIGKILL.
    """
    kill(process, boot_id)
    deadline = time.monotonic() + OBEY_S
    while alive(process, boot_id) and time.monotonic() < deadline:
        time.sleep(0.01)  # an adopted keeper is not our child: the kernel tells nobody of its end
    ended = put_down(process, job_dir, boot_id)
    reap(process.pid)
    return ended


def _signal(process: Identity, boot_id: str, number: int) -> bool:
    if not hasattr(os, "pidfd_open"):
        if not alive(process, boot_id):
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)
        return True
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        # Looked at after the descriptor was opened: from here on the pid cannot become somebody else.
        if not alive(process, boot_id):
            return False
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def reap(pid: int) -> None:
    """Take note of the end of a child, if it is one."""
    # ChildProcessError: it is not our child, an earlier node process started it.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def end_leftovers(job_dir: Path, boot_id: str) -> bool:
    """End what an attempt left behind when its keeper could not; blocks for up to 5 s.

    Found by the recorded group while its leader is still the recorded one, and by the attempt's
    directory in the environment. Returns False when something survived SIGKILL.
    """
    group = shim.recorded_group(str(job_dir))
    for pid in marked(job_dir, "RINGRIFT_JOB_DIR"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return shim.end_group(group, str(job_dir))


class Unanswered(Exception):  # noqa: N818
    """Why a result command told nothing."""


def ask(job_dir: Path, argv: Sequence[str], within_s: float, most: int) -> bytes:
    """What an ended attempt's result command prints; blocks. Its other words are in result-command.log.

    The command and its surroundings are those of the attempt's order; `argv` where that names none. Raises Unanswered.
    """
    order = shim.read_record(str(job_dir / "order.json")) or {}
    argv = order.get("result") or argv
    log = job_dir / "result-command.log"
    with log.open("wb") as words:
        try:
            process = subprocess.Popen(
                argv,
                cwd=str(order.get("cwd") or job_dir),
                env=order.get("env") or {},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=words,
                start_new_session=True,
            )
        except OSError as error:
            raise Unanswered(f"its result command {argv[0]} could not be started: {error}") from error
        said, over = _said(process, time.monotonic() + within_s, most), process.poll() is None
        if over:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if len(said) > most:
        raise Unanswered(f"its result command {argv[0]} printed more than the {most} bytes that are read")
    if over:
        raise Unanswered(f"its result command {argv[0]} did not end within {within_s:g} s")
    if process.returncode != 0:
        raise Unanswered(f"its result command {argv[0]} exited with {process.returncode}; see {log.name}")
    return said


def _said(process: subprocess.Popen[bytes], until_s: float, most: int) -> bytes:
    """What it prints until it ends, or until a moment, or until it is more than `most`; blocks.

    The end of its output is not waited for: something that it left behind may hold that open for ever.
    """
    assert process.stdout is not None  # it was started with a pipe
    said, pipe = bytearray(), process.stdout.fileno()
    with process.stdout:
        os.set_blocking(pipe, False)
        while len(said) <= most:
            ended = process.poll() is not None  # looked at before the read: nothing is printed after it
            data = b""
            with contextlib.suppress(BlockingIOError):
                data = os.read(pipe, 65536)
            said += data
            if not data and (ended or time.monotonic() >= until_s):
                break
            if not data:
                time.sleep(0.01)  # it may close its output long before its end
    return bytes(said)
