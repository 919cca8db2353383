"""The profiles of first settings: the log takes them, and the built-in programs understand what they are given."""

from __future__ import annotations

from pathlib import Path

import pytest

from executors import templates
from executors.workloads import evaluation, init, selfplay, training
from executors.workloads.boards import CONFIGS
from ringrift_cluster import bootstrap
from ringrift_cluster.controllers.items import item
from statemachine.commands import AddWork
from statemachine.entries import encode_entry
from statemachine.errors import Done, Rejected
from statemachine.machine import Machine
from statemachine.rows import Actual, Desired, Job
from statemachine.settings import GameConfig, Template
from statemachine.values import Needs

PROGRAMS = {
    "init": init.parser,
    "selfplay": selfplay.parser,
    "training": training.parser,
    "evaluation": evaluation.parser,
}
PROFILES = list(bootstrap.Profile)


def stages(profile: bootstrap.Profile) -> list[tuple[str, AddWork, Template]]:
    """One item of every stage of every config, as the policies would make it, and its template."""
    made = bootstrap.PROFILES[profile]()
    found = []
    for name, config in made.items():
        if not isinstance(config, GameConfig):
            continue
        key = name.removeprefix("config/")
        rest = {"games": "10", "groups": "4", "games_seen": "99"}
        for work_type, stage in (
            ("initial", config.initial),
            ("selfplay", config.selfplay.stage),
            ("training", config.training.stage),
            ("evaluation", config.gate.stage),
        ):
            work = item(f"{work_type}-{key}", work_type, key, stage, params=rest)
            template = made[f"template/{stage.template}"]
            assert isinstance(template, Template)
            found.append((key, work, template))
    return found


def argv(work: AddWork, template: Template, folder: Path) -> list[str]:
    job = Job(
        job=f"{work.work}.1",
        work=work.work,
        work_type=work.work_type,
        config=work.config,
        peer="a",
        incarnation=1,
        fence=1,
        desired=Desired.RUN,
        actual=Actual.PENDING,
        granted_at_ms=0,
        lease_ms=1,
        renewed_at_ms=0,
        needs=Needs(),
        timeout_ms=1,
    )
    paths = templates.Paths(
        job_dir=folder,
        out=folder / "out",
        checkpoint=folder / "checkpoint",
        python="python",
        inputs={name: folder / name for name in ("model", "init", "a", "b", "games-0000.npz")},
        lists={"games": folder / "inputs-games.txt"},
    )
    return list(templates.render(template, work, job, paths, {}).argv)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_log_takes_a_profile_and_leaves_what_exists_the_second_time(profile: bootstrap.Profile) -> None:
    machine = Machine()
    commands = bootstrap.commands(profile)
    first = machine.apply(1, 1, encode_entry(1, 0, commands))
    again = machine.apply(2, 1, encode_entry(1, 1, commands))
    assert all(isinstance(result, Done) for result in first)
    assert all(isinstance(result, Rejected) and result.code == "conflict" for result in again)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_program_understands_the_arguments_of_its_stage(profile: bootstrap.Profile, tmp_path: Path) -> None:
    for key, work, template in stages(profile):
        assert key in CONFIGS
        words = argv(work, template, tmp_path)
        module = words[2].rpartition(".")[2]
        read = vars(PROGRAMS[module]().parse_args(words[3:]))
        assert read["config"] == key
        assert str(read["seed"]) == work.params["seed"]


def test_the_demo_learns_three_games_and_judges_by_at_least_a_hundred() -> None:
    demo = bootstrap.PROFILES[bootstrap.Profile.DEMO]()
    configs = {name.removeprefix("config/"): c for name, c in demo.items() if isinstance(c, GameConfig)}
    assert set(configs) == {"connect4_2p", "square8_2p", "hex8_3p"}
    assert all(c.gate.floor_games >= 100 for c in configs.values())
    assert set(bootstrap.PROFILES[bootstrap.Profile.FLEET]()) >= {
        f"config/{b}_{n}p" for b in bootstrap.BOARDS for n in (2, 3, 4)
    }
