"""Compare two players over groups of games: ``python -m executors.workloads.evaluation --config KEY --a .. --b ..``.

A group is one random opening played from every distribution of the seats: with two players two games, with n
players n games of one A against n - 1 B and n games of one B against n - 1 A, so that equal players
expect half of the points.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from executors.workloads import games, players
from executors.workloads.contract import EXIT_OK, Arguments, Job, StopSignal, WorkloadError, run, whole
from executors.workloads.engines import BASELINES, Engine
from executors.workloads.game import AnyGame, State

OPENINGS, PLAYER_A, PLAYER_B = 0, 1, 2
OPENING_TRIES = 100
DRAW = -1


def seatings(seats: int) -> Tensor:
    """Bool [games of a group, seats]: true where A sits."""
    alone = torch.eye(seats, dtype=torch.bool)
    return alone if seats == 2 else torch.cat([alone, ~alone])


def openings(game: AnyGame, count: int, plies: int, generator: torch.Generator) -> State:
    """Return ``count`` unfinished positions after ``plies`` random plies.

    Raises WorkloadError when nearly every game is over by then.
    """
    found: list[State] = []
    missing = count
    for _ in range(OPENING_TRIES):
        state = game.start(missing)
        for _ in range(plies):
            weights = game.legal(state).to(torch.float32)
            # A finished game has no legal action and ignores the one it is given.
            weights[game.done(state)] = 1
            state = game.step(state, torch.multinomial(weights, 1, generator=generator)[:, 0])
        found.append(state.take(~game.done(state)))
        missing -= len(game.done(found[-1]))
        if missing == 0:
            return type(found[0]).join(found)
    raise WorkloadError(f"Too few games of {game.key} last {plies} random plies; lower --opening-plies.")


def play_out(
    game: AnyGame, state: State, a_sits: Tensor, a: Engine[State], b: Engine[State], stop: StopSignal
) -> Tensor | None:
    """Play all games to their end; int64 [games] of winning seats, DRAW for none; None when stopped.

    ``a_sits`` is bool [games, seats].
    """
    winner = torch.full((len(a_sits),), DRAW, device=a_sits.device)
    number = torch.arange(len(a_sits), device=a_sits.device)
    while len(number):
        if stop.requested:
            return None
        a_moves = a_sits[number].gather(1, game.mover(state)[:, None])[:, 0]
        action = torch.zeros(len(number), dtype=torch.int64, device=a_sits.device)
        for engine, moves in ((a, a_moves), (b, ~a_moves)):
            if bool(moves.any()):
                action[moves] = engine.decide(state.take(moves)).action
        state = game.step(state, action)
        over = game.done(state)
        if bool(over.any()):
            best, seat = game.scores(state.take(over)).max(1)
            winner[number[over]] = torch.where(best == 1, seat, DRAW)
            number, state = number[~over], state.take(~over)
    return winner


@dataclass(frozen=True, slots=True)
class Outcome:
    """What finished groups came to; all fields are ready for ``result.json``."""

    groups: int
    tally: list[dict[str, int]]
    histogram: list[int]
    half_points: int

    @property
    def games(self) -> int:
        return sum(row["wins_a"] + row["wins_b"] + row["draws"] for row in self.tally)


def score(winner: Tensor, pattern: Tensor) -> Outcome:
    """Count games [groups, games of a group] of winning seats against the seatings they were played in."""
    groups, size = winner.shape
    drawn = winner == DRAW
    a_won = pattern.expand(groups, -1, -1).gather(2, winner.clamp(min=0)[..., None])[..., 0] & ~drawn
    half_points = (2 * a_won + 1 * drawn).sum(1)
    tally = []
    for seats_a in sorted(set(pattern.sum(1).tolist())):
        rows = pattern.sum(1) == seats_a
        wins_a, draws = int(a_won[:, rows].sum()), int(drawn[:, rows].sum())
        total = groups * int(rows.sum())
        tally.append(
            {
                "seats_a": seats_a,
                "seats_b": pattern.shape[1] - seats_a,
                "wins_a": wins_a,
                "wins_b": total - wins_a - draws,
                "draws": draws,
            }
        )
    histogram = torch.bincount(half_points, minlength=2 * size + 1).tolist()
    return Outcome(groups, tally, histogram, int(half_points.sum()))


def parser() -> Arguments:
    """The arguments of this program."""
    found = Arguments("evaluation", "Compare two players over groups of seat-rotated games.")
    found.add_argument("--config", required=True, help="such as connect4_2p")
    found.add_argument("--a", required=True, help="a model file, random or heuristic")
    found.add_argument("--b", required=True, help="a model file, random or heuristic")
    found.add_argument("--groups", type=whole(1, 100_000), default=50)
    found.add_argument("--engine", choices=("gumbel-mcts", "policy-only"), default="gumbel-mcts")
    found.add_argument("--opening-plies", type=whole(0, 64), default=4)
    found.add_argument("--batch", type=whole(1, 65536), default=256, help="games in play at a time")
    players.add_engine_arguments(found, simulations=16, temperature=0.25)
    return found


def main(arguments: Sequence[str], stop: StopSignal) -> int:
    """Write tally and histogram of the finished groups; zero of them is an error."""
    chosen = parser().parse_args(arguments)
    device = players.prepare(chosen.threads, chosen.device)
    game = games.load(chosen.config, device)
    a = _player(chosen.a, PLAYER_A, game, chosen, device)
    b = _player(chosen.b, PLAYER_B, game, chosen, device)
    job = Job.open(chosen.job_dir)
    pattern = seatings(game.players).to(device)
    size = len(pattern)
    job.total = {"games": chosen.groups * size, "groups": chosen.groups}
    job.progress({"games": 0, "groups": 0}, force=True)
    generator = players.generator(chosen.seed, OPENINGS, device)
    winners: list[Tensor] = []
    done = 0
    with torch.inference_mode():
        while done < chosen.groups:
            count = min(max(1, chosen.batch // size), chosen.groups - done)
            state = openings(game, count, chosen.opening_plies, generator)
            rows = torch.arange(count, device=device).repeat_interleave(size)
            winner = play_out(game, state.take(rows), pattern.repeat(count, 1), a, b, stop)
            if winner is None:
                break
            winners.append(winner.view(count, size))
            done += count
            job.progress({"games": done * size, "groups": done})
    if not winners:
        raise WorkloadError("The evaluation was stopped before its first group ended; it says nothing.")
    outcome = score(torch.cat(winners).cpu(), pattern.cpu())
    counts = {"games": outcome.games, "groups": outcome.groups}
    metrics = {"score": f"{outcome.half_points / (2 * outcome.games):.4f}"}
    job.progress(counts, metrics, force=True)
    stopped = {"stopped": True} if done < chosen.groups else {}
    job.finish(
        {
            "counts": counts,
            "metrics": metrics,
            "tally": outcome.tally,
            "histogram": outcome.histogram,
            "outputs": [],
            **stopped,
        }
    )
    return EXIT_OK


def _player(word: str, stream: int, game: AnyGame, chosen: argparse.Namespace, device: torch.device) -> Engine[State]:
    generator = players.generator(chosen.seed, stream, device)
    if word in BASELINES:
        return players.engine(word, game, None, generator, chosen, explore=False)
    network = players.network(Path(word), game, device)
    return players.engine(chosen.engine, game, network, generator, chosen, explore=False)


if __name__ == "__main__":
    run(main)
