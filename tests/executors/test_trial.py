"""The shipped templates against stand-ins with the same command lines and habits, each a real process."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from executors import keepers, processes, shim
from executors.trial import Report, Trial, TrialError
from statemachine import settings as st
from statemachine.settings import OutputRule, Template

STAND_INS = Path(__file__).parent / "stand_ins"
TEMPLATES = Path(__file__).parents[2] / "deploy" / "templates"
sys.path.insert(0, str(STAND_INS))
from standing_in import array, database  # noqa: E402


def shipped(name: str) -> Template:
    decoded = st.decode(f"template/{name}", (TEMPLATES / f"{name}.json").read_text())
    assert isinstance(decoded, Template)
    return decoded


def inputs_of(where: Path) -> dict[str, Path]:
    """One of each file that a shipped template may ask for."""
    made = {name: where / name for name in ("data", "init", "games_db", "games_jsonl", "model")}
    array(str(made["data"]), "features", 4096)
    database(str(made["games_db"]), "games", 3)
    made["games_jsonl"].write_text('{"game": 1}\n{"game": 2}\n')
    made["init"].write_bytes(b"init")
    made["model"].write_bytes(b"a strong net")
    return made


def attempt(where: Path, template: Template, stop_when: str = "", **more: str) -> Report:
    """`stop_when`: it is told to stop once it has said this."""
    environment = dict(os.environ) | {k: more.pop(k) for k in list(more) if k.startswith("STAND_IN")}
    params = {"source": str(STAND_INS)} | more
    files = where / "files"
    files.mkdir()
    trial = Trial(where, template, params, inputs_of(files), config="hex8_2p", grace_s=5.0, inherited=environment)
    return trial.run(interrupted=lambda: bool(stop_when) and said(trial, stop_when))


def said(trial: Trial, text: str) -> bool:
    logs = [trial.folder.path / name for name in ("stdout.log", "stderr.log")]
    return any(log.exists() and text in log.read_text() for log in logs)


WORKS = [
    ("gpu-selfplay", {"games": "7"}, {"games": 7}, {"games", "stats"}),
    ("gumbel-selfplay", {"games": "4"}, {"games": 4}, {"games"}),
    ("multigame-gumbel", {"games": "4"}, {"games": 4}, {"games"}),
    ("selfplay-runner", {"games": "4"}, {"games": 4}, {"games"}),
    ("soak-selfplay", {"games": "4"}, {"games": 4}, {"games", "replays", "stats"}),
    ("hybrid-selfplay", {"games": "4"}, {"games": 4}, {"games"}),
    ("train", {"epochs": "2"}, {"samples": 2048, "data_files": 3, "epochs": 2}, {"model"}),
    ("export-dataset", {}, {"samples": 120}, {"dataset"}),
    ("jsonl-to-npz", {}, {"samples": 80}, {"dataset"}),
    ("baseline-gauntlet", {"games": "9"}, {"games": 9}, set()),
    ("elo-tournament", {"games": "3"}, {"matches": 3}, {"elo", "replays"}),
    ("tier-tournament", {"games": "5"}, {"games": 15}, {"report"}),
    ("gpu-cmaes", {"generations": "2"}, {}, {"weights"}),
]


@pytest.mark.parametrize(("name", "params", "counts", "kinds"), WORKS, ids=[w[0] for w in WORKS])
def test_a_shipped_template_runs_its_script_unmodified(
    tmp_path: Path, name: str, params: dict[str, str], counts: dict[str, int], kinds: set[str]
) -> None:
    report = attempt(tmp_path, shipped(name), **params)
    assert report.verdict == "completed", report
    assert report.counts == counts
    assert {made.kind for made in report.outputs} == kinds


def test_every_shipped_template_is_tried() -> None:
    assert {path.stem for path in TEMPLATES.glob("*.json")} == {name for name, *_ in WORKS}


def test_a_verdict_of_no_is_a_result_and_not_a_crash(tmp_path: Path) -> None:
    template = shipped("baseline-gauntlet")
    trial = Trial(
        tmp_path, template, {"source": str(STAND_INS), "games": "9"}, {"model": _file(tmp_path / "m", b"weak")},
        config="hex8_2p",
    )  # fmt: skip
    report = trial.run()
    assert (report.verdict, report.exit_code) == ("completed", 1)
    assert report.counts == {"games": 9}
    assert report.metrics == {"win_rate": "0.31"}


def _file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_a_script_that_found_its_machine_busy_is_not_at_fault(tmp_path: Path) -> None:
    report = attempt(tmp_path, shipped("gpu-selfplay"), games="3", STAND_IN_BUSY="1")
    assert (report.verdict, report.error_class) == ("failed", "infrastructure")
    assert "load is critical" in report.error


def test_what_a_script_prints_of_its_machine_counts_on_either_stream(tmp_path: Path) -> None:
    code = "import sys; print('Skipping: memory is low'); print('a warning', file=sys.stderr); raise SystemExit(1)"
    report, _ = habit(tmp_path / "1", code, transient="Skipping: (disk|memory)")
    assert (report.error_class, report.error) == ("infrastructure", "it exited with code 1: Skipping: memory is low")
    report, _ = habit(tmp_path / "2", code.replace("Skipping", "Fine"), transient="Skipping: (disk|memory)")
    assert (report.error_class, report.error) == ("user", "it exited with code 1: a warning")


def test_a_wrong_argument_is_the_items_fault_and_says_so(tmp_path: Path) -> None:
    report = attempt(tmp_path, shipped("gumbel-selfplay"), board="hex", games="3")
    assert (report.verdict, report.error_class) == ("failed", "user")
    assert "unknown board 'hex'" in report.error


def test_a_script_without_a_handler_keeps_the_games_it_wrote_before_it_was_stopped(tmp_path: Path) -> None:
    report = attempt(tmp_path, shipped("gpu-selfplay"), "3 games so far", games="100000", STAND_IN_PACE_S="0.02")
    assert report.verdict == "stopped"
    assert 0 < report.counts["games"] < 100000
    assert [made.kind for made in report.outputs] == ["games"]
    assert report.progress is not None
    assert report.progress.counts["games"] > 0


def test_a_script_that_exits_with_0_after_sigterm_is_recorded_as_stopped(tmp_path: Path) -> None:
    report = attempt(tmp_path, shipped("selfplay-runner"), "game 3/", games="100000", STAND_IN_PACE_S="0.02")
    assert (report.verdict, report.exit_code) == ("stopped", 0)
    assert 0 < report.counts["games"] < 100000


def test_a_training_that_is_stopped_publishes_no_half_model(tmp_path: Path) -> None:
    report = attempt(tmp_path, shipped("train"), "Epoch 3/", epochs="100000", STAND_IN_PACE_S="0.02")
    assert (report.verdict, report.error_class) == ("failed", "stopped")
    assert report.progress is not None
    assert 0 < report.progress.counts["epochs"] < report.progress.total["epochs"] == 100000


# --- habits -------------------------------------------------------------------------------------------------


def habit(tmp_path: Path, code: str, *, stop_when: str = "", **more: object) -> tuple[Report, Trial]:
    template = Template(argv=(sys.executable, "-c", code), **more)  # type: ignore[arg-type]
    trial = Trial(tmp_path, template, {}, {}, grace_s=0.5)
    return trial.run(interrupted=lambda: bool(stop_when) and said(trial, stop_when)), trial


GAMES = OutputRule("*.jsonl", "games", "lines", "games", partial=True)


def test_exit_0_having_made_nothing_is_a_failure(tmp_path: Path) -> None:
    report, _ = habit(tmp_path, "print('all done, 500 games!')", outputs=(GAMES,))
    assert (report.verdict, report.error_class, report.exit_code) == ("failed", "no_output", 0)
    assert "left no file '*.jsonl'" in report.error


def test_zero_games_are_never_a_success(tmp_path: Path) -> None:
    report, _ = habit(tmp_path, "open('out/a.jsonl', 'w')", outputs=(GAMES,))
    assert (report.verdict, report.error_class) == ("failed", "no_output")
    assert "no games in them" in report.error


def test_a_summary_of_zeros_is_no_result(tmp_path: Path) -> None:
    report, _ = habit(tmp_path, "print('SUMMARY games=0')", summary=r"SUMMARY games=(?P<games>\d+)")
    assert (report.verdict, report.error_class) == ("failed", "no_output")
    assert "nothing that counts" in report.error


def test_a_script_that_ignores_sigterm_is_killed_and_its_whole_lines_are_kept(tmp_path: Path) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); f = open('out/a.jsonl', 'w')\n"
        "f.write('1\\n2\\n3'); f.flush(); print('up', flush=True); time.sleep(600)"
    )
    report, trial = habit(tmp_path, code, outputs=(GAMES,), stop_when="up")
    assert (report.verdict, report.ended_by) == ("stopped", "signal 9")
    assert report.counts == {"games": 2}
    assert (trial.folder.out / "a.jsonl").read_text() == "1\n2\n"
    assert report.stop_seconds >= 0.5


def test_each_attempt_has_its_own_tree_home_and_tmp_and_leaves_the_source_alone(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "data").mkdir(parents=True)
    (source / "run.py").write_text(
        "import os, tempfile, pathlib\n"
        "pathlib.Path('data/new.jsonl').write_text('1\\n')\n"
        "pathlib.Path.home().joinpath('state.jsonl').write_text('1\\n2\\n')\n"
        "print(tempfile.gettempdir(), os.environ['XDG_STATE_HOME'])\n"
    )
    rules = (
        OutputRule("tree/data/*.jsonl", "games", "lines", "games"),
        OutputRule("home/*.jsonl", "state", "lines", "states"),
    )
    template = Template(argv=("{python}", "run.py"), cwd="{tree}", tree=str(source), private=True, outputs=rules)
    trial = Trial(tmp_path / "work", template, {}, {})
    report = trial.run()
    assert report.counts == {"games": 1, "states": 2}
    assert sorted(made.path for made in report.outputs) == ["home/state.jsonl", "tree/data/new.jsonl"]
    assert not (source / "data/new.jsonl").exists()
    corner = str(trial.folder.path)
    assert (trial.folder.path / "stdout.log").read_text().split() == [f"{corner}/tmp", f"{corner}/home/.local/state"]


def test_a_database_that_a_script_reads_is_its_own_copy(tmp_path: Path) -> None:
    games = tmp_path / "games.db"
    database(str(games), "games", 3)
    games.chmod(0o444)
    before = games.read_bytes()
    code = (
        "import sqlite3; d = sqlite3.connect('inputs/games'); d.execute('PRAGMA journal_mode=WAL')\n"
        "d.execute('CREATE TABLE seen(x)'); d.commit(); d.close(); open('out/a.jsonl', 'w').write('1\\n')"
    )
    template = Template(argv=(sys.executable, "-c", code), outputs=(GAMES,))
    assert Trial(tmp_path / "work", template, {}, {"games": games}).run().verdict == "completed"
    assert games.read_bytes() == before


def test_a_result_command_says_what_a_script_cannot(tmp_path: Path) -> None:
    asks = "import json; print('reading'); print(json.dumps(dict(counts=dict(games=len(open('log').readlines())))))"
    report, _ = habit(tmp_path, "open('log', 'w').write('a\\nb\\n')", result=(sys.executable, "-c", asks))
    assert (report.verdict, report.counts) == ("completed", {"games": 2})


def test_a_result_command_that_fails_is_named(tmp_path: Path) -> None:
    report, _ = habit(tmp_path, "pass", result=(sys.executable, "-c", "raise SystemExit(3)"))
    assert (report.verdict, report.error_class) == ("failed", "no_output")
    assert "exited with 3" in report.error


def test_a_result_command_that_prints_brackets_without_end_is_named(tmp_path: Path) -> None:
    asks = "print('{{\"x\": ' + '[' * 100_000)"
    report, _ = habit(tmp_path, "pass", result=(sys.executable, "-c", asks))
    assert (report.verdict, report.error_class) == ("failed", "no_output")
    assert "printed no result" in report.error


def test_a_result_command_whose_child_holds_its_output_open_is_not_waited_for(tmp_path: Path) -> None:
    asks = 'setsid sleep 600 & echo $! > child; echo \'{{"counts": {{"games": 2}}}}\''
    report, trial = habit(tmp_path, "pass", result=("sh", "-c", asks))
    os.kill(int((trial.folder.path / "child").read_text()), signal.SIGKILL)
    assert (report.verdict, report.counts) == ("completed", {"games": 2})


def test_a_result_command_that_never_ends_to_print_is_ended(tmp_path: Path) -> None:
    report, _ = habit(tmp_path, "pass", result=("yes",))
    assert (report.verdict, report.error_class) == ("failed", "no_output")
    assert "printed more than the 4194304 bytes" in report.error


def test_a_result_command_that_says_nothing_is_ended_in_time(tmp_path: Path) -> None:
    with pytest.raises(keepers.Unanswered, match=r"did not end within 0\.1 s"):
        keepers.ask(tmp_path, ("sleep", "600"), 0.1, 100)


def test_a_file_that_two_rules_fit_counts_and_is_published_once(tmp_path: Path) -> None:
    rules = (OutputRule("games_*.jsonl", "games", "lines", "games"), OutputRule("*.jsonl", "log", optional=True))
    report, _ = habit(tmp_path, "open('out/games_1.jsonl', 'w').write('1\\n2\\n')", outputs=rules)
    assert (report.counts, [made.kind for made in report.outputs]) == ({"games": 2}, ["games"])


def test_files_without_number_are_a_fault_that_is_named(tmp_path: Path) -> None:
    code = "for n in range(5000): open('out/%d.jsonl' % n, 'w').write('1\\n')"
    report, _ = habit(tmp_path, code, outputs=(GAMES,))
    assert (report.verdict, report.error_class) == ("failed", "no_output")
    assert "it left 4096 files or more that fit its template, at most 1024 are taken" in report.error
    assert report.progress is not None
    assert report.progress.counts["games"] <= 4096


def test_what_was_counted_in_files_holds_over_what_was_said_of_them(tmp_path: Path) -> None:
    code = "open('out/a.jsonl', 'w').write('1\\n2\\n'); print('made games=500 draws=1')"
    report, _ = habit(tmp_path, code, outputs=(GAMES,), summary=r"games=(?P<games>\d+) draws=(?P<draws>\d+)")
    assert report.counts == {"games": 2, "draws": 1}


def test_a_printed_number_that_no_count_can_be_is_a_metric(tmp_path: Path) -> None:
    code = "open('out/a.jsonl', 'w').write('1\\n'); print('ended at=1795735654254')"
    report, _ = habit(tmp_path, code, outputs=(GAMES,), summary=r"at=(?P<at>\d+)")
    assert (report.counts, report.metrics) == ({"games": 1}, {"at": "1795735654254"})


@pytest.mark.parametrize(
    ("name", "words"), [("b'g\\xff.jsonl'", "no UTF-8"), ("'d' * 200 + '/' + 'f' * 200 + '.jsonl'", "407 characters")]
)
def test_a_file_whose_name_cannot_enter_the_log_is_named_as_the_fault(tmp_path: Path, name: str, words: str) -> None:
    code = f"import os; os.mkdir('out/' + 'd' * 200); os.chdir('out'); open({name}, 'w').write('1\\n')"
    anywhere = (OutputRule("*.jsonl", "games", optional=True), OutputRule("*/*.jsonl", "games", optional=True))
    report, _ = habit(tmp_path, code, outputs=anywhere)
    assert (report.verdict, report.error_class) == ("failed", "no_output")
    assert words in report.error


def test_exit_codes_mean_what_the_template_says(tmp_path: Path) -> None:
    report, _ = habit(tmp_path, "raise SystemExit(75)", exit_codes={75: "preempted"})
    assert (report.verdict, report.error_class) == ("failed", "preempted")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets the keeper adopt orphans")
def test_a_grandchild_with_a_session_of_its_own_and_a_clean_environment_is_ended_with_its_program(
    tmp_path: Path,
) -> None:
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
        " env=dict(), start_new_session=True)\n"
        "open('out/a.jsonl', 'w').write(str(child.pid) + chr(10))"
    )
    report, trial = habit(tmp_path, code, outputs=(GAMES,))
    assert report.verdict == "completed"
    child = int((trial.folder.out / "a.jsonl").read_text())
    assert processes.start_ticks(child) == 0
    assert shim.strays(str(trial.folder.path)) == []


def test_a_daemon_that_a_script_leaves_in_its_first_moment_is_ended_with_it(tmp_path: Path) -> None:
    script = (
        "(setsid env -i sh -c 'echo $$ > out/child; exec sleep 600' &)\n"
        "while [ ! -s out/child ]; do sleep 0.01; done; echo 1 > out/a.jsonl"
    )
    for number in range(4):  # its parent ends within a millisecond or two, and who adopts it is decided then
        trial = Trial(tmp_path / str(number), Template(argv=("sh", "-c", script), outputs=(GAMES,)), {}, {})
        assert trial.run().verdict == "completed"
        assert processes.start_ticks(int((trial.folder.out / "child").read_text())) == 0


WRONG = [
    (Template(argv=("p", "{nothing}")), "asks for {nothing}, which nothing provides"),
    (Template(argv=("p",), progress="(?P<games"), "is no regular expression"),
    (Template(argv=("p",), summary="games"), "has no named group"),
    (Template(argv=("p",), outputs=(OutputRule("../x", "k"),)), "must stay below out/"),
    (Template(argv=("p",), outputs=(OutputRule("tree/x", "k"),)), "has no tree"),
    (Template(argv=("p",), outputs=(OutputRule("home/x", "k"),)), "not private"),
    (Template(argv=("p",), outputs=(OutputRule("x", "k", "words", "w"),)), "known are lines"),
    (Template(argv=("p",), outputs=(OutputRule("x", "k", "lines"),)), "both count and unit"),
    (Template(argv=("p",), exit_codes={0: "user"}), "exits with 1 to 255"),
    (Template(argv=("p",), tree="relative"), "no absolute path"),
    (Template(argv=("p",), tree="/nowhere/at/all"), "is no directory on"),
]


@pytest.mark.parametrize(("template", "words"), WRONG, ids=[words for _, words in WRONG])
def test_a_template_that_cannot_work_is_refused_before_anything_starts(
    tmp_path: Path, template: Template, words: str
) -> None:
    with pytest.raises(TrialError) as refused:
        Trial(tmp_path, template, {}, {})
    assert words in str(refused.value)


def test_a_report_is_json_for_programs(tmp_path: Path) -> None:
    import msgspec

    report, _ = habit(tmp_path, "open('out/a.jsonl', 'w').write('1\\n')", outputs=(GAMES,))
    decoded = json.loads(msgspec.json.encode(report))
    assert decoded["counts"] == {"games": 1}
    assert "HOME" not in decoded["env"]
