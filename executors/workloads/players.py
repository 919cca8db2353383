"""From the words on a command line to a device, a network and an engine."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from executors.workloads import net
from executors.workloads.contract import WorkloadError, real, whole
from executors.workloads.engines import Engine, GumbelMcts, Heuristic, PolicyOnly, Random
from executors.workloads.game import AnyGame, State


def prepare(threads: int, device: str) -> torch.device:
    """Set up torch for this process and return the device; raises WorkloadError without the GPU asked for."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    there = torch.cuda.is_available() if device != "cpu" else False
    if device == "cuda" and not there:
        raise WorkloadError("There is no CUDA device here; use --device cpu or auto.")
    return torch.device("cuda" if there else "cpu")


def add_engine_arguments(parser: argparse.ArgumentParser, *, simulations: int, temperature: float) -> None:
    """The arguments that ``engine`` reads."""
    parser.add_argument("--simulations", type=whole(1, 4096), default=simulations)
    parser.add_argument("--temperature", type=real(0.01, 100), default=temperature, help="of policy-only")
    parser.add_argument("--foresight", choices=("on", "off"), default="on", help="try leaves for wins")
    parser.add_argument("--considered", type=whole(1, 1024), default=16, help="root actions in the halving")
    parser.add_argument("--score-scale", type=real(0.001, 100), default=1.0, help="trust in searched scores")


def engine(
    name: str,
    game: AnyGame,
    network: net.Net | None,
    generator: torch.Generator,
    chosen: argparse.Namespace,
    *,
    explore: bool,
) -> Engine[State]:
    """Build an engine; without ``explore`` a search plays what it believes best.

    Raises WorkloadError when the engine needs a network and there is none.
    """
    if name == "random":
        return Random(game, generator)
    if name == "heuristic":
        return Heuristic(game, generator)
    if network is None:
        raise WorkloadError(f"The engine {name} needs a model; give one by --model.")
    if name == "policy-only":
        return PolicyOnly(game, network, generator, chosen.temperature)
    drawing = generator if explore else None
    return GumbelMcts(
        game,
        network,
        drawing,
        simulations=chosen.simulations,
        considered=chosen.considered,
        score_scale=chosen.score_scale,
        foresight=chosen.foresight == "on",
    )


def network(path: Path, game: AnyGame, device: torch.device) -> net.Net:
    """Load a model for playing."""
    loaded, _ = net.load(path, game)
    return net.fused(loaded).to(device)


def generator(seed: int, stream: int, device: torch.device) -> torch.Generator:
    """Return an independent source of randomness for each (seed, stream)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + stream * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & (2**63 - 1)
    return torch.Generator(device).manual_seed(mixed)
