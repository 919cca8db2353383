from __future__ import annotations

from pathlib import Path

import pytest

from executors import templates
from executors.templates import Paths, TemplateError, list_file, list_prefixes, render, seed_of, validate
from statemachine.commands import AddWork
from statemachine.rows import Actual, Desired, Job
from statemachine.settings import Template
from statemachine.values import Needs

WORK = AddWork("w1", "selfplay", config="square8_2p", params={"games": "50", "model": "by-parameter"})
PATHS = Paths(
    job_dir=Path("/j"),
    out=Path("/j/out"),
    checkpoint=Path("/j/checkpoint"),
    python="/usr/bin/python",
    inputs={"net": Path("/j/inputs/net"), "model": Path("/j/inputs/model")},
    lists={"data": Path("/j/inputs-data.txt")},
)


def job(gpus: tuple[str, ...] = (), needs: Needs | None = None) -> Job:
    return Job(
        job="w1.2", work="w1", work_type="selfplay", config="square8_2p", peer="n", incarnation=1, fence=5,
        desired=Desired.RUN, actual=Actual.PENDING, granted_at_ms=0, lease_ms=1, renewed_at_ms=0,
        needs=needs or Needs(), timeout_ms=1, gpus=gpus,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("plain", "plain"),
        ("--games={games}", "--games=50"),
        ("{net}", "/j/inputs/net"),
        ("{model}", "by-parameter"),
        ("{inputs:data}", "/j/inputs-data.txt"),
        ("{job}/{work}/{config}/{fence}", "w1.2/w1/square8_2p/5"),
        ("{job_dir} {out} {checkpoint} {python}", "/j /j/out /j/checkpoint /usr/bin/python"),
        ("{seed}", str(seed_of("w1"))),
        ("{gpus}", "GPU-1,GPU-2"),
        ('{{"a": {games}}}', '{"a": 50}'),
    ],
)
def test_a_place_is_filled_by_parameter_then_input_then_built_in(text: str, filled: str) -> None:
    rendered = render(Template(argv=("p", text)), WORK, job(("GPU-1", "GPU-2")), PATHS, {})
    assert rendered.argv == ("p", filled)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{nothing}", ["argv[1]", "{nothing}", "known here are games, model"]),
        ("{inputs:other}", ["argv[1]", "{inputs:other}"]),
        ("{", ["argv[1]", "single '{'"]),
        ("a}b", ["single '}'"]),
        ("{}", ["{}"]),
    ],
)
def test_a_place_that_cannot_be_filled_is_named(text: str, words: list[str]) -> None:
    with pytest.raises(TemplateError) as error:
        render(Template(argv=("p", text)), WORK, job(), PATHS, {})
    assert all(word in str(error.value) for word in words), error.value


def test_the_environment_is_the_contract_over_the_template_over_what_is_inherited() -> None:
    template = Template(
        argv=("p",), env={"A": "{games}", "OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": "all", "RINGRIFT_JOB_ID": "x"}
    )
    inherited = {"PATH": "/bin", "RINGRIFT_TOKEN": "secret", "A": "old"}
    env = render(template, WORK, job(("GPU-1",)), PATHS, inherited).env
    assert env["A"] == "50"
    assert env["PATH"] == "/bin"
    assert env["OMP_NUM_THREADS"] == "3"
    assert env["MKL_NUM_THREADS"] == "1"
    assert env["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert env["RINGRIFT_JOB_ID"] == "w1.2"
    assert env["RINGRIFT_SPEC"] == "/j/spec.json"
    assert env["RINGRIFT_FENCE"] == "5"
    assert "RINGRIFT_TOKEN" not in env


def test_a_job_without_gpus_sees_none() -> None:
    assert render(Template(argv=("p",)), WORK, job(), PATHS, {}).env["CUDA_VISIBLE_DEVICES"] == ""


def test_a_job_with_more_slots_gets_more_threads() -> None:
    env = render(Template(argv=("p",)), WORK, job(needs=Needs(cpu_slots=4)), PATHS, {}).env
    assert env["OMP_NUM_THREADS"] == "4"


def test_the_working_directory_is_the_job_folder_unless_the_template_says_otherwise() -> None:
    assert render(Template(argv=("p",)), WORK, job(), PATHS, {}).cwd == "/j"
    assert render(Template(argv=("p",), cwd="{out}/x"), WORK, job(), PATHS, {}).cwd == "/j/out/x"


def test_the_seed_belongs_to_the_item_and_not_to_the_attempt() -> None:
    assert seed_of("w1") == seed_of("w1")
    assert seed_of("w1") != seed_of("w2")
    assert 0 <= seed_of("w1") < 2**31


def test_list_files_are_found_everywhere_and_have_flat_names() -> None:
    template = Template(argv=("p", "--l={inputs:games/a}"), env={"X": "{inputs:data}"}, cwd="{inputs:}")
    assert list_prefixes(template) == ("", "data", "games/a")
    assert list_file("games/a") == "inputs-games%2Fa.txt"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (Template(argv=("p", "{a b}")), "{a b}"),
        (Template(argv=("p", "{")), "single"),
        (Template(argv=(" ",)), "argv[0] is empty"),
        (Template(argv=("p",), env={"A=B": "x"}), "'A=B'"),
        (Template(argv=("p\0",)), "zero byte"),
        (Template(argv=("p",), progress="".join(f"(?P<a{n}>.)" for n in range(33))), "33 named groups"),
    ],
)
def test_a_template_that_can_fit_no_item_is_refused(template: Template, problem: str) -> None:
    assert any(problem in text for text in validate(template))


def test_a_template_with_unknown_names_may_still_fit_an_item() -> None:
    assert validate(Template(argv=("{python}", "-m", "x", "--a={anything.at/all}", "{inputs:data}"))) == []


def test_built_ins_are_the_documented_ones() -> None:
    text = " ".join(f"{{{name}}}" for name in templates.BUILT_IN)
    template = Template(argv=("p", text), tree="/src", private=True)
    assert "{" not in render(template, WORK, job(), PATHS, {}).argv[1]


def test_a_corner_that_the_template_does_not_ask_for_is_not_known() -> None:
    for name in ("tree", "home", "tmp"):
        with pytest.raises(TemplateError, match="nothing provides"):
            render(Template(argv=("p", f"{{{name}}}")), WORK, job(), PATHS, {})


def test_board_and_players_come_from_the_config_unless_the_item_names_them() -> None:
    template = Template(argv=("p", "{board} {players} {games} {epochs}"), defaults={"games": "1", "epochs": "20"})
    assert render(template, WORK, job(), PATHS, {}).argv[1] == "square8 2 50 20"
