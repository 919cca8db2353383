from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from executors import patterns
from executors.patterns import LOOKED_AT, fits, newest, slow
from statemachine import settings as st
from statemachine.settings import Template

SHIPPED = Path(__file__).parents[2] / "deploy" / "templates"


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?P<games>\d+).*(?P<total>\d+) games",
        r"(?P<games>(?:[0-9]+,?)+) games",
        r"(?P<name>(?:\w+\s*)+): done",
        r"games.*games.*games.*(?P<n>\d+)x",
    ],
)
def test_a_pattern_that_could_silence_a_node_is_refused(pattern: str) -> None:
    (wrong,) = slow(Template(argv=("p",), progress=pattern))
    assert wrong.startswith("progress ")
    assert "[^0-9]*" in wrong


def test_usual_patterns_are_taken() -> None:
    for path in sorted(SHIPPED.glob("*.json")):
        template = msgspec_template(path)
        assert slow(template) == [], path.name
    usual = Template(
        argv=("p",),
        progress=r"(?P<games>\d+) of (?P<games_total>\d+) games",
        summary=r"^DONE: games=(?P<games>\d+)[^0-9]*loss=(?P<loss>\S+)",
        transient="(?i)busy|try again",
    )
    assert slow(usual) == []


def msgspec_template(path: Path) -> Template:
    decoded = st.decode(f"template/{path.stem}", json.dumps(json.loads(path.read_text())))
    assert isinstance(decoded, Template)
    return decoded


def test_the_newest_line_is_found_in_its_first_characters_only() -> None:
    pattern = re.compile(r"n=(?P<n>\d)")
    found = newest(pattern, ["n=1", "n=2 and more", "nothing", " " * LOOKED_AT + "n=3"], 10)
    assert found is not None
    assert found["n"] == "2"


def test_lines_that_do_not_fit_are_looked_at_for_a_while_and_no_longer() -> None:
    assert newest(re.compile("a"), ["a", "b", "b"], -1.0) is None
    assert newest(re.compile("a"), ["a", "b", "b"], 10.0) is not None


def test_a_text_fits_by_one_of_its_lines() -> None:
    assert fits("^busy$", "hello\nbusy\n")
    assert not fits("hello.busy", "hello\nbusy\n")


def test_a_pattern_that_cannot_be_tried_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "_TRIAL", "raise MemoryError")
    assert slow(Template(argv=("p",), progress=r"(?P<n>(?:a+)+)b")) == []
