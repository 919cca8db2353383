"""Patterns of templates: whether one may be used, and the newest line that fits it.

A search holds the lock of the whole interpreter until it ends. One that goes back and forth over a line of digits for
minutes would silence the node with all its jobs. So a pattern is tried on such lines before it is taken, in a process
of its own, and of each line that a program prints the beginning is looked at.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from statemachine.settings import Template

#: of a line, in characters
LOOKED_AT = 1024
#: CPU seconds that a search of one line may take, and those of all lines that are tried, whatever else the machine does
LINE_S = 0.5
TRIAL_S = 2
#: the longest wait for them on a busy machine
WAIT_S = 30.0
#: what long lines are made of; the words of the pattern itself come on top
UNITS = ("1", "a", " ", ".", "1 ", "a ", "1.", "a1", "=1 ", "1, ")
MAX_WORDS = 8
_WORD = re.compile(r"[A-Za-z_]{2,32}")
_SLOW = 9
_TRIAL = f"""
import json, re, resource, sys, time
asked = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_CPU, (asked["trial_s"], asked["trial_s"]))
pattern = re.compile(asked["pattern"])
for line in asked["lines"]:
    began = time.process_time()
    pattern.search(line)
    if time.process_time() - began > asked["line_s"]:
        sys.exit({_SLOW})
"""


def slow(template: Template) -> list[str]:
    """What is wrong with patterns that compile; blocks for up to some seconds on processes that try them."""
    named = (("progress", template.progress), ("summary", template.summary), ("transient", template.transient))
    return [
        f"{place} {text!r} goes back and forth over a long line for too long; say what stands between its parts, "
        "such as [^0-9]*, in place of .* or of a repeat within a repeat"
        for place, text in named
        if text and _is_slow(text)
    ]


def _is_slow(pattern: str) -> bool:
    words = list(dict.fromkeys(_WORD.findall(pattern)))[:MAX_WORDS]
    units = (*UNITS, *words, *(f"{word}=1 " for word in words))
    lines = [unit * (LOOKED_AT // len(unit) + 1) for unit in units]
    asked = {"pattern": pattern, "lines": [line[:LOOKED_AT] for line in lines], "line_s": LINE_S, "trial_s": TRIAL_S}
    try:
        tried = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRIAL],
            input=json.dumps(asked).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=WAIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return True
    return tried.returncode in (_SLOW, -signal.SIGXCPU, -signal.SIGKILL)


def newest(pattern: re.Pattern[str], lines: Sequence[str], within_s: float) -> re.Match[str] | None:
    """The last line that fits, looked for from the end for so long and no longer."""
    until_s = time.monotonic() + within_s
    for line in reversed(lines):
        if found := search(pattern, line):
            return found
        if time.monotonic() > until_s:
            break
    return None


def search(pattern: re.Pattern[str], line: str) -> re.Match[str] | None:
    """A match in the beginning of a line."""
    return pattern.search(line[:LOOKED_AT])


def fits(pattern: str, text: str) -> bool:
    """Whether a line of a text fits."""
    compiled = re.compile(pattern)
    return any(search(compiled, line) for line in text.splitlines())
