"""The folder of one attempt.

<data>/jobs/<job>-<fence>/      a program that is started again has <job>-<fence>.1, then .2 and so on
    spec.json                 the item, its parameters, inputs, seed, GPUs, fence
    inputs/NAME               links to verified files, copies of SQLite databases
    inputs-PREFIX.txt         paths of the inputs whose name starts with PREFIX
    out/                      what the program makes
    tree/, home/, tmp/        a copy of its source tree and its private corners, where the template asks for them
    checkpoint                link to <data>/checkpoints/<work>, kept across attempts on this node
    progress.jsonl            totals so far, one object a line
    result.json               the program's word on how it ended
    stdout.log, stderr.log, order.json, lease, pids.json, exit.json, shim.log
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import msgspec

from executors import keepers, templates
from executors.outcome import MAX_RESULT_BYTES, Progress
from statemachine.errors import UNDECODABLE
from statemachine.queries import Assignment
from statemachine.settings import Template

#: progress lines older than this many bytes are skipped: totals are cumulative, only the last line counts
PROGRESS_WINDOW_BYTES = 64 * 1024

_decode_progress = msgspec.json.Decoder(Progress).decode


class BadInputName(Exception):  # noqa: N818
    """An input's name cannot be a path below inputs/."""


@dataclass(frozen=True, slots=True)
class Seat:
    """How an attempt's program sees its folder, and what its environment begins with."""

    folder: Path
    python: str
    environ: Mapping[str, str]


def checked(name: str) -> str:
    """An input's name, when it is a path below `inputs/`. Raises BadInputName."""
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise BadInputName(f"the input name {name!r} is no path below inputs/; rename it")
    return name


def file_name(key: str) -> str:
    """An id as one path component; `/` becomes `%2F`."""
    return quote(key, safe=":@+")


class Folder:
    """Lays out and reads one attempt's folder. All calls touch the disk; none hashes."""

    def __init__(self, data_dir: Path, job: str, fence: int, work: str = "", restarts: int = 0) -> None:
        """`work` names the checkpoint, which the attempts of one item share, whatever restarts they have."""
        self.path = data_dir / "jobs" / f"{file_name(job)}-{fence}{f'.{restarts}' if restarts else ''}"
        self._checkpoints = data_dir / "checkpoints"
        self._work = work
        self._read_to = 0

    @property
    def work(self) -> str:
        return self._work

    @property
    def out(self) -> Path:
        return self.path / "out"

    def prepare(
        self, assignment: Assignment, names: Collection[str], template: Template, seat: Seat
    ) -> templates.Paths:
        """Make the folder anew and write what tells the program about its item; `names` are those of its inputs.

        Raises OSError, and BadInputName when a name would lead out of `inputs/`.
        """
        job, work = assignment.job, assignment.work
        inputs = {name: seat.folder / "inputs" / checked(name) for name in names}
        if self.path.exists():
            keepers.remove(self.path)  # an earlier process of this node died while it prepared
        self.path.mkdir(parents=True)
        lists: dict[str, Path] = {}
        for prefix in templates.list_prefixes(template):
            paths = sorted(str(p) for n, p in inputs.items() if n.startswith(prefix))
            name = templates.list_file(prefix)
            (self.path / name).write_text("".join(f"{p}\n" for p in paths))
            lists[prefix] = seat.folder / name
        spec = {
            "job": job.job,
            "fence": job.fence,
            "work": work.spec if work else None,
            "params": dict(work.spec.params) if work else {},
            "inputs": {i.name: {"digest": i.digest, "path": str(inputs[i.name])} for i in assignment.inputs},
            "seed": templates.seed_of(job.work),
            "gpus": list(job.gpus),
            "cpu_slots": job.needs.cpu_slots,
        }
        (self.path / "spec.json").write_bytes(msgspec.json.format(msgspec.json.encode(spec), indent=1))
        return templates.Paths(seat.folder, seat.folder / "out", seat.folder / "checkpoint", seat.python, inputs, lists)

    def furnish(self, files: Mapping[str, Path], template: Template) -> None:
        """Make the directories that the program finds, and link the inputs (name to verified file) into them.

        Raises NoTree and OSError.
        """
        private = templates.private_dirs(self.path).values() if template.private else ()
        checkpoint = self._checkpoints / file_name(self._work)
        keepers.lay_out(self.path, tuple(private), template.tree, checkpoint)
        for name, source in files.items():
            target = self.path / "inputs" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            keepers.lend(source, target)

    def progress(self) -> Progress | None:
        """The newest line of progress.jsonl since the last call; None when there is no new one."""
        try:
            with (self.path / "progress.jsonl").open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < self._read_to:
                    self._read_to = 0  # the program began its file anew
                if size == self._read_to:
                    return None
                start = max(self._read_to, size - PROGRESS_WINDOW_BYTES)
                file.seek(start)
                data = file.read(PROGRESS_WINDOW_BYTES)
        except OSError:
            return None
        end = data.rfind(b"\n") + 1
        if not end:
            return None
        self._read_to = start + end
        for line in reversed(data[:end].splitlines()):
            with contextlib.suppress(*UNDECODABLE):
                return _decode_progress(line)
        return None

    def result(self) -> bytes | None:
        """result.json, at most one byte longer than what is accepted; None when there is none."""
        try:
            with (self.path / "result.json").open("rb") as file:
                return file.read(MAX_RESULT_BYTES + 1)
        except OSError:
            return None

    def output(self, path: str) -> Path | None:
        """A regular file below out/, links not followed out of it; None when it is not there."""
        found = self.out / path
        if found.is_symlink() or not found.is_file() or not found.resolve().is_relative_to(self.out.resolve()):
            return None
        return found

    def clear(self, *, checkpoint: str = "") -> None:
        """Drop inputs, outputs and private corners, keep the logs; with a work id drop its checkpoint as well."""
        keepers.remove(self.out)
        for name in ("inputs", "tree", "home", "tmp"):
            keepers.remove(self.path / name)
        if checkpoint:
            keepers.remove(self._checkpoints / file_name(checkpoint))


def sweep_checkpoints(data_dir: Path, works: Collection[str], max_age_s: float) -> list[Path]:
    """Delete checkpoints nobody has written to for a long time; `works` are the items that run here."""
    kept = {file_name(work) for work in works}
    checkpoints, now, gone = data_dir / "checkpoints", time.time(), []
    for entry in checkpoints.iterdir() if checkpoints.is_dir() else ():
        if entry.name in kept:
            continue  # its program may be deleting in it this moment
        newest = max((path.lstat().st_mtime for path in (entry, *entry.rglob("*"))), default=now)
        if now - newest > max_age_s:
            keepers.remove(entry)
            gone.append(entry)
    return gone
