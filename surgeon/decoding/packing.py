"""Weights in the order in which the CPU multiplies by them.

torch brings the weights of a matrix product into that order anew for every product, which for a
few rows takes as long as the product. `Packed` holds a copy that is brought into it once (oneDNN's)
and lets the model use that copy inside a block. In bfloat16 the results are the same to the bit. In
float32 oneDNN adds up in another order than MKL, which torch would call, and in one order for any
number of rows above 1.
"""

# Shape letters: none.

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.decoding.cache import available_bytes
from surgeon.live.architecture import base_model, device_of
from surgeon.live.processor import SMALL_MODEL, parameters_of

ROWS_AHEAD = 16
"""Rows that the order is chosen for. In float32 that of a single row is another."""
SHARE = 3
"""A copy is made where it takes at most one part in so many of the free memory."""


def packable(model: nn.Module) -> list[nn.Linear]:
    """The projections that a packed copy helps: those of a model on the CPU that isn't small."""
    if device_of(model).type != "cpu" or not torch.backends.mkldnn.is_available():
        return []
    if parameters_of(model) < SMALL_MODEL:
        return []
    known = {torch.float32}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        known.add(torch.bfloat16)
    found = [
        module
        for module in base_model(model).modules()
        # Others have forward passes of their own: quantised ones, those whose weights wait on disk.
        if type(module) is nn.Linear
        and "forward" not in vars(module)
        and module.weight.dtype in known
        and module.weight.device.type == "cpu"
    ]
    return found if bytes_of(found) * SHARE <= available_bytes(device_of(model)) else []


def bytes_of(linears: list[nn.Linear]) -> int:
    """What a copy of their weights takes, at most."""
    return sum(module.weight.nbytes for module in linears)


class Packed:
    """Copies of the weights of some projections, as they are now."""

    def __init__(self, linears: list[nn.Linear]):
        self.linears = linears
        self.forwards: list[Callable[[Tensor], Tensor]] = []
        copy_of: dict[tuple[Any, ...], Any] = {}
        for module in linears:
            weight = module.weight.detach()
            key = weight.data_ptr(), weight.shape, weight.stride()
            if key not in copy_of:
                copy_of[key] = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS_AHEAD)
            self.forwards.append(_forward(module, copy_of[key]))

    @contextmanager
    def used(self) -> Iterator[None]:
        """The model multiplies by the copies inside the block."""
        for module, forward in zip(self.linears, self.forwards, strict=True):
            module.__dict__["forward"] = forward
        try:
            yield
        finally:
            for module in self.linears:
                del module.__dict__["forward"]


def _forward(module: nn.Linear, packed: Any) -> Callable[[Tensor], Tensor]:
    multiply = torch.ops.mkldnn._linear_pointwise.default
    dtype, bias = module.weight.dtype, module.bias

    def forward(input: Tensor) -> Tensor:
        if input.dtype != dtype or torch.is_autocast_enabled("cpu"):
            return nn.functional.linear(input, module.weight, bias)
        return multiply(input, packed, bias, "none", [], "")

    return forward
