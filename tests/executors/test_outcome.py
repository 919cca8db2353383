from __future__ import annotations

import json

import pytest

from executors.outcome import MAX_RESULT_BYTES, Failure, Success, inside, judge
from executors.processes import Exit
from statemachine.commands import AddWork
from statemachine.rows import Work, WorkStatus
from statemachine.settings import Template
from statemachine.values import MatchResult, Tally

PLAIN = Template(argv=("p",))
STRICT = Template(argv=("p",), require_outputs=("games",), require_counts=("games",), exit_codes={3: "verdict"})
GOOD = {"counts": {"games": 5}, "outputs": [{"path": "g.npz", "kind": "games", "counts": {"games": 5}}]}


def work(**params: str) -> Work:
    return Work(AddWork("w", "t", params=params), WorkStatus.RUNNING, 1, 0, 0)


def code(number: int, cause: str = "exited") -> Exit:
    return Exit(number, 0, cause)


def by_signal(number: int, cause: str = "exited", oom: bool = False) -> Exit:
    return Exit(0, number, cause, oom=oom)


def result(**more: object) -> bytes:
    return json.dumps(GOOD | more).encode()


OUTSIDE = [{"path": "../x", "kind": "games"}]
NO_START = Exit(127, 0, "spawn", error="x could not be started: [Errno 11] Resource temporarily unavailable")
NO_FILE = Exit(127, 0, "spawn", error="x could not be started in /: [Errno 2] No such file or directory")
NO_RIGHT = Exit(127, 0, "spawn", error="x could not be started in /: [Errno 13] Permission denied")

FAILURES = [
    ("no result is no success", code(0), None, "", "", "no_output", "no result.json"),
    ("half a result is no success", code(0), b'{"counts": {', "", "", "no_output", "cannot be used"),
    ("no UTF-8 is no success", code(0), b'{"counts": {"\xff": 1}}', "", "", "no_output", "cannot be used"),
    ("a negative count is no success", code(0), result(counts={"games": -1}), "", "", "no_output", "counts"),
    ("zero games are no success", code(0), result(counts={"games": 0}), "", "", "no_output", "counted no games"),
    ("a missing kind is no success", code(0), result(outputs=[]), "", "", "no_output", "no output of kind games"),
    ("an output outside is refused", code(0), result(outputs=OUTSIDE), "", "", "no_output", "not below out/"),
    ("a huge result is refused", code(0), b" " * (MAX_RESULT_BYTES + 1), "", "", "no_output", "bytes"),
    ("exit 1 is the program's own doing", code(1), None, "", "Traceback\nValueError: x", "user", "ValueError: x"),
    ("exit 1 with a result is still a failure", code(1), result(), "", "", "user", "code 1"),
    ("a traceback of memory is oom", code(1), None, "", "torch.OutOfMemoryError: CUDA out of memory.", "oom", "code 1"),
    ("a CUDA error is cuda", code(1), None, "", "RuntimeError: CUDA error: device-side assert", "cuda", "code 1"),
    ("a full disk is infrastructure", code(1), None, "", "OSError: No space left on device", "infrastructure", ""),
    ("kill -9 is infrastructure", by_signal(9), None, "", "", "infrastructure", "SIGKILL"),
    ("kill -9 by the kernel for memory is oom", by_signal(9, oom=True), None, "", "", "oom", "memory ran out"),
    ("a segmentation fault is the program's own doing", by_signal(11), None, "", "", "user", "SIGSEGV"),
    ("an abort is the program's own doing", by_signal(6), None, "", "", "user", "SIGABRT"),
    ("a bus error is the program's own doing", by_signal(7), None, "", "", "user", "SIGBUS"),
    ("a division by zero is the program's own doing", by_signal(8), None, "", "", "user", "SIGFPE"),
    ("an illegal instruction is the program's own doing", by_signal(4), None, "", "", "user", "SIGILL"),
    ("a forbidden system call is the program's own doing", by_signal(31), None, "", "", "user", "SIGSYS"),
    ("an abort over CUDA is cuda", by_signal(6), None, "", "CUDA error: an illegal address", "cuda", "SIGABRT"),
    ("a crash of a full disk is no fault", by_signal(7), None, "", "No space left on device", "infrastructure", ""),
    ("a hangup is infrastructure", by_signal(1), None, "", "", "infrastructure", "SIGHUP"),
    ("a program that does not exist is the template's fault", NO_FILE, None, "", "", "user", "No such file"),
    ("a program that is none is the template's fault", NO_RIGHT, None, "", "", "user", "Permission denied"),
    ("somebody's SIGTERM is preempted", by_signal(15), None, "", "", "preempted", "SIGTERM"),
    ("an exit after somebody's SIGTERM is preempted", code(143), None, "", "", "preempted", "143"),
    ("a program that does not start is infrastructure", NO_START, None, "", "", "infrastructure", "not be started"),
    ("no record is infrastructure", None, None, "", "", "infrastructure", "keeper"),
    ("no record with a result is infrastructure as well", None, result(), "", "", "infrastructure", "keeper"),
    ("no record after a stop is stopped", None, None, "asked", "", "stopped", "told to stop"),
    ("a stop without a result is stopped", by_signal(9, "stop"), None, "asked", "", "stopped", "told to stop"),
    ("a stop with a bad result is stopped", code(143, "stop"), b"{", "asked", "", "stopped", "told to stop"),
    ("a stop with exit 0 and no result is stopped", code(0, "stop"), None, "asked", "", "stopped", "told to stop"),
    ("a lapsed lease is infrastructure", by_signal(15, "lease"), None, "", "", "infrastructure", "lease"),
    ("a timeout is a timeout, also with a result", code(0, "stop"), result(), "timeout", "", "timeout", "limit"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("ended", "data", "cause", "stderr", "error_class", "words"),
    [row[1:] for row in FAILURES],
    ids=[r[0] for r in FAILURES],
)
def test_the_table_of_failures(
    ended: Exit | None, data: bytes | None, cause: str, stderr: str, error_class: str, words: str
) -> None:
    verdict = judge(ended, data, work(), STRICT, cause, stderr)
    assert isinstance(verdict, Failure), verdict
    assert verdict.error_class == error_class
    assert words in verdict.error


SUCCESSES = [
    ("exit 0", code(0), {}, "", False),
    ("a verdict code", code(3), {}, "", False),
    ("a part that the program itself calls one", code(0), {"stopped": True}, "", True),
    ("a stop that came after the end", code(0, "stop"), {}, "asked", False),
    ("a part kept at SIGTERM", code(143, "stop"), {}, "asked", True),
    ("a part of a program that was killed after its grace", by_signal(9, "stop"), {}, "asked", True),
    ("a part kept at somebody's SIGTERM", code(143), {}, "", True),
    ("a part left at somebody's SIGTERM, which the program does not handle", by_signal(15), {}, "", True),
]


@pytest.mark.parametrize(
    ("ended", "more", "cause", "stopped"), [row[1:] for row in SUCCESSES], ids=[row[0] for row in SUCCESSES]
)
def test_the_table_of_successes(ended: Exit, more: dict[str, object], cause: str, stopped: bool) -> None:
    verdict = judge(ended, result(**more), work(), STRICT, cause)
    assert isinstance(verdict, Success), verdict
    assert (verdict.counts, verdict.stopped) == ({"games": 5}, stopped)
    assert [o.path for o in verdict.outputs] == ["g.npz"]
    assert verdict.exit_code == (ended.code or (128 + ended.signal if ended.signal else 0))


TALLY = [{"seats_a": 1, "seats_b": 1, "wins_a": 3, "wins_b": 2, "draws": 1}]


def test_an_evaluation_becomes_a_match_of_the_participants_the_item_names() -> None:
    data = json.dumps({"counts": {"games": 6}, "tally": TALLY, "histogram": [0, 1, 1, 1, 0]}).encode()
    verdict = judge(code(0), data, work(participant_a="m1:policy", participant_b="random"), PLAIN)
    assert isinstance(verdict, Success)
    assert verdict.match == MatchResult("m1:policy", "random", (Tally(1, 1, 3, 2, 1),), (0, 1, 1, 1, 0))


def test_an_evaluation_of_an_item_that_names_no_participants_is_the_askers_fault() -> None:
    verdict = judge(code(0), json.dumps({"tally": TALLY}).encode(), work(participant_a="a"), PLAIN)
    assert isinstance(verdict, Failure)
    assert verdict.error_class == "user"


def test_a_tally_without_games_is_no_match() -> None:
    data = json.dumps(
        {"counts": {"positions": 9}, "tally": [TALLY[0] | {"wins_a": 0, "wins_b": 0, "draws": 0}]}
    ).encode()
    verdict = judge(code(0), data, work(), PLAIN)
    assert isinstance(verdict, Success)
    assert verdict.match is None


def test_metrics_become_canonical_text() -> None:
    data = json.dumps({"metrics": {"a": 1, "b": 0.25, "c": "x", "d": True, "e": None}}).encode()
    verdict = judge(code(0), data, work(), PLAIN)
    assert isinstance(verdict, Success)
    assert verdict.metrics == {"a": "1", "b": "0.25", "c": "x", "d": "true", "e": ""}


@pytest.mark.parametrize(
    ("path", "good"),
    [("a", True), ("a/b.c", True), ("/a", False), ("../a", False), ("a/../../b", False), (".", False), ("", False)],
)
def test_output_paths_stay_below_out(path: str, good: bool) -> None:
    assert inside(path) is good


def test_a_result_that_shows_nothing_is_no_success_though_its_template_asks_for_nothing() -> None:
    for shown in ({}, {"counts": {"steps": 0}}, {"tally": [{**TALLY[0], "wins_a": 0, "wins_b": 0, "draws": 0}]}):
        verdict = judge(code(0), json.dumps(shown).encode(), work(), PLAIN)
        assert isinstance(verdict, Failure)
        assert (verdict.error_class, "shows nothing" in verdict.error) == ("no_output", True)
    verdict = judge(code(0), b'{"counts": {"games": 0}, "metrics": {"win_rate": "0"}}', work(), PLAIN)
    assert isinstance(verdict, Failure)
    assert "zero games are never a result" in verdict.error
    for shown in ({"metrics": {"synced": "3"}}, {"counts": {"steps": 0, "files": 1}}):
        assert isinstance(judge(code(0), json.dumps(shown).encode(), work(), PLAIN), Success)


def test_a_stop_before_the_first_game_is_a_stop_and_burns_no_attempt() -> None:
    verdict = judge(code(0, "stop"), b'{"counts": {"games": 0}, "stopped": true}', work(), PLAIN, "asked")
    assert isinstance(verdict, Failure)
    assert verdict.error_class == "stopped"
