from __future__ import annotations

from pathlib import Path

import pytest
import torch

from executors.workloads import games, net
from executors.workloads.contract import WorkloadError
from executors.workloads.dropk import DropK
from executors.workloads.net import NetSpec


def small(game: DropK, seed: int = 1) -> net.Net:
    return net.untrained(game, NetSpec(game.key, 8, 1), seed)


@pytest.mark.parametrize("key", ["connect4_2p", "square19_2p", "hex8_3p", "hexagonal_4p"])
def test_a_saved_model_plays_as_before(tmp_path: Path, key: str) -> None:
    game = games.load(key)
    network = small(game)
    net.save(tmp_path / "model.pt", network, 12)
    again, steps = net.load(tmp_path / "model.pt", game)
    observation = game.observe(game.start(3))
    assert steps == 12
    logits, scores = network(observation)
    assert logits.shape == (3, game.actions)
    assert scores.shape == (3, game.players)
    assert torch.allclose(scores.exp().sum(1), torch.tensor(1.0))
    for mine, theirs in zip((logits, scores), again(observation), strict=True):
        assert torch.equal(mine, theirs)


def test_a_seed_fixes_the_bytes_of_the_untrained_model() -> None:
    game = games.load("connect4_2p")
    assert net.encode(small(game, 5), 0) == net.encode(small(game, 5), 0)
    assert net.encode(small(game, 5), 0) != net.encode(small(game, 6), 0)


def test_making_a_net_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    small(games.load("connect4_2p"))
    assert torch.equal(before, torch.random.get_rng_state())


def test_files_that_are_no_model_of_the_game_are_named(tmp_path: Path) -> None:
    game = games.load("connect4_2p")
    path = tmp_path / "model.pt"
    with pytest.raises(WorkloadError, match=f"model {path} cannot be read: No such file"):
        net.load(path, game)
    path.write_bytes(b"not a model")
    with pytest.raises(WorkloadError, match=f"{path} is not a model"):
        net.load(path, game)
    net.save(path, small(games.load("square8_2p")), 0)
    with pytest.raises(WorkloadError, match="plays square8_2p, not connect4_2p"):
        net.load(path, game)
    whole = net.encode(small(game), 0)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WorkloadError, match=f"{path} is not a model"):
        net.load(path, game)
    torch.save([1, 2], path)
    with pytest.raises(WorkloadError, match=f"{path} is not a model"):
        net.load(path, game)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": 9}, "has format 9, this release reads 1"),
        ({"spec": {"config": "connect4_2p"}}, "does not describe its network"),
        ({"spec": {"config": "connect4_2p", "channels": 10**6, "blocks": 1}}, "asks for 1000000 channels"),
        ({"spec": {"config": "connect4_2p", "channels": 4, "blocks": 1}}, "do not fit"),
        ({"steps": -1}, "how long it was trained"),
        ({"weights": {}}, "do not fit"),
    ],
)
def test_a_model_with_a_wrong_description_is_refused(tmp_path: Path, change: dict[str, object], sentence: str) -> None:
    game = games.load("connect4_2p")
    path = tmp_path / "model.pt"
    net.save(path, small(game), 0)
    torch.save({**net.read(path), **change}, path)
    with pytest.raises(WorkloadError, match=sentence):
        net.load(path, game)


def test_a_model_with_a_weight_that_is_no_number_is_refused(tmp_path: Path) -> None:
    game = games.load("connect4_2p")
    network = small(game)
    with torch.no_grad():
        network.score.bias[0] = torch.nan
    net.save(tmp_path / "model.pt", network, 0)
    with pytest.raises(WorkloadError, match="not finite"):
        net.load(tmp_path / "model.pt", game)


def test_the_copy_for_playing_agrees_with_the_network_it_was_made_from() -> None:
    game = games.load("hex8_3p")
    network = small(game).train()
    observation = game.observe(game.step(game.start(16), torch.arange(16) % game.actions))
    with torch.no_grad():
        network.policy.weight.fill_(0.1)
        network.score.weight.fill_(-0.1)
        # Running statistics away from zero and one, so that folding has something to fold.
        for _ in range(5):
            network(observation)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        copied = net.fused(network)
        for mine, theirs in zip(network.eval()(observation), copied(observation), strict=True):
            assert torch.allclose(mine, theirs, atol=1e-4)
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in copied.modules())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
