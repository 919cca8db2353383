from __future__ import annotations

from pathlib import Path

import pytest

from executors.workloads import evaluation, init, selfplay, training
from executors.workloads.contract import StopSignal, WorkloadError
from tests.executors.workloads import programs

MAINS = {
    "init": init.main,
    "selfplay": selfplay.main,
    "training": training.main,
    "evaluation": evaluation.main,
}


@pytest.mark.parametrize(
    ("workload", "words", "sentence"),
    [
        ("init", "", "the following arguments are required: --config"),
        ("selfplay", "--config connect4_2p --games 0", "argument --games: 0 is not between 1 and 1000000"),
        ("selfplay", "--config connect4_2p --engine guess", "argument --engine: invalid choice: 'guess'"),
        ("selfplay", "--config connect4_2p --game 5", "unrecognized arguments: --game 5"),
        ("training", "--config connect4_2p", "0 data files are given"),
        ("training", "--config connect4_2p --steps 1 --epochs 1", "not allowed with argument"),
        ("evaluation", "--config connect4_2p --a random", "the following arguments are required: --b"),
        ("evaluation", "--config connect4_2p --a x --b x --temperature nan", "nan is not between"),
    ],
)
def test_a_bad_argument_is_one_sentence_and_exit_2(
    workload: str, words: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ending:
        MAINS[workload](words.split(), StopSignal())
    errors = capsys.readouterr().err
    assert ending.value.code == 2
    assert errors.startswith(f"python -m executors.workloads.{workload}: ")
    assert sentence in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("workload", "words"),
    [
        ("selfplay", "--config connect4_2p --model gone.pt"),
        ("training", "--config connect4_2p --data gone.npz"),
        ("training", "--config connect4_2p --data gone.npz --init gone.pt"),
        ("evaluation", "--config connect4_2p --a gone.pt --b random"),
    ],
)
def test_a_missing_file_is_named_before_anything_is_written(
    workload: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkloadError, match=r"gone\.\w+ cannot be read: No such file or directory\."):
        MAINS[workload](words.split(), StopSignal())
    assert not list(tmp_path.iterdir())


def test_as_a_program_an_error_is_one_sentence_on_stderr_and_exit_1(tmp_path: Path) -> None:
    process = programs.start(tmp_path, "evaluation", "--config", "chess_2p", "--a", "random", "--b", "random")
    code, errors = programs.finish(process)
    assert code == 1
    assert errors.startswith("There is no config 'chess_2p'; the known ones are connect4_2p, ")
    assert errors.count("\n") == 1
    assert not (tmp_path / "result.json").exists()


def test_an_engine_without_its_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"model .*heuristics cannot be read"):
        evaluation.main(
            ["--config", "connect4_2p", "--a", "heuristics", "--b", "random", "--job-dir", str(tmp_path)],
            StopSignal(),
        )
