from __future__ import annotations

import subprocess
import sys

import pytest

from executors.workloads import evaluation, init, selfplay, training
from executors.workloads.boards import CONFIGS
from executors.workloads.presets import PRESETS, arguments

REQUIRED = {
    "init": [],
    "selfplay": [],
    "training": ["--data", "games-00000.npz"],
    "evaluation": ["--a", "model.pt", "--b", "random"],
}
PARSERS = {
    "init": init.parser,
    "selfplay": selfplay.parser,
    "training": training.parser,
    "evaluation": evaluation.parser,
}


@pytest.mark.parametrize(("purpose", "config"), [(p, c) for p, configs in PRESETS.items() for c in configs])
def test_every_preset_is_understood_by_its_program(purpose: str, config: str) -> None:
    assert config in CONFIGS
    assert PRESETS[purpose][config].keys() == PARSERS.keys()
    for workload, values in PRESETS[purpose][config].items():
        words = ["--config", config, *REQUIRED[workload], *arguments(values)]
        read = vars(PARSERS[workload]().parse_args(words))
        for name, value in values.items():
            assert read[name.replace("-", "_")] == value


def test_the_demo_plays_three_configs_and_evaluates_at_least_a_hundred_games() -> None:
    demo = PRESETS["demo"]
    assert set(demo) == {"connect4_2p", "square8_2p", "hex8_3p"}
    for config, preset in demo.items():
        players = CONFIGS[config].players
        games_of_a_group = 2 if players == 2 else 2 * players
        assert int(preset["evaluation"]["groups"]) * games_of_a_group >= 100


def test_presets_can_be_read_without_torch() -> None:
    code = "import executors.workloads.presets, sys; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 0
