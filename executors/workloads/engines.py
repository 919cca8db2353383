"""Who plays: from a batch of positions to a batch of actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from executors.workloads.game import Game, S, State
from executors.workloads.net import Net
from executors.workloads.search import GumbelSearch, evaluator, foreseeing

NAMES = ("random", "heuristic", "policy-only", "gumbel-mcts")
BASELINES = NAMES[:2]
HEURISTIC_CHUNK = 16384


@dataclass(frozen=True, slots=True)
class Decision:
    """What was played, int64 [batch], and the policy to learn from it, float [batch, actions]."""

    action: Tensor
    policy: Tensor


T = TypeVar("T", bound=State, contravariant=True)


class Engine(Protocol[T]):
    """A player of unfinished positions."""

    def decide(self, state: T) -> Decision: ...


def sample(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one action a row, in proportion to non-negative weights [batch, actions]."""
    return torch.multinomial(weights, 1, generator=generator)[:, 0]


class Random(Generic[S]):
    """Every legal action is equally likely."""

    def __init__(self, game: Game[S], generator: torch.Generator) -> None:
        self.game = game
        self.generator = generator

    def decide(self, state: S) -> Decision:
        weights = self.game.legal(state).to(torch.float32)
        return Decision(sample(weights, self.generator), weights / weights.sum(1, keepdim=True))


class Heuristic(Generic[S]):
    """Wins at once when it can, avoids a reply that wins at once when it can, else plays by preference."""

    def __init__(self, game: Game[S], generator: torch.Generator) -> None:
        self.game = game
        self.generator = generator

    def decide(self, state: S) -> Decision:
        legal = self.game.legal(state)
        wins, over, after, place = self._wins(state, legal)
        loses = torch.zeros_like(legal)
        going_on = ~over
        if bool(going_on.any()):
            replies = after.take(going_on)
            answer, *_ = self._wins(replies, self.game.legal(replies))
            rows = place[0][going_on], place[1][going_on]
            loses[rows] = answer.any(1)
        safe = legal & ~loses
        best = torch.where(wins.any(1, keepdim=True), wins, torch.where(safe.any(1, keepdim=True), safe, legal))
        weights = best * self.game.preference
        return Decision(sample(weights, self.generator), weights / weights.sum(1, keepdim=True))

    def _wins(self, state: S, legal: Tensor) -> tuple[Tensor, Tensor, S, tuple[Tensor, Tensor]]:
        """Bool [batch, actions] of wins at once; then of each legal child: is it over, itself, its place."""
        wins = torch.zeros_like(legal)
        rows, actions = legal.nonzero(as_tuple=True)
        parts = []
        for start in range(0, len(rows), HEURISTIC_CHUNK):
            chunk = slice(start, start + HEURISTIC_CHUNK)
            parts.append(self.game.step(state.take(rows[chunk]), actions[chunk]))
        after = type(state).join(parts) if parts else state.take(rows)
        over = self.game.done(after)
        own = self.game.scores(after).gather(1, self.game.mover(state)[rows, None])[:, 0]
        wins[rows, actions] = over & (own == 1)
        return wins, over, after, (rows, actions)


class PolicyOnly(Generic[S]):
    """Asks the network once and draws from its policy; a low temperature favours the best actions."""

    def __init__(self, game: Game[S], net: Net, generator: torch.Generator, temperature: float) -> None:
        self.evaluate = evaluator(game, net)
        self.generator = generator
        self.temperature = temperature

    def decide(self, state: S) -> Decision:
        policy = torch.softmax(self.evaluate(state).logits / self.temperature, 1)
        return Decision(sample(policy, self.generator), policy)


class GumbelMcts(Generic[S]):
    """Gumbel search; with a generator it explores, without one it plays what it believes in.

    With ``foresight`` every position the search reaches is also tried for a win at once.
    """

    def __init__(
        self,
        game: Game[S],
        net: Net,
        generator: torch.Generator | None,
        simulations: int,
        considered: int,
        score_scale: float,
        foresight: bool,
    ) -> None:
        self.game = game
        self.generator = generator
        evaluate = evaluator(game, net)
        self.search = GumbelSearch(
            game,
            foreseeing(game, evaluate) if foresight else evaluate,
            simulations,
            considered=considered,
            score_scale=score_scale,
        )

    def decide(self, state: S) -> Decision:
        legal = self.game.legal(state)
        noise = torch.zeros(legal.shape, device=legal.device)
        if self.generator is not None:
            noise = noise.exponential_(generator=self.generator).log().neg()
        improved = self.search.run(state, noise)
        return Decision(improved.action, improved.policy)
