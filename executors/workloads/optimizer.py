"""AdamW on lists of tensors.

Written out because the first use of torch.optim imports the compiler, which costs a short job more
seconds than its training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

#: of the means of gradients and of their squares, from step to step
DECAYS = (0.9, 0.999)
EPSILON = 1e-8


class AdamW:
    """Loshchilov and Hutter, "Decoupled weight decay regularization" (ICLR 2019), algorithm 2."""

    def __init__(self, parameters: Sequence[Tensor], *, weight_decay: float) -> None:
        self.parameters = list(parameters)
        self.weight_decay = weight_decay
        self.steps = 0
        self.means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.squares = [torch.zeros_like(parameter) for parameter in self.parameters]

    @torch.no_grad()
    def step(self, learning_rate: float, clip: float) -> None:
        """Apply the gradients, scaled down to a norm of at most ``clip``, and forget them."""
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
        scale = float(torch.clamp(clip / (norm + 1e-6), max=1.0))
        first, second = DECAYS
        self.steps += 1
        rate = learning_rate / (1 - first**self.steps)
        correction = (1 - second**self.steps) ** 0.5
        for parameter, gradient, mean, square in zip(self.parameters, gradients, self.means, self.squares, strict=True):
            gradient = gradient * scale
            mean.mul_(first).add_(gradient, alpha=1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            parameter.mul_(1 - learning_rate * self.weight_decay)
            parameter.addcdiv_(mean, (square.sqrt() / correction).add_(EPSILON), value=-rate)
            parameter.grad = None

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "means": self.means, "squares": self.squares}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state of the same parameters; raises RuntimeError when the shapes differ."""
        self.steps = state["steps"]
        for mine, theirs in ((self.means, state["means"]), (self.squares, state["squares"])):
            for tensor, value in zip(mine, theirs, strict=True):
                tensor.copy_(value)
