from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from executors.workloads import games, players, selfplay, shards
from executors.workloads.contract import StopSignal, WorkloadError
from executors.workloads.dropk import DropK
from executors.workloads.engines import Random
from executors.workloads.selfplay import Recorder, play
from executors.workloads.shards import Positions
from tests.executors.workloads import programs

SMALL = ["--channels", "8", "--blocks", "1", "--engine", "gumbel-mcts", "--simulations", "4"]


def run_in_process(job_dir: Path, *words: str) -> int:
    return selfplay.main(["--job-dir", str(job_dir), *words], StopSignal())


def load(game: DropK, job_dir: Path) -> list[Positions]:
    paths = sorted((job_dir / "out").glob("games-*.npz"))
    return [shards.read(path, game.key, game.height, game.width, game.players) for path in paths]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_games(tmp_path: Path) -> None:
    words = ["--config", "connect4_2p", "--games", "6", "--batch", "4", *SMALL]
    process = programs.start(tmp_path / "a", "selfplay", *words, "--seed", "7")
    assert programs.finish(process) == (0, "")
    run_in_process(tmp_path / "b", *words, "--seed", "7")
    run_in_process(tmp_path / "c", *words, "--seed", "8")
    a, b, c = ((tmp_path / name / "out" / "games-00000.npz").read_bytes() for name in "abc")
    assert a == b
    assert a != c
    assert programs.result(tmp_path / "a")["counts"]["games"] == 6
    lines = programs.progress(tmp_path / "a")
    assert lines[0]["counts"]["games"] == 0
    assert lines[-1]["counts"] == programs.result(tmp_path / "a")["counts"]
    assert lines[-1]["total"] == {"games": 6}


@pytest.mark.parametrize("key", ["connect4_2p", "hex8_3p"])
def test_every_recorded_game_can_be_followed_ply_by_ply_to_its_score(tmp_path: Path, key: str) -> None:
    game = games.load(key)
    words = ["--config", key, "--games", "9", "--batch", "4", "--opening-plies", "3", "--shard-games", "4"]
    assert run_in_process(tmp_path, *words, *SMALL) == 0
    parts = load(game, tmp_path)
    assert len(parts) > 1
    found = Positions.join(parts)
    assert sorted(set(found.game.tolist())) == list(range(9))
    assert np.allclose(found.score.sum(1), 1, atol=0.01)
    assert np.allclose(found.policy.sum(1), 1, atol=0.01)
    for number in range(9):
        rows = found.take(found.game == number)
        assert rows.ply.tolist() == list(range(len(rows)))
        discs = (rows.observation >= 2).sum((1, 2))
        assert 0 <= discs[0] <= 3
        assert (np.diff(discs) == 1).all()
        # The seats take turns: what the mover will have scored is, one ply on, the last seat's.
        for ply in range(1, len(rows)):
            assert np.array_equal(rows.score[ply], np.roll(rows.score[ply - 1], -1))
        # A full column, one without a landing cell, is no target.
        landing = (rows.observation == 1).any(1)
        assert (rows.policy[~landing] == 0).all()


def test_finished_games_make_room_for_the_next_in_the_queue() -> None:
    game = games.load("connect4_2p")
    generator = players.generator(1, 0, torch.device("cpu"))
    recorder = Recorder(game, 1, 50)
    in_play: list[int] = []

    class Counting(Random[object]):  # type: ignore[type-var]
        def decide(self, state: object) -> object:  # type: ignore[override]
            in_play.append(len(game.done(state)))  # type: ignore[arg-type]
            return super().decide(state)

    engine = Counting(game, generator)  # type: ignore[arg-type]
    finished = list(play(game, engine, recorder, 50, 8, 0, generator, StopSignal()))  # type: ignore[arg-type]
    assert finished[-1] == 50
    assert finished == sorted(finished)
    for count, plying in zip([0, *finished], in_play, strict=False):
        assert plying == min(8, 50 - count)
    drained = recorder.drain()
    assert drained.games == 50
    assert len(recorder.drain()) == 0


def test_sigterm_keeps_the_finished_games_and_says_so(tmp_path: Path) -> None:
    process = programs.start(
        tmp_path, "selfplay", "--config", "connect4_2p", "--games", "100000", "--batch", "16", *SMALL
    )
    programs.wait_until(lambda: any(line["counts"]["games"] >= 5 for line in programs.progress(tmp_path)), process)
    process.send_signal(signal.SIGTERM)
    assert programs.finish(process) == (0, "")
    found = programs.result(tmp_path)
    assert found["stopped"] is True
    (part,) = load(games.load("connect4_2p"), tmp_path)
    counts = {"games": part.games, "positions": len(part)}
    assert found["counts"] == counts
    assert found["outputs"] == [{"path": "games-00000.npz", "kind": "games", "counts": counts}]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["counts"] == counts


def test_being_stopped_before_the_first_game_ended_is_an_error(tmp_path: Path) -> None:
    stop = StopSignal()
    stop.requested = True
    with pytest.raises(WorkloadError, match="stopped before its first game"):
        selfplay.main(["--config", "connect4_2p", "--job-dir", str(tmp_path)], stop)
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("engine", ["random", "heuristic", "policy-only"])
def test_every_engine_can_play_for_data(tmp_path: Path, engine: str) -> None:
    words = ["--config", "hex8_4p", "--games", "4", "--engine", engine, "--channels", "4", "--blocks", "0"]
    assert run_in_process(tmp_path, *words) == 0
    assert programs.result(tmp_path)["counts"]["games"] == 4
