"""AdamW over weights of half precision, whose steps are made in float32 copies of them."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

BETAS, EPSILON = (0.9, 0.999), 1e-8
MASTER_BYTES = 12
"""Of a weight's master copy and its two moments."""


class MasteredAdamW:
    """AdamW, with a float32 master copy of every weight: a step that bfloat16 would round away adds
    up there, and the weight is the copy, rounded.

    A weight takes 16 bytes, as in float32 (2, 2 of gradient, 4 of master, 8 of moments), but
    activations take half, and no pass casts weights. Weights are stepped one after the other, so
    that one gradient at a time is held in float32. Has the parts of torch's AdamW that `fit` uses:
    groups with their rate, and the state by parameter.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], weight_decay: float = 0.0):
        self.param_groups: list[dict[str, Any]] = [
            {"params": list(parameters), "lr": 0.0, "weight_decay": weight_decay}
        ]
        self.state: dict[nn.Parameter, dict[str, Tensor]] = defaultdict(dict)
        """Of what has had a gradient: the parts of a model that text doesn't pass have none."""

    @torch.no_grad()
    def step(self) -> None:
        """Move every weight that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group["lr"], group["weight_decay"])

    def _move(self, parameter: nn.Parameter, lr: float, weight_decay: float) -> None:
        state = self.state[parameter]
        if not state:
            master = parameter.detach().float().clone()
            state |= {
                "step": torch.tensor(0.0), "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master), "master": master,
            }  # fmt: skip
        adamw(
            [state["master"]], [parameter.grad.float()],  # pyright: ignore
            [state["exp_avg"]], [state["exp_avg_sq"]], [], [state["step"]],
            foreach=False, amsgrad=False, beta1=BETAS[0], beta2=BETAS[1], lr=lr,
            weight_decay=weight_decay, eps=EPSILON, maximize=False,
        )  # fmt: skip
        parameter.copy_(state["master"])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if set_to_none:
                    parameter.grad = None
                elif parameter.grad is not None:
                    parameter.grad.zero_()


def optimizer_of(
    parameters: Sequence[nn.Parameter], weight_decay: float
) -> torch.optim.AdamW | MasteredAdamW:
    """AdamW, with master copies where any weight isn't float32."""
    if all(parameter.dtype == torch.float32 for parameter in parameters):
        return torch.optim.AdamW(parameters, weight_decay=weight_decay)
    return MasteredAdamW(parameters, weight_decay)
