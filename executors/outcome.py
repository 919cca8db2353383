"""What an attempt came to: exit, result.json and declared requirements become one report. Pure.

exit 0 (or a verdict's code) and a valid result     Success
told to stop, and a valid result                    Success(stopped=True)
anything else                                       Failure(error_class, text)

class            when
user             the program refused its arguments, crashed by its own doing, or does not exist
infrastructure   it was killed or could not start, and nothing says that the item is to blame
oom              memory ran out, on the host or on a GPU
cuda             the GPU or its libraries failed
preempted        somebody else than the agent told it to terminate
timeout          it ran longer than it may
no_output        it says it succeeded, and shows nothing for it
lost             it had started, and no process of it is on this node any more
stopped          it was told to stop and has no part worth keeping
"""

from __future__ import annotations

import errno
import re
import signal
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from executors import patterns
from executors.processes import Exit
from statemachine.commands import FailJob
from statemachine.errors import UNDECODABLE
from statemachine.rows import Job, Work
from statemachine.settings import Template
from statemachine.values import Count, Counts, Id, MatchResult, Short, Tally

MAX_RESULT_BYTES = 4 * 1024 * 1024
MAX_ERROR_CHARS = 4000
#: a workload that ended because of SIGTERM, in the shells' way of counting
TERMINATED = 128 + signal.SIGTERM
NO_RESULT = "it exited with 0 and left no result.json; a workload writes one before it ends"

_OOM = re.compile(
    r"CUDA out of memory|OutOfMemoryError|\bMemoryError\b|can't allocate memory|Cannot allocate memory|bad_alloc"
)
_CUDA = re.compile(r"CUDA error|CUDA driver|cuDNN error|CUBLAS_STATUS|NCCL error|no CUDA-capable device|GPU is lost")
#: signals that a program's own doing raises; any other comes from outside
_CRASHES = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGBUS, signal.SIGSYS, signal.SIGTRAP}
)
#: how a spawn fails when the template names what is not there or is no program: it will fail like this for ever
_NO_PROGRAM = re.compile(rf"\[Errno ({errno.ENOENT}|{errno.EACCES}|{errno.ENOEXEC}|{errno.ENOTDIR})\]")
_INFRASTRUCTURE = re.compile(r"No space left on device|Input/output error|Stale file handle|Disk quota exceeded")


class ResultOutput(Struct, frozen=True, forbid_unknown_fields=True):
    """A file below out/ that the attempt wants to publish."""

    path: Annotated[str, Meta(min_length=1, max_length=256)]
    kind: Id
    counts: Counts = {}


class ResultFile(Struct, frozen=True):
    """result.json. Fields that are not known here are left to the program's own readers."""

    counts: Counts = {}
    metrics: Annotated[dict[Short, str | int | float | bool | None], Meta(max_length=128)] = {}
    outputs: Annotated[tuple[ResultOutput, ...], Meta(max_length=1024)] = ()
    stopped: bool = False
    tally: Annotated[tuple[Tally, ...], Meta(max_length=16)] = ()
    histogram: Annotated[tuple[Count, ...], Meta(max_length=65)] = ()


#: made here, since a type that threads use for the first time at once takes the process down (see `know_types`)
decode_result = msgspec.json.Decoder(ResultFile).decode


class Progress(Struct, frozen=True):
    """One line of progress.jsonl: totals since the attempt began, and what it aims at."""

    counts: Counts = {}
    total: Counts = {}


@dataclass(frozen=True, slots=True)
class Success:
    """A result that may be published once its outputs are in the store."""

    counts: dict[str, int]
    metrics: dict[str, str]
    outputs: tuple[ResultOutput, ...]
    match: MatchResult | None
    stopped: bool
    exit_code: int


@dataclass(frozen=True, slots=True)
class Failure:
    error_class: str
    error: str
    exit_code: int = 0

    def command(self, job: Job, at_ms: int) -> FailJob:
        error = self.error[:MAX_ERROR_CHARS] or "it failed without a word"
        return FailJob(job.job, job.fence, self.error_class, error, self.exit_code, at_ms)


def judge(
    ended: Exit | None,
    result: bytes | None,
    work: Work,
    template: Template,
    stop_cause: str = "",
    stderr: str = "",
    absent: str = NO_RESULT,
    stdout: str = "",
) -> Success | Failure:
    """Decide what an ended attempt reports.

    `ended` is None when its keeper left no record; `stop_cause` is why the agent ended it: empty, `asked`
    or `timeout`; `stderr` holds its last lines, `stdout` those that count when `stderr` blames the program alone;
    `absent` says what is missed when there is no result.
    """
    code = code_of(ended) if ended else 0
    if stop_cause == "timeout":
        return Failure("timeout", _with_lines("it ran longer than its limit and was stopped", stderr), code)
    if ended is None:
        if stop_cause:
            return Failure("stopped", "it was told to stop; its keeper was ended by somebody else")
        return Failure("infrastructure", "its keeper process was ended by somebody else; its processes were ended")
    well = ended_well(ended, template)
    badly = _failed(ended, template, stderr)
    if badly.error_class == "user" and stdout:
        # Some print what is wrong with the machine there, and warnings of their libraries on stderr.
        badly = min(badly, _failed(ended, template, stdout), key=lambda failure: failure.error_class == "user")
    asked = was_told(ended, stop_cause)
    if well or (result is not None and (asked or code == TERMINATED)):
        checked = _checked(result, work, template, code, absent)
        if isinstance(checked, Success):
            # Ended before its end, it left a part.
            return checked if well else replace(checked, stopped=True)
        if not asked:
            return checked if well else badly
    if asked:
        if ended.cause == "lease" and not stop_cause:
            return Failure("infrastructure", "its lease was over before the cluster could be reached again", code)
        return Failure("stopped", _with_lines(f"it was told to stop; {_how(ended)}", stderr), code)
    return badly


def inside(path: str) -> bool:
    """Whether an output's path stays below out/."""
    pure = PurePosixPath(path)
    return not pure.is_absolute() and ".." not in pure.parts and str(pure) not in ("", ".")


def code_of(ended: Exit) -> int:
    """How it ended as one number, in the shells' way."""
    return ended.code or (128 + ended.signal if ended.signal else 0)


def ended_well(ended: Exit, template: Template) -> bool:
    """Whether the program said by its end that it did what it was asked to."""
    return ended.signal == 0 and (ended.code == 0 or template.exit_codes.get(ended.code) == "verdict")


def was_told(ended: Exit, stop_cause: str) -> bool:
    """Whether we ended it."""
    return bool(stop_cause) or ended.cause in ("stop", "kill", "lease")


def may_have_result(ended: Exit, template: Template, stop_cause: str) -> bool:
    """Whether what it left can count at all."""
    return ended_well(ended, template) or was_told(ended, stop_cause) or code_of(ended) == TERMINATED


def _checked(result: bytes | None, work: Work, template: Template, exit_code: int, absent: str) -> Success | Failure:
    def nothing(text: str) -> Failure:
        return Failure("no_output", text, exit_code)

    if result is None:
        return nothing(absent)
    if len(result) > MAX_RESULT_BYTES:
        return nothing(f"its result.json has {len(result)} bytes, {MAX_RESULT_BYTES} are read")
    try:
        value = decode_result(result)
    except UNDECODABLE as error:
        return nothing(f"its result.json cannot be used: {error}")
    for output in value.outputs:
        if not inside(output.path):
            return nothing(f"its result.json names the output {output.path!r}, which is not below out/")
    kinds = {output.kind for output in value.outputs}
    missing = [kind for kind in template.require_outputs if kind not in kinds]
    if missing:
        return nothing(f"it made no output of kind {', '.join(missing)}, which its template requires")
    empty = [name for name in template.require_counts if not value.counts.get(name)]
    if empty:
        return nothing(f"it counted no {', '.join(empty)}, which its template requires")
    if value.counts.get("games") == 0:
        return nothing("it counted no games, and zero games are never a result")
    played = any(t.games for t in value.tally)
    if not (value.outputs or value.metrics or played or any(value.counts.values())):
        return nothing("its result.json shows nothing: no output, no count above zero and no metric")
    match = None
    if played:
        a, b = work.spec.params.get("participant_a", ""), work.spec.params.get("participant_b", "")
        if not a or not b:
            return Failure("user", "it measured a match, and the item's parameters do not name participant_a and _b")
        match = MatchResult(a, b, tuple(t for t in value.tally if t.games), value.histogram)
    metrics = {name: _text(v) for name, v in value.metrics.items()}
    return Success(value.counts, metrics, value.outputs, match, value.stopped, exit_code)


def _text(value: str | int | float | bool | None) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return ""
    return value[:4096] if isinstance(value, str) else repr(value)


def _failed(ended: Exit, template: Template, said: str) -> Failure:
    return Failure(_class_of(ended, template, said), _with_lines(_how(ended), said), code_of(ended))


def _class_of(ended: Exit, template: Template, said: str) -> str:
    if ended.cause == "spawn":
        return "user" if _NO_PROGRAM.search(ended.error) else "infrastructure"
    if ended.signal == 0 and (meaning := template.exit_codes.get(ended.code, "verdict")) != "verdict":
        return meaning
    if template.transient and patterns.fits(template.transient, said):
        return "infrastructure"
    if ended.oom or _OOM.search(said):
        return "oom"
    if _CUDA.search(said):
        return "cuda"
    if code_of(ended) == TERMINATED:
        return "preempted"
    if _INFRASTRUCTURE.search(said) or (ended.signal and ended.signal not in _CRASHES):
        return "infrastructure"
    return "user"


def _how(ended: Exit) -> str:
    if ended.cause == "spawn":
        return ended.error
    if ended.oom:
        return "the kernel killed it because memory ran out"
    if ended.signal:
        return f"it was ended by signal {ended.signal} ({_signal_name(ended.signal)})"
    return f"it exited with code {ended.code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _with_lines(text: str, stderr: str) -> str:
    last = "\n".join(stderr.strip().splitlines()[-20:])
    return f"{text}: {last}"[:MAX_ERROR_CHARS] if last else text
