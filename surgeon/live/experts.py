"""What routed experts compute, seen from outside: transformers' experts report h of the chosen
ones through `_apply_gate`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.live.architecture import causal_lm, text_config
from surgeon.live.blocks import FfnSite

Told = Callable[[Tensor, Tensor, Tensor], None]
"""Called with h (N, C, units) of the experts that each token passes through, their numbers (N, C),
ascending, and their routing weights (N, C)."""


def tap_experts(undo: ExitStack, site: FfnSite, told: Told) -> None:
    """The experts' activations come sorted by expert, over all tokens: put them back by token."""
    module: Any = site.module
    chosen: dict[str, Tensor] = {}

    def before(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        chosen["expert"], chosen["weight"] = args[1].detach(), args[2].detach()

    def gate(gate_up: Tensor) -> Tensor:
        h = type(module)._apply_gate(module, gate_up)
        expert_NC, weight_NC = chosen.pop("expert"), chosen.pop("weight")
        N, C = expert_NC.shape
        place_NC = torch.arange(N * C, device=h.device).view(N, C)
        if module.config._experts_implementation == "grouped_mm":
            # The same call on the same numbers as the library makes, so the same order.
            _, order = torch.sort(expert_NC.reshape(-1))
            place_NC = torch.empty_like(order).scatter_(0, order, place_NC.flatten()).view(N, C)
        expert_NC, ascending_NC = expert_NC.sort(-1)
        place_NC = place_NC.gather(1, ascending_NC)
        h_NCU = h.detach()[place_NC.flatten()].view(N, C, site.n_units)
        told(h_NCU, expert_NC, weight_NC.gather(1, ascending_NC))
        return h

    module._apply_gate = gate
    undo.callback(module.__dict__.pop, "_apply_gate", None)
    undo.callback(module.register_forward_pre_hook(before).remove)


@contextmanager
def experts_reported(model: nn.Module, sites: Sequence[FfnSite]) -> Iterator[None]:
    """Experts that are computed one by one never report; let them be computed together."""
    kind: Any = getattr(text_config(model), "_experts_implementation", None)
    together = kind in ("grouped_mm", "batched_mm")
    if together or not any(site.experts for site in sites):
        yield
        return
    causal_lm(model).set_experts_implementation("grouped_mm")
    try:
        yield
    finally:
        causal_lm(model).set_experts_implementation(kind)
