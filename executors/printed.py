"""Progress of a program that does not report any: from what it prints, and from lines in the files it makes.

Each look reads what was added since the last one. Counts are cumulative; one that goes down (a program that
counts each phase anew) is told as it is and the cluster keeps the larger. What a program prints is its own affair: a
number that no count can be (a time stamp, a hash) is passed over, since one beat carries the progress of all jobs.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from pathlib import Path

from executors import collect, patterns
from executors.outcome import Progress
from statemachine.settings import Template
from statemachine.values import MOST

#: of what was added to a log since the last look, the newest part is read
WINDOW_BYTES = 256 * 1024
#: of what was added to a counted file, the oldest part; the rest has its turn at the next look
STRIDE_BYTES = 32 * 1024 * 1024
#: seconds that one look takes for lines that do not fit
LOOK_S = 0.25
AIM = "_total"


class Printed:
    """One attempt's files as they grow."""

    def __init__(self, folder: Path, template: Template) -> None:
        self._folder = folder
        self._pattern = re.compile(template.progress) if template.progress else None
        # Of a file that several rules fit the first one has it, so those before count as well; those behind do not.
        last = max((n for n, rule in enumerate(template.outputs) if rule.count == "lines"), default=-1)
        self._rules = template.outputs[: last + 1]
        self._read_to: dict[Path, int] = {}
        self._lines: dict[Path, int] = {}
        self._told: Progress | None = None

    @staticmethod
    def reads(template: Template) -> bool:
        """Whether there is anything to read progress from."""
        return bool(template.progress) or any(rule.count == "lines" for rule in template.outputs)

    def look(self) -> Progress | None:
        """New totals, or None when nothing changed; blocks on the disk."""
        counts: dict[str, int] = dict(self._told.counts) if self._told else {}
        total: dict[str, int] = dict(self._told.total) if self._told else {}
        made: Counter[str] = Counter()
        for rule, files in collect.files_of(self._folder, self._rules):
            if rule.count == "lines":
                made[rule.unit] += sum(self._grown(path) for path in files)
        counts |= +made
        if self._pattern is not None:
            for name, value in self._newest(self._pattern).items():
                aim = name.endswith(AIM)
                (total if aim else counts)[name.removesuffix(AIM) if aim else name] = value
        now = Progress(counts, total)
        if not (counts or total) or now == self._told:
            return None
        self._told = now
        return now

    def _newest(self, pattern: re.Pattern[str]) -> dict[str, int]:
        for name in ("stdout.log", "stderr.log"):
            lines = self._added(self._folder / name).decode("utf-8", "replace").splitlines()
            if match := patterns.newest(pattern, lines, LOOK_S):
                # A group may hold 1,234 or nothing.
                texts = {k: (v or "").replace(",", "") for k, v in match.groupdict().items()}
                return {k: n for k, v in texts.items() if v.isdecimal() and (n := int(v)) <= MOST}
        return {}

    def _added(self, path: Path) -> bytes:
        """The newest complete lines added to a log since the last look, each drawing of a bar among them."""
        data, start = self._tail(path, newest=True)
        end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        self._read_to[path] = start + end
        return data[:end]

    def _grown(self, path: Path) -> int:
        """Complete lines of a file that only grows."""
        before = self._read_to.get(path, 0)
        data, start = self._tail(path, newest=False)
        if start < before:
            self._lines[path] = 0  # it was begun anew
        self._lines[path] = self._lines.get(path, 0) + data.count(b"\n")
        self._read_to[path] = start + len(data)
        return self._lines[path]

    def _tail(self, path: Path, newest: bool) -> tuple[bytes, int]:
        """What was added since the last look, or the newest or oldest part of it, and where that begins."""
        at = self._read_to.get(path, 0)
        with contextlib.suppress(OSError), path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            at = 0 if size < at else at
            if newest:
                at = max(at, size - WINDOW_BYTES)
            file.seek(at)
            return file.read(min(size - at, STRIDE_BYTES)), at
        return b"", at
