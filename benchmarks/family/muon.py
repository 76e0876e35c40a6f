"""Muon in float32: torch's own orthogonalises in bfloat16, which many CPUs only emulate (there it
took 19 times as long as this, and more than the rest of a training step).
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Of the quintic iteration whose slope at zero is steepest (Jordan et al. 2024)."""


def orthogonalised(g_NRC: Tensor, steps: int = 5) -> Tensor:
    """The nearest matrices with equal singular values, roughly (.7 to 1.2), R <= C."""
    a, b, c = COEFFICIENTS
    x_NRC = g_NRC / (g_NRC.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram_NRR = x_NRC @ x_NRC.mT
        x_NRC = a * x_NRC + (b * gram_NRR + c * gram_NRR @ gram_NRR) @ x_NRC
    return x_NRC


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised and scaled to the size of AdamW's updates; matrices of one
    shape are worked on together."""

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            alike: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[weight.shape].append(weight)
            for (rows, columns), weights in alike.items():
                update = torch.stack([self._pushed(w, group["momentum"]) for w in weights])
                tall = rows > columns
                update = orthogonalised(update.mT if tall else update)
                update = update.mT if tall else update
                size = 0.2 * max(rows, columns) ** 0.5 * group["lr"]
                for weight, direction in zip(weights, update, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.sub_(direction, alpha=size)

    def _pushed(self, weight: torch.nn.Parameter, momentum: float) -> Tensor:
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(state["momentum"], momentum)
