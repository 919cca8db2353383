"""Log lines: one line an event, and what is logged can be read back from it."""

from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ringrift_cluster.observability import Lines

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("ringrift_cluster", "executors", "statemachine")
METHODS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
#: the fields that each line has beside those of its call
GIVEN = ["time", "level", "node", "logger"]

FIELD = re.compile(r'([a-z_]+)=("(?:[^"\\]|\\.)*"|[^\s"=]+)(?: |\Z)')
#: one field of a call's form: a conversion, a plain word, or words between quotes
FORM = re.compile(r'([a-z_]+)=(?:%s|%d|%g|%\.\df|[\w.-]+|"[\w .,:;`\'-]+")(?: |\Z)')


def read(line: str) -> dict[str, str]:
    """The fields of a line; fails when anything of it is no field, or when a key is there twice."""
    found: dict[str, str] = {}
    at = 0
    while at < len(line):
        match = FIELD.match(line, at)
        assert match is not None, f"no field at {line[at:]!r}"
        key, value = match.groups()
        assert key not in found, f"{key} is there twice: {line!r}"
        found[key] = json.loads(value) if value.startswith('"') else value
        at = match.end()
    return found


def line_of(form: object, *values: object, failure: BaseException | None = None, node: str = "v1") -> str:
    exc_info = (type(failure), failure, failure.__traceback__) if failure is not None else None
    record = logging.getLogger("ringrift.node").makeRecord(
        "ringrift.node", logging.WARNING, __file__, 1, form, values, exc_info
    )
    return Lines(node).format(record)


@given(st.text(), st.text(), st.integers(), st.text())
@example('a "quoted" \\ word', "two\nlines\r\n", 0, "")
@example("key=value", "\x1b[31m\x7f\x85\u2028\ud800\x00", -1, "é ü 🙂")
def test_what_is_logged_is_read_back(reason: str, path: str, index: int, node: str) -> None:
    line = line_of("event=link_closed reason=%s index=%d path=%s", reason, index, path, node=node)
    assert len(line.splitlines()) == 1
    assert line.isascii()
    assert line.isprintable()
    found = read(line)
    assert list(found) == [*GIVEN, "event", "reason", "index", "path"]
    assert [found[key] for key in list(found)[1:]] == [
        "warning", node, "ringrift.node", "link_closed", reason, str(index), path,
    ]  # fmt: skip


def test_a_value_without_spaces_has_no_quotes() -> None:
    line = line_of("event=join_waits voter=%s retry_s=%.1f ready=%s file=%s", "http://v1:80/x", 1.25, True, Path("/a"))
    assert line.endswith(" event=join_waits voter=http://v1:80/x retry_s=1.2 ready=True file=/a")


def test_an_error_that_says_nothing_is_told_by_its_class() -> None:
    assert read(line_of("event=join_waits error=%s", TimeoutError()))["error"] == "TimeoutError"
    assert read(line_of("event=join_waits error=%s", OSError(5, "no disk")))["error"] == "[Errno 5] no disk"


def test_a_traceback_is_one_field_of_the_line() -> None:
    try:
        raise ValueError('the "last"\nword')
    except ValueError as error:
        line = line_of("event=task_failed task=%s", "elo", failure=error)
    found = read(line)
    assert len(line.splitlines()) == 1
    assert found["event"] == "task_failed"
    assert found["trace"].startswith("Traceback (most recent call last):\n")
    assert found["trace"].endswith('ValueError: the "last"\nword')


@pytest.mark.parametrize("form", ["it took %s s", "event", ValueError("it took 3 s")])
def test_a_library_s_sentence_is_an_event_too(form: object) -> None:
    values = ("3",) if form == "it took %s s" else ()
    found = read(line_of(form, *values))
    assert list(found) == [*GIVEN, "event", "text"]
    assert found["event"] == "said"
    assert found["text"] == (str(form) % values)


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Each log call of the product, with its place."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr in METHODS
                    and ast.unparse(node.func.value) in ("log", "logging")
                ):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def complaint(call: ast.Call) -> str | None:
    """What is not right about a log call's form and the number of its values."""
    assert isinstance(call.func, ast.Attribute)
    form, *values = call.args[1:] if call.func.attr == "log" else call.args
    if not (isinstance(form, ast.Constant) and isinstance(form.value, str)):
        return "its form is not written out"
    if not form.value.startswith("event="):
        return "it does not begin with event="
    keys, at = [], 0
    while at < len(form.value):
        match = FORM.match(form.value, at)
        if match is None:
            return f"no key=%s at {form.value[at:]!r}"
        keys.append(match[1])
        at = match.end()
    if len(set(keys)) < len(keys) or set(keys) & {*GIVEN, "trace"}:
        return "a key would be there twice"
    starred = any(isinstance(value, ast.Starred) for value in values)
    if not starred and form.value.count("%") != len(values):
        return "it has not one value a conversion"
    return None


def test_each_log_call_is_an_event_with_its_fields() -> None:
    found = list(calls())
    assert len(found) > 100
    assert [f"{place}: {wrong}" for place, call in found if (wrong := complaint(call)) is not None] == []


@pytest.mark.parametrize(
    "call",
    [
        'log.info("voter open")',
        'log.info(f"event=open node={n}")',
        'log.info("event=open %s", a)',
        'log.info("event=open reason=%r", a)',
        "log.info('event=open reason=\"%s\"', a)",
        'log.info("event=open reason=no voter")',
        'log.info("event=open node=%s", a)',
        'log.info("event=open a=%s a=%s", a, a)',
        'log.info("event=open a=%s")',
        'log.log(level, "open a=%s", a)',
    ],
)
def test_a_call_of_another_form_is_found(call: str) -> None:
    (statement,) = ast.parse(call).body
    assert isinstance(statement, ast.Expr)
    assert isinstance(statement.value, ast.Call)
    assert complaint(statement.value) is not None
