"""A small residual network: from an observation to a preference over actions and a score for each seat."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from executors.workloads.boards import CONFIGS
from executors.workloads.contract import WorkloadError, read_bounded, write_atomically
from executors.workloads.game import AnyGame

FORMAT = 1
MAX_CHANNELS, MAX_BLOCKS = 512, 64
MAX_MODEL_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class NetSpec:
    """Everything that fixes the shape of a network; stored with its weights."""

    config: str
    channels: int
    blocks: int


class Convolution(nn.Module):
    """A convolution that keeps height and width, normalised over the batch."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, features: Tensor) -> Tensor:
        normalised: Tensor = self.norm(self.convolution(features))
        return normalised


class Block(nn.Module):
    """Two 3x3 convolutions beside an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = Convolution(channels, channels, 3)
        self.second = Convolution(channels, channels, 3)

    def forward(self, features: Tensor) -> Tensor:
        inner: Tensor = self.second(functional.relu(self.first(features), inplace=True))
        return functional.relu(inner + features, inplace=True)


class Net(nn.Module):
    """The network of one game.

    A column's logit is read from the sums and maxima of some maps over the column, so that what is learnt
    in one column holds in all of them. The scores come from the mean and the maximum of some maps over the
    board: a head that reads every cell by itself learns a few hundred games by heart.
    """

    STEM = 7  # a line of four through a cell lies within three cells of it
    POLICY_MAPS, SCORE_MAPS, SCORE_HIDDEN = 16, 16, 32

    def __init__(self, game: AnyGame, spec: NetSpec) -> None:
        super().__init__()
        self.spec = spec
        self.codes = game.codes
        self.stem = Convolution(game.codes, spec.channels, self.STEM)
        self.blocks = nn.Sequential(*(Block(spec.channels) for _ in range(spec.blocks)))
        self.policy_maps = nn.Conv2d(spec.channels, self.POLICY_MAPS, 1)
        self.policy = nn.Conv1d(2 * self.POLICY_MAPS, 1, 1)
        self.score_maps = nn.Conv2d(spec.channels, self.SCORE_MAPS, 1)
        self.score_hidden = nn.Linear(2 * self.SCORE_MAPS, self.SCORE_HIDDEN)
        self.score = nn.Linear(self.SCORE_HIDDEN, game.players)
        # Untrained it has no opinion rather than an accidental one, which a search would take for knowledge.
        for head in (self.policy, self.score):
            nn.init.zeros_(head.weight)
            assert head.bias is not None
            nn.init.zeros_(head.bias)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Int8 [batch, height, width] -> logits [batch, actions] and log scores [batch, players].

        Score 0 is the mover's, score 1 that of the next seat, and so on; illegal actions are not masked.
        """
        codes = torch.arange(self.codes, dtype=torch.int8, device=observation.device)
        planes = (observation[..., None] == codes).to(torch.float32).permute(0, 3, 1, 2)
        features = self.blocks(functional.relu(self.stem(planes), inplace=True))
        maps = functional.relu(self.policy_maps(features))
        logits = self.policy(torch.cat([maps.sum(2), maps.amax(2)], 1))[:, 0]
        maps = functional.relu(self.score_maps(features)).flatten(2)
        hidden = functional.relu(self.score_hidden(torch.cat([maps.mean(2), maps.amax(2)], 1)))
        return logits, functional.log_softmax(self.score(hidden), 1)


def untrained(game: AnyGame, spec: NetSpec, seed: int) -> Net:
    """Return the network that this seed gives, ready to play; equal seeds give equal weights on one build of torch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Net(game, spec)
    return net.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def fused(net: Net) -> Net:
    """Return a copy for playing only: each normalisation folded into the convolution before it."""
    copied = copy.deepcopy(net).eval()
    for part in list(copied.modules()):
        for name, child in part.named_children():
            if isinstance(child, Convolution):
                setattr(part, name, fuse_conv_bn_eval(child.convolution, child.norm))
    return copied.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def encode(net: Net, steps: int) -> bytes:
    """Return the bytes of a model file; ``steps`` is how many optimiser steps its weights have seen."""
    # Contiguous copies: equal weights must give equal bytes, whatever their layout in memory.
    weights = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "spec": dataclasses.asdict(net.spec), "steps": steps, "weights": weights}, buffer)
    return buffer.getvalue()


def save(path: Path, net: Net, steps: int) -> None:
    """Write a model file, whole or not at all."""
    write_atomically(path, encode(net, steps))


def load(path: Path, game: AnyGame) -> tuple[Net, int]:
    """Return the network and the optimiser steps it has seen.

    Raises WorkloadError when the file is missing, is not a model, or belongs to another game.
    """
    content = read(path)
    spec, steps = _spec(path, content)
    if spec.config != game.key:
        raise WorkloadError(f"The model {path} plays {spec.config}, not {game.key}; give one of {game.key}.")
    net = untrained(game, spec, 0)
    try:
        net.load_state_dict(content["weights"])
    except (KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise WorkloadError(f"The weights in the model {path} do not fit its own description.") from error
    if not all(bool(torch.isfinite(weight).all()) for weight in net.state_dict().values()):
        raise WorkloadError(f"The model {path} has weights that are not finite numbers; train it again.")
    return net, steps


def read(path: Path) -> dict[str, Any]:
    """Read a file written by torch.save, refusing anything but tensors and plain values."""
    stored = read_bounded(path, MAX_MODEL_BYTES, "model")
    try:
        content = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise WorkloadError(f"The file {path} is not a model of this project.") from error
    if not isinstance(content, dict):
        raise WorkloadError(f"The file {path} is not a model of this project.")
    return content


def _spec(path: Path, content: dict[str, Any]) -> tuple[NetSpec, int]:
    if content.get("format") != FORMAT:
        raise WorkloadError(f"The model {path} has format {content.get('format')!r}, this release reads {FORMAT}.")
    described, steps = content.get("spec"), content.get("steps")
    try:
        spec = NetSpec(**described)  # type: ignore[arg-type]
    except TypeError as error:
        raise WorkloadError(f"The model {path} does not describe its network.") from error
    sizes = {"channels": (spec.channels, MAX_CHANNELS), "blocks": (spec.blocks, MAX_BLOCKS)}
    for name, (size, most) in sizes.items():
        if type(size) is not int or not 0 <= size <= most:
            raise WorkloadError(f"The model {path} asks for {size!r} {name}; 0 to {most} are possible.")
    if spec.config not in CONFIGS or type(steps) is not int or steps < 0:
        raise WorkloadError(f"The model {path} does not say which game it plays or how long it was trained.")
    return spec, steps
