"""Attention of one new token per row, with sums that don't depend on how far other rows are.

On the CPU the matrix products inside attention add up more than 384 keys in parts whose size
follows from the longest row of the batch. Here longer spans are cut at fixed places instead and put
together again, so a row's result is the same to the bit whoever its neighbours are.
"""

# Shape letters: B rows, H key/value heads, G query heads per key/value head, K keys, D width.

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

NAME = "surgeon_slots"
SPAN = 384
"""Keys that are added up in one go."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention in the form that transformers' models call it: queries (B, heads, 1, D), keys and
    values (B, H, K, D), additive mask (B, 1, 1, K); returns (B, 1, heads, D)."""
    B, heads, _one, D = query.shape
    H, K = key.shape[1:3]
    query_BHGD = query.reshape(B, H, heads // H, D)
    if K <= SPAN:
        out = scaled_dot_product_attention(
            query_BHGD, key, value, attn_mask=attention_mask, scale=scaling
        )
        return out.reshape(B, 1, heads, D), None
    outs, weights = [], []
    for first in range(0, K, SPAN):
        span = slice(first, first + SPAN)
        mask = attention_mask[..., span]
        out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query_BHGD, key[:, :, span], value[:, :, span], attn_mask=mask, scale=scaling
        )
        # A row that hasn't come this far has nothing here: its share is 0, not 0/0.
        closed_B111 = mask.amax(-1, keepdim=True) == -torch.inf
        outs.append(out.masked_fill(closed_B111, 0))
        weights.append(log_sum[..., None].float().masked_fill(closed_B111, -torch.inf))
    weight_BHGS = torch.cat(weights, -1).softmax(-1)
    out = sum(out * weight_BHGS[..., s : s + 1] for s, out in enumerate(outs))
    return out.to(query.dtype).reshape(B, 1, heads, D), None  # pyright: ignore


@contextmanager
def attending(config: Any) -> Iterator[None]:
    """Let the models of this text configuration attend this way inside the block."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    before = config._attn_implementation_internal
    config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        config._attn_implementation_internal = before
