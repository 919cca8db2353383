"""Gumbel search over many games at once, the tree held in tensors.

Root: actions sampled without replacement by Gumbel noise, halved in rounds; inside the tree: the action that
brings the visits closest to the improved policy. After Danihelka et al., "Policy improvement by planning with
Gumbel" (ICLR 2022), sections 3 to 5. With more than two players every edge keeps the score of the
seat that chooses it (max-n).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from executors.workloads.game import Game, S
from executors.workloads.net import Net

IMPOSSIBLE = -1e9


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Beliefs about a batch: logits [batch, actions], illegal ones IMPOSSIBLE; scores [batch, seats]."""

    logits: Tensor
    scores: Tensor


def evaluator(game: Game[S], net: Net) -> Callable[[S], Evaluation]:
    """Return the function that asks the network about positions; finished ones get their true scores."""
    seats = torch.arange(game.players)

    def evaluate(state: S) -> Evaluation:
        logits, log_scores = net(game.observe(state))
        mover = game.mover(state)[:, None]
        by_seat = log_scores.exp().gather(1, (seats.to(mover.device) - mover) % game.players)
        scores = torch.where(game.done(state)[:, None], game.scores(state), by_seat)
        return Evaluation(logits.masked_fill(~game.legal(state), IMPOSSIBLE), scores)

    return evaluate


@dataclass(frozen=True, slots=True)
class Improved:
    """The outcome of a search: action [batch], policy [batch, actions], and the mover's score [batch]."""

    action: Tensor
    policy: Tensor
    score: Tensor


def foreseeing(game: Game[S], evaluate: Callable[[S], Evaluation]) -> Callable[[S], Evaluation]:
    """Add one ply of certainty to an evaluator: where the mover can win at once, it does.

    Other actions count as impossible there. Trying all actions by the rules costs less than the network's
    forward pass and lets a search of few simulations see every threat of the next seat.
    """

    def foresee(state: S) -> Evaluation:
        found = evaluate(state)
        wins = winning(game, state)
        won = wins.any(1, keepdim=True)
        seats = torch.arange(game.players, device=won.device)
        certain = (game.mover(state)[:, None] == seats).to(found.scores.dtype)
        return Evaluation(found.logits.masked_fill(won & ~wins, IMPOSSIBLE), torch.where(won, certain, found.scores))

    return foresee


def winning(game: Game[S], state: S) -> Tensor:
    """Bool [batch, actions]: the actions that win the game for the mover at once."""
    wins = game.legal(state)
    rows, actions = wins.nonzero(as_tuple=True)
    after = game.step(state.take(rows), actions)
    own = game.scores(after).gather(1, game.mover(state)[rows, None])[:, 0]
    wins[rows, actions] = game.done(after) & (own == 1)
    return wins


def halving_schedule(considered: int, simulations: int) -> list[int]:
    """For each simulation, how many visits the root action to be tried next has had so far."""
    if considered <= 1:
        return list(range(simulations))
    rounds = max(1, (considered - 1).bit_length())
    schedule: list[int] = []
    visits = [0] * considered
    left = considered
    while len(schedule) < simulations:
        for _ in range(max(1, simulations // (rounds * left))):
            schedule.extend(visits[:left])
            visits[:left] = [count + 1 for count in visits[:left]]
        left = max(2, left // 2)
    return schedule[:simulations]


class GumbelSearch(Generic[S]):
    """Searches ``simulations`` steps from every position of a batch.

    ``considered`` root actions enter the halving. A searched score q weighs
    (``visit_offset`` + most visits) * ``score_scale`` * q against the logits.
    """

    def __init__(
        self,
        game: Game[S],
        evaluate: Callable[[S], Evaluation],
        simulations: int,
        *,
        considered: int = 16,
        visit_offset: float = 50.0,
        score_scale: float = 1.0,
    ) -> None:
        self.game = game
        self.evaluate = evaluate
        self.simulations = simulations
        self.visit_offset = visit_offset
        self.score_scale = score_scale
        most = min(considered, game.actions)
        self._schedules = torch.tensor([halving_schedule(count, simulations) for count in range(most + 1)])
        self._most = most

    def run(self, root: S, noise: Tensor) -> Improved:
        """Search unfinished positions; ``noise`` [batch, actions] is Gumbel(0, 1) to explore, zero not to."""
        tree = _Tree(self, root)
        logits = tree.logits[:, 0]
        legal = logits > IMPOSSIBLE / 2
        schedule = self._schedules.to(logits.device)[legal.sum(1).clamp(max=self._most)]
        preference = (noise + logits).masked_fill(~legal, IMPOSSIBLE)
        for simulation in range(self.simulations):
            visits = tree.visits[:, 0]
            eligible = legal & (visits == schedule[:, simulation, None])
            sigma = self._sigma(visits, tree.completed(0))
            tree.simulate(simulation, (preference + sigma).masked_fill(~eligible, 2 * IMPOSSIBLE).argmax(1))
        visits = tree.visits[:, 0]
        sigma = self._sigma(visits, tree.completed(0))
        most_visited = visits == visits.amax(1, keepdim=True)
        action = (preference + sigma).masked_fill(~(legal & most_visited), 2 * IMPOSSIBLE).argmax(1)
        policy = torch.softmax(logits + sigma, 1)
        return Improved(action, policy, (policy * tree.completed(0)).sum(1))

    def _sigma(self, visits: Tensor, completed: Tensor) -> Tensor:
        return (self.visit_offset + visits.amax(-1, keepdim=True)) * self.score_scale * completed


class _Tree(Generic[S]):
    """The trees of one batch: node 0 is the root, simulation ``i`` adds node ``i + 1``.

    Node fields have the shape [batch, nodes, ...]; ``flat`` views join the first two axes.
    """

    def __init__(self, search: GumbelSearch[S], root: S) -> None:
        game = search.game
        self.search = search
        self.game = game
        found = search.evaluate(root)
        batch, actions = found.logits.shape
        device = found.logits.device
        nodes = search.simulations + 1
        self.nodes = nodes
        self.origin = torch.arange(batch, device=device) * nodes
        self.states = root.take(torch.arange(batch, device=device).repeat_interleave(nodes))
        self.logits = torch.zeros((batch, nodes, actions), device=device)
        self.scores = torch.zeros((batch, nodes, game.players), device=device)
        self.mover = torch.zeros((batch, nodes), dtype=torch.int64, device=device)
        self.done = torch.zeros((batch, nodes), dtype=torch.bool, device=device)
        self.visits = torch.zeros((batch, nodes, actions), device=device)
        self.totals = torch.zeros((batch, nodes, actions), device=device)
        self.children = torch.full((batch, nodes, actions), -1, dtype=torch.int64, device=device)
        # The next action inside the tree changes only where a simulation passed, so it is kept.
        self.chosen = torch.zeros((batch, nodes), dtype=torch.int64, device=device)
        self.logits[:, 0] = found.logits
        self.scores[:, 0] = found.scores
        self.mover[:, 0] = game.mover(root)

    def completed(self, node: int) -> Tensor:
        """Scores [batch, actions] of one node's mover, unvisited actions filled with the mixed value."""
        own = self.scores[:, node].gather(1, self.mover[:, node, None])
        return _completed(self.logits[:, node], own, self.visits[:, node], self.totals[:, node])

    def simulate(self, simulation: int, action: Tensor) -> None:
        """Walk from the root through ``action`` to a new or finished node and carry its scores back."""
        children, done, chosen = self.children.flatten(), self.done.flatten(), self.chosen.flatten()
        actions = self.game.actions
        parent, edge = self.origin, self.origin * actions + action
        walking = torch.ones_like(action, dtype=torch.bool)
        path = [edge]
        walks = [walking]
        while True:
            child = children[edge]
            walking = walking & (child >= 0) & ~done[child.clamp(min=0)]
            if not bool(walking.any()):
                break
            parent = torch.where(walking, child, parent)
            edge = torch.where(walking, parent * actions + chosen[parent], edge)
            path.append(edge)
            walks.append(walking)
        leaf = self._expand(simulation, parent, edge)
        edges, walked = torch.stack(path, 1), torch.stack(walks, 1)
        parents = edges // actions
        gained = self.scores.flatten(0, 1)[leaf].gather(1, self.mover.flatten()[parents])
        # Within a walk every edge is another one, so plain indexed addition counts each once.
        passed = edges[walked]
        self.visits.view(-1)[passed] += 1
        self.totals.view(-1)[passed] += gained[walked]
        self._choose(torch.cat([parents[walked], leaf]))

    def _expand(self, simulation: int, parent: Tensor, edge: Tensor) -> Tensor:
        """Return each game's leaf: the finished child already known, or the node added now."""
        known = self.children.view(-1)[edge]
        new = self.origin + simulation + 1
        state = self.game.step(self.states.take(parent), edge % self.game.actions)
        found = self.search.evaluate(state)
        node = simulation + 1
        self.states.put(new, state)
        self.logits[:, node] = found.logits
        self.scores[:, node] = found.scores
        self.mover[:, node] = self.game.mover(state)
        self.done[:, node] = self.game.done(state)
        leaf = torch.where(known >= 0, known, new)
        self.children.view(-1)[edge] = leaf
        return leaf

    def _choose(self, nodes: Tensor) -> None:
        """Pick the next action below these flat nodes: the one furthest behind the improved policy."""
        logits = self.logits.flatten(0, 1)[nodes]
        visits = self.visits.flatten(0, 1)[nodes]
        own = self.scores.flatten(0, 1)[nodes].gather(1, self.mover.flatten()[nodes, None])
        completed = _completed(logits, own, visits, self.totals.flatten(0, 1)[nodes])
        offset, scale = self.search.visit_offset, self.search.score_scale
        improved = torch.softmax(logits + (offset + visits.amax(1, keepdim=True)) * scale * completed, 1)
        behind = improved - visits / (1 + visits.sum(1, keepdim=True))
        self.chosen.view(-1)[nodes] = behind.masked_fill(logits < IMPOSSIBLE / 2, IMPOSSIBLE).argmax(1)


def _completed(logits: Tensor, own: Tensor, visits: Tensor, totals: Tensor) -> Tensor:
    """Searched scores where there are visits, elsewhere the paper's mixed value (appendix D, equation 33)."""
    visited = visits > 0
    searched = totals / visits.clamp(min=1)
    weight = torch.softmax(logits, 1) * visited
    mean = (weight * searched).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1e-12)
    count = visits.sum(1, keepdim=True)
    return torch.where(visited, searched, (own + count * mean) / (1 + count))
