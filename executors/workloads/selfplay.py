"""Play games against oneself: ``python -m executors.workloads.selfplay --config KEY --games N``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from executors.workloads import games, net, players, shards
from executors.workloads.contract import (
    EXIT_OK,
    Arguments,
    Job,
    StopSignal,
    WorkloadError,
    run,
    whole,
    write_atomically,
)
from executors.workloads.engines import NAMES, Engine, sample
from executors.workloads.game import AnyGame, State
from executors.workloads.shards import Positions

PLAY, OPENINGS = 0, 1


class Recorder:
    """Keeps the plies of running games and turns finished games into positions."""

    def __init__(self, game: AnyGame, seed: int, count: int) -> None:
        self.game = game
        self.seed = seed
        nobody = torch.zeros(0, dtype=torch.int64)
        self._plies = [
            (
                game.observe(game.start(0)).cpu(),
                torch.zeros((0, game.actions), dtype=torch.float16),
                nobody,
                nobody,
            )
        ]
        self._scores = torch.zeros((count, game.players))
        self._finished = torch.zeros(count, dtype=torch.bool)

    def add(self, state: State, policy: Tensor, number: Tensor, chosen: Tensor) -> None:
        """Keep the rows where ``chosen`` is true of one ply of the games numbered ``number``."""
        rows = state.take(chosen)
        self._plies.append(
            (
                self.game.observe(rows).cpu(),
                policy[chosen].to(torch.float16).cpu(),
                self.game.mover(rows).cpu(),
                number[chosen].cpu(),
            )
        )

    def finish(self, number: Tensor, scores: Tensor) -> None:
        self._finished[number.cpu()] = True
        self._scores[number.cpu()] = scores.cpu()

    def drain(self) -> Positions:
        """Take out the positions of all finished games, ordered by game, then ply."""
        observation, policy, mover, number = (torch.cat(part) for part in zip(*self._plies, strict=True))
        over = self._finished[number]
        self._plies = [(observation[~over], policy[~over], mover[~over], number[~over])]
        order = torch.argsort(number[over], stable=True)
        observation, policy, mover, number = (tensor[over][order] for tensor in (observation, policy, mover, number))
        seats = (torch.arange(self.game.players) + mover[:, None]) % self.game.players
        game = number.numpy()
        starts = np.flatnonzero(np.diff(game, prepend=-1))
        ply = np.arange(len(game)) - np.repeat(starts, np.diff(np.append(starts, len(game))))
        return Positions(
            observation.numpy(),
            policy.numpy(),
            self._scores[number].gather(1, seats).to(torch.float16).numpy(),
            game,
            ply.astype(np.int32),
            np.full(len(game), self.seed, np.int64),
        )


def play(
    game: AnyGame,
    engine: Engine[State],
    recorder: Recorder,
    count: int,
    batch: int,
    opening_plies: int,
    generator: torch.Generator,
    stop: StopSignal,
) -> Iterator[int]:
    """Play games 0 .. count - 1, ``batch`` at a time, and yield the number finished after each ply.

    Each game begins with 0 to ``opening_plies`` random plies, drawn evenly and not recorded. A finished game
    makes room for the next in the queue. Ends early when ``stop`` is requested.
    """
    device = generator.device
    size = min(batch, count)
    state = game.start(size)
    number = torch.arange(size, device=device)
    opening = torch.randint(opening_plies + 1, (count,), generator=generator, device=device)
    plies = torch.zeros(count, dtype=torch.int64, device=device)
    queued, finished = size, 0
    while len(number) and not stop.requested:
        opened = plies[number] >= opening[number]
        action = sample(game.legal(state).to(torch.float32), generator)
        if bool(opened.any()):
            decision = engine.decide(state.take(opened))
            action[opened] = decision.action
            policy = torch.zeros((len(number), game.actions), device=device)
            policy[opened] = decision.policy
            recorder.add(state, policy, number, opened)
        state = game.step(state, action)
        plies[number] += 1
        over = game.done(state)
        if bool(over.any()):
            places = over.nonzero()[:, 0]
            recorder.finish(number[over], game.scores(state.take(over)))
            finished += len(places)
            filled = places[: max(0, count - queued)]
            number[filled] = torch.arange(queued, queued + len(filled), device=device)
            state.put(filled, game.start(len(filled)))
            queued += len(filled)
            going_on = torch.ones_like(over)
            going_on[places[len(filled) :]] = False
            number, state = number[going_on], state.take(going_on)
        yield finished


def parser() -> Arguments:
    """The arguments of this program."""
    found = Arguments("selfplay", "Play games against oneself and write them as training data.")
    found.add_argument("--config", required=True, help="such as connect4_2p")
    found.add_argument("--games", type=whole(1, 1_000_000), default=256)
    found.add_argument("--engine", choices=NAMES, help="default: gumbel-mcts with a model, else random")
    found.add_argument("--model", type=Path, help="default: the untrained network of the seed")
    found.add_argument("--channels", type=whole(1, net.MAX_CHANNELS), default=32, help="without --model")
    found.add_argument("--blocks", type=whole(0, net.MAX_BLOCKS), default=1, help="without --model")
    found.add_argument("--batch", type=whole(1, 8192), default=64, help="games in play at a time")
    found.add_argument("--opening-plies", type=whole(0, 64), default=4, help="most random plies at the start")
    found.add_argument("--shard-games", type=whole(1), default=1024, help="least games in a full shard")
    players.add_engine_arguments(found, simulations=32, temperature=1.0)
    return found


def main(arguments: Sequence[str], stop: StopSignal) -> int:
    """Write shards and their manifest; on SIGTERM those of the games finished so far."""
    chosen = parser().parse_args(arguments)
    device = players.prepare(chosen.threads, chosen.device)
    game = games.load(chosen.config, device)
    name = chosen.engine or ("gumbel-mcts" if chosen.model else "random")
    if chosen.model:
        network = players.network(chosen.model, game, device)
    else:
        spec = net.NetSpec(game.key, chosen.channels, chosen.blocks)
        network = net.fused(net.untrained(game, spec, chosen.seed)).to(device)
    generator = players.generator(chosen.seed, PLAY, device)
    engine = players.engine(name, game, network, generator, chosen, explore=True)
    job = Job.open(chosen.job_dir)
    for old in job.out.glob("games-*.npz"):
        old.unlink()
    job.total = {"games": chosen.games}
    job.progress({"games": 0, "positions": 0}, force=True)
    recorder = Recorder(game, chosen.seed, chosen.games)
    outputs: list[dict[str, object]] = []
    written = positions = finished = 0

    def flush() -> None:
        nonlocal written, positions
        drained = recorder.drain()
        count = finished - written
        path = f"games-{len(outputs):05d}.npz"
        shards.write(job.out / path, game.key, drained)
        counts = {"games": count, "positions": len(drained)}
        outputs.append({"path": path, "kind": "games", "counts": counts})
        written, positions = finished, positions + len(drained)

    began = time.monotonic()
    openings = players.generator(chosen.seed, OPENINGS, device)
    with torch.inference_mode():
        for finished in play(game, engine, recorder, chosen.games, chosen.batch, chosen.opening_plies, openings, stop):
            if finished - written >= chosen.shard_games:
                flush()
            job.progress({"games": finished, "positions": positions})
        if finished > written:
            flush()
    if not outputs:
        raise WorkloadError("Selfplay was stopped before its first game ended; there is nothing to keep.")
    counts = {"games": finished, "positions": positions}
    metrics = {
        "games_per_second": f"{finished / (time.monotonic() - began):.2f}",
        "positions_per_game": f"{positions / finished:.1f}",
    }
    manifest = {"config": game.key, "engine": name, "seed": chosen.seed, "counts": counts, "shards": outputs}
    write_atomically(job.out / "manifest.json", json.dumps(manifest, indent=1).encode())
    job.progress(counts, metrics, force=True)
    stopped = {"stopped": True} if finished < chosen.games else {}
    job.finish({"counts": counts, "metrics": metrics, "outputs": outputs, **stopped})
    return EXIT_OK


if __name__ == "__main__":
    run(main)
