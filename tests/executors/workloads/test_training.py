from __future__ import annotations

import math
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from executors.workloads import games, net, selfplay, training
from executors.workloads.contract import EXIT_OK, EXIT_STOPPED, StopSignal, WorkloadError
from executors.workloads.optimizer import AdamW
from executors.workloads.window import Window, validates
from tests.executors.workloads import programs
from tests.executors.workloads.test_shards import positions

SMALL = ["--config", "connect4_2p", "--channels", "8", "--blocks", "1", "--batch-size", "32"]


class StopAfter(StopSignal):
    """Asks to stop at the n-th look."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def __getattribute__(self, name: str) -> object:
        if name == "requested":
            self.looks -= 1
            return self.looks < 0
        return super().__getattribute__(name)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    words = ["--config", "connect4_2p", "--games", "60", "--engine", "heuristic", "--job-dir", str(folder)]
    assert selfplay.main(words, StopSignal()) == 0
    return folder / "out" / "games-00000.npz"


def test_the_losses_fall_on_heuristic_games(tmp_path: Path, shard: Path) -> None:
    words = [*SMALL, "--data", str(shard), "--steps", "120", "--learning-rate", "0.004"]
    assert training.main([*words, "--job-dir", str(tmp_path)], StopSignal()) == EXIT_OK
    found = programs.result(tmp_path)
    last = found["metrics"]
    assert found["counts"] == {"steps": 120, "samples": 120 * 32}
    assert found["outputs"] == [{"path": "model.pt", "kind": "model", "counts": {"steps": 120}}]
    # Knowing nothing costs log 7 for the policy and log 2 for the score.
    assert float(last["policy_loss"]) < math.log(7) - 0.1
    assert float(last["validation_policy_loss"]) < math.log(7) - 0.1
    assert float(last["value_loss"]) < math.log(2) + 0.01
    _, steps = net.load(tmp_path / "out" / "model.pt", games.load("connect4_2p"))
    assert steps == 120


def test_a_job_stopped_and_resumed_gives_the_very_model_of_an_unbroken_one(tmp_path: Path, shard: Path) -> None:
    words = [*SMALL, "--data", str(shard), "--steps", "40", "--seed", "3"]
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    assert training.main([*words, "--job-dir", str(unbroken)], StopSignal()) == EXIT_OK
    assert training.main([*words, "--job-dir", str(broken)], StopAfter(17)) == EXIT_STOPPED
    assert not (broken / "result.json").exists()
    assert programs.progress(broken)[-1]["counts"]["steps"] == 17
    assert training.main([*words, "--job-dir", str(broken)], StopSignal()) == EXIT_OK
    assert programs.progress(broken)[0]["counts"]["steps"] == 17
    assert programs.result(broken) == programs.result(unbroken)
    assert (broken / "out" / "model.pt").read_bytes() == (unbroken / "out" / "model.pt").read_bytes()


def test_a_checkpoint_of_other_arguments_is_not_continued(tmp_path: Path, shard: Path) -> None:
    words = [*SMALL, "--data", str(shard), "--steps", "20", "--job-dir", str(tmp_path)]
    assert training.main([*words, "--seed", "1"], StopAfter(5)) == EXIT_STOPPED
    assert training.main([*words, "--seed", "2"], StopSignal()) == EXIT_OK
    assert programs.progress(tmp_path)[0]["counts"]["steps"] == 0


def test_sigterm_ends_in_a_checkpoint_and_the_next_attempt_goes_on_from_it(tmp_path: Path, shard: Path) -> None:
    words = [*SMALL, "--data", str(shard), "--steps", "100000"]
    process = programs.start(tmp_path, "training", *words)
    programs.wait_until(lambda: any(line["counts"]["steps"] >= 3 for line in programs.progress(tmp_path)), process)
    process.send_signal(signal.SIGTERM)
    assert programs.finish(process) == (143, "")
    reached = programs.progress(tmp_path)[-1]["counts"]["steps"]
    assert training.main([*words, "--job-dir", str(tmp_path)], StopAfter(2)) == EXIT_STOPPED
    again = programs.progress(tmp_path)
    assert again[0]["counts"]["steps"] == reached
    assert again[-1]["counts"]["steps"] == reached + 2


def test_training_continues_from_a_model_and_counts_all_its_steps(tmp_path: Path, shard: Path) -> None:
    listed = tmp_path / "list"
    listed.write_text(f"{shard}\n\n")
    words = [*SMALL, "--data-list", str(listed), "--epochs", "1"]
    assert training.main([*words, "--job-dir", str(tmp_path / "a")], StopSignal()) == EXIT_OK
    model = tmp_path / "a" / "out" / "model.pt"
    steps = programs.result(tmp_path / "a")["counts"]["steps"]
    words += ["--init", str(model), "--job-dir", str(tmp_path / "b")]
    assert training.main(words, StopSignal()) == EXIT_OK
    assert programs.result(tmp_path / "b")["outputs"][0]["counts"] == {"steps": 2 * steps}


def test_a_game_is_on_one_side_of_the_split_in_every_window() -> None:
    rows = positions(4000)
    held_back = validates(rows, 0.1)
    assert np.array_equal(held_back[0::2], held_back[1::2])
    assert 0.07 < held_back.mean() < 0.13
    half = np.arange(4000) % 4 < 2
    assert np.array_equal(validates(rows.take(half), 0.1), held_back[half])


def test_an_epoch_deals_every_position_once_and_mirrors_about_half() -> None:
    game = games.load("connect4_2p")
    rows = positions(600)
    # An asymmetric mark that survives the mirror as "moved", and a name in the score.
    rows.observation[:] = 0
    rows.observation[:, 0, 0] = 2
    rows.policy[:] = np.eye(7, dtype=np.float16)[0]
    rows.score[:, 0] = np.arange(600)
    window = Window(game, rows, 0.0, torch.device("cpu"))
    dealt = [window.batch(5, step, 60) for step in range(window.steps_per_epoch(60))]
    names = torch.cat([score[:, 0] for _, _, score in dealt])
    assert sorted(names.tolist()) == list(range(600))
    observation = torch.cat([part for part, _, _ in dealt])
    policy = torch.cat([part for _, part, _ in dealt])
    mirrored = observation[:, 0, 6] == 2
    assert 240 < int(mirrored.sum()) < 360
    assert torch.equal(policy.argmax(1), torch.where(mirrored, 6, 0))
    assert (observation != 0).sum() == 600


def test_data_of_no_use_are_named(tmp_path: Path, shard: Path) -> None:
    with pytest.raises(WorkloadError, match="no position to train on"):
        Window(games.load("connect4_2p"), positions(0), 0.1, torch.device("cpu"))
    listed = tmp_path / "list"
    words = [*SMALL, "--data-list", str(listed), "--job-dir", str(tmp_path)]
    with pytest.raises(WorkloadError, match=r"list of data files .* cannot be read"):
        training.main(words, StopSignal())
    listed.write_text(str(tmp_path / "gone.npz"))
    with pytest.raises(WorkloadError, match=r"data file .*gone\.npz cannot be read: No such file"):
        training.main(words, StopSignal())
    words = [*SMALL, "--data", str(shard), "--steps", "20", "--learning-rate", "1", "--value-weight", "100"]
    assert training.main([*words, "--job-dir", str(tmp_path)], StopSignal()) == EXIT_OK


def test_the_optimizer_agrees_with_the_one_of_torch() -> None:
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(5, 3, generator=generator)
    mine, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    ours = AdamW([mine], weight_decay=0.1)
    reference = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1)
    for _ in range(20):
        gradient = torch.randn(5, 3, generator=generator)
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        ours.step(0.01, clip=1e9)
        reference.step()
    assert torch.allclose(mine, theirs, atol=1e-6)
