"""A result for a program that writes none: from the files it left, what it printed, or a command that knows.

    outputs   files that fit a rule's pattern, counted by looking into them
    summary   numbers in the last line that fits a pattern
    result    a command that prints the result as one JSON object, run when the program ended well

What comes out is what the program would have written to result.json, and is judged like it. Zero is never a
result: something must have been left, and every rule that counts must have counted something. Nothing counts twice: a
file belongs to the first rule that fits it, and what was counted in files holds over what was said about them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import msgspec

from executors import counting, keepers, logs, outcome, patterns, processes
from executors.counting import Uncountable
from executors.folder import Folder
from executors.outcome import MAX_RESULT_BYTES, Failure, ResultFile, ResultOutput, Success
from executors.processes import Exit
from statemachine.errors import UNDECODABLE
from statemachine.rows import Work
from statemachine.settings import OutputRule, Template
from statemachine.values import MOST

RESULT_S = 60.0
#: how long a summary is looked for among lines that do not fit
SUMMARY_S = 10.0
LAST_LINES = 20
MAX_OUTPUTS = 1024
#: files of one rule that are looked at: enough to know that they are too many
MAX_LISTED = 4 * MAX_OUTPUTS
#: of an output's path (a bound of `values.Short`)
MAX_NAME_CHARS = 256
#: places other than out/ in which a rule may look
CORNERS = ("tree", "home")
#: SQLite's own files beside a database
_BESIDE = ("-wal", "-shm", "-journal")
_WHOLE = re.compile(r"[0-9][0-9,_]*")


class NothingLeft(Exception):  # noqa: N818
    """What is missed, in a sentence."""


def collects(template: Template) -> bool:
    """Whether a result is put together for a program that writes none."""
    return bool(template.outputs or template.summary or template.result)


def end_the_rest(folder: Path, boot_id: str) -> None:
    """End what an attempt's keeper could not; blocks."""
    ended = processes.exit_record(folder)
    if ended is None or ended.error:
        processes.end_leftovers(folder, boot_id)


def verdict(
    folder: Folder, work: Work, template: Template, stop_cause: str, asking: Callable[[], bytes]
) -> Success | Failure:
    """Judge an ended attempt by its folder; blocks on the disk. `asking` runs its template's result command."""
    ended = processes.exit_record(folder.path)
    result, absent = folder.result(), outcome.NO_RESULT
    if result is None and ended is not None and collects(template):
        try:
            result = result_of(folder.path, template, ended, stop_cause, asking)
        except NothingLeft as error:
            absent = str(error)
    words = logs.last_words(folder.path, LAST_LINES)
    printed = logs.words_of(folder.path, "stdout", LAST_LINES)
    return outcome.judge(ended, result, work, template, stop_cause, words, absent, printed)


def result_of(
    folder: Path, template: Template, ended: Exit, stop_cause: str, asking: Callable[[], bytes]
) -> bytes | None:
    """The bytes of a result.json, or None when nothing it left could count. Blocks on files and the command.

    Raises NothingLeft.
    """
    if not outcome.may_have_result(ended, template, stop_cause):
        return None
    told = outcome.was_told(ended, stop_cause)
    whole = outcome.ended_well(ended, template) and not told
    try:
        result = _told(template.result[0], asking()) if whole and template.result else ResultFile()
        result = _summary(folder, template.summary, result)
        result = _files(folder, template.outputs, result, whole)
    except OSError as error:
        raise NothingLeft(f"what it left could not be read: {error}") from error
    if not result.outputs and not any(result.counts.values()):
        raise NothingLeft(_nothing(template))
    return msgspec.json.encode(msgspec.structs.replace(result, stopped=told))


def _nothing(template: Template) -> str:
    looked = [f"files {rule.glob!r}" for rule in template.outputs]
    if template.summary:
        looked.append(f"a line that fits {template.summary!r}")
    if template.result:
        looked.append("what its result command prints")
    return f"it ended and left nothing that counts; its template looks for {', '.join(looked)}"


# --- files --------------------------------------------------------------------------------------------------


def _files(folder: Path, rules: tuple[OutputRule, ...], result: ResultFile, whole: bool) -> ResultFile:
    counts: Counter[str] = Counter()
    outputs = list(result.outputs)
    for rule, files in files_of(folder, rules if whole else tuple(rule for rule in rules if rule.partial)):
        found = _by_rule(folder, rule, files, whole)
        total = sum(output.counts.get(rule.unit, 0) for output in found)
        if whole and not rule.optional and not found:
            raise NothingLeft(f"it left no file {rule.glob!r}, which its template says it makes")
        if whole and not rule.optional and rule.unit and not total:
            raise NothingLeft(f"it left {len(found)} files {rule.glob!r} with no {rule.unit} in them")
        if total:
            counts[rule.unit] += total
        # A file without anything in it is of no use to anybody.
        outputs += [output for output in found if not rule.unit or output.counts]
    if len(outputs) > MAX_OUTPUTS:
        most = f"at most {MAX_OUTPUTS} are taken; have it write larger ones, or pack them at its end"
        raise NothingLeft(f"it left {len(outputs)} files or more that fit its template, {most}")
    return msgspec.structs.replace(result, counts=result.counts | counts, outputs=tuple(outputs))


def _by_rule(folder: Path, rule: OutputRule, files: list[Path], whole: bool) -> list[ResultOutput]:
    made = []
    for path in files:
        if wrong := _unfit_name(str(_below_out(folder, path))):
            if whole:
                raise NothingLeft(f"its file {path.name!a} cannot be published: {wrong}; choose another name")
            continue
        counts = {}
        if rule.count:
            if rule.count == "lines" and not whole:
                counting.cut_torn_line(path)
            try:
                counted = counting.count(path, rule.count)
            except Uncountable as error:
                if whole:
                    raise NothingLeft(f"its file {path.name} cannot be counted: {error}") from error
                continue  # torn when it was stopped; others may be whole
            counts = {rule.unit: counted} if counted else {}
        elif path.stat().st_size == 0:
            continue
        made.append(ResultOutput(_settle(folder, path), rule.kind, counts))
    return made


def files_of(folder: Path, rules: tuple[OutputRule, ...]) -> list[tuple[OutputRule, list[Path]]]:
    """Each rule with its files; a file that several fit is the first one's."""
    taken: set[Path] = set()
    found = []
    for rule in rules:
        files = [path for path in _matches(folder, rule) if path not in taken]
        taken.update(files)
        found.append((rule, files))
    return found


def _matches(folder: Path, rule: OutputRule) -> list[Path]:
    """Regular files that fit a rule, none of them reached through a link out of the attempt's folder."""
    root = folder if rule.glob.split("/")[0] in CORNERS else folder / "out"
    inside = folder.resolve()
    return [
        path
        for path in sorted(islice(root.glob(rule.glob), MAX_LISTED))
        if path.is_file()
        and not path.is_symlink()
        and not path.name.endswith(_BESIDE)
        and path.resolve().is_relative_to(inside)
    ]


def _below_out(folder: Path, path: Path) -> Path:
    """Where below out/ a file is published from."""
    out = folder / "out"
    return path.relative_to(out if path.is_relative_to(out) else folder)


def _unfit_name(name: str) -> str:
    """Why a path cannot be an output's in the log; empty when it can."""
    if len(name) > MAX_NAME_CHARS:
        return f"its path has {len(name)} characters, {MAX_NAME_CHARS} are taken"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its path is no UTF-8 text"
    return ""


def _settle(folder: Path, path: Path) -> str:
    """The file's path below out/; one that was made elsewhere is moved there."""
    below = _below_out(folder, path)
    target = folder / "out" / below
    if path != target:
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    return str(below)


# --- words --------------------------------------------------------------------------------------------------


def _summary(folder: Path, pattern: str, result: ResultFile) -> ResultFile:
    if not pattern:
        return result
    groups = _last_match(folder, re.compile(pattern))
    whole = {name: int(re.sub("[,_]", "", text)) for name, text in groups.items() if _WHOLE.fullmatch(text)}
    counts = {name: number for name, number in whole.items() if number <= MOST}
    metrics: dict[str, str | int | float | bool | None] = {n: t for n, t in groups.items() if n not in counts}
    return msgspec.structs.replace(result, counts=counts | result.counts, metrics=metrics | result.metrics)


def _last_match(folder: Path, pattern: re.Pattern[str]) -> dict[str, str]:
    for stream in ("stdout", "stderr"):
        text = logs.tail_of(folder, stream, 100_000)
        if found := patterns.newest(pattern, text.splitlines(), SUMMARY_S):
            return {name: value for name, value in found.groupdict().items() if value is not None}
    return {}


def ask(folder: Path, argv: tuple[str, ...]) -> bytes:
    """What the template's result command prints; blocks. Raises NothingLeft."""
    try:
        return keepers.ask(folder, argv, RESULT_S, MAX_RESULT_BYTES)
    except keepers.Unanswered as error:
        raise NothingLeft(str(error)) from error


def _told(program: str, said: bytes) -> ResultFile:
    for text in (said, said.rstrip().rpartition(b"\n")[2]):
        try:
            return outcome.decode_result(text)
        except UNDECODABLE as error:
            problem = str(error)
    raise NothingLeft(f"its result command {program} printed no result: {problem}")
