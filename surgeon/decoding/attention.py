"""Masks and attention for rows that are at different positions.

The model itself asks for its masks: transformers' mask functions hand the pattern (causal, sliding
window, chunks) to whatever is registered under the name of the model's attention, and take each
row's position from the cache. Names of our own stand there while a decoder runs the model.

On the CPU the matrix products inside attention add up more than 384 keys in parts whose size
follows from the longest row of the batch. Here longer spans are cut at fixed places instead and put
together again, so a row's result is the same to the bit whoever its neighbours are.
"""

# Shape letters: B rows, H key/value heads, G query heads per key/value head, T queries, K keys,
# D width.

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

NAMES = {"sdpa": "surgeon_sdpa", "eager": "surgeon_eager"}
"""The model's own attention under masks of ours."""
ONE_TOKEN = "surgeon_one_token"
"""`attend` instead."""
SPAN = 384
"""Keys that are added up in one go."""


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Tensor | int,
    mask_function: Callable[..., Tensor],
    dtype: torch.dtype,
    device: Any,
    **_: Any,
) -> Tensor:
    """The additive mask (B or 1, 1, T, K) of a pattern, in the form that transformers asks for it.

    `q_offset` is the position of the first query, one for each row or one for all. What a pattern
    adds to the indices (padding, window, chunk) is in `mask_function`, which says what is open.
    """
    if isinstance(q_offset, Tensor):
        q_offset = q_offset[:, None, None, None]
    query_T1 = torch.arange(q_length, device=device)[:, None] + q_offset
    key_K = torch.arange(kv_length, device=device)[None, None, None]
    row_B = torch.arange(batch_size, device=device)[:, None, None, None]
    query = query_T1 if query_T1.dim() == 4 else query_T1[None, None]
    is_open = mask_function(row_B, row_B.new_zeros(1, 1, 1, 1), query, key_K)
    additive = torch.zeros(is_open.shape, dtype=dtype, device=device)
    return additive.masked_fill_(is_open.logical_not_(), -torch.inf)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention in the form that transformers' models call it: queries (B, heads, 1, D), keys and
    values (B, H, K, D), additive mask (B, 1, 1, K); returns (B, 1, heads, D)."""
    B, heads, _one, D = query.shape
    H, K = key.shape[1:3]
    if value.shape[-1] != D or more.get("position_bias") is not None or len(attention_mask) != B:
        return own_sdpa(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=False, **more
        )
    query_BHGD = query.reshape(B, H, heads // H, D)
    if K <= SPAN:
        out = scaled_dot_product_attention(
            query_BHGD, key, value, attn_mask=attention_mask, scale=scaling
        )
        return out.reshape(B, 1, heads, D), None
    outs, weights = [], []
    for first in range(0, K, SPAN):
        span = slice(first, first + SPAN)
        part = attention_mask[..., span]
        out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query_BHGD, key[:, :, span], value[:, :, span], attn_mask=part, scale=scaling
        )
        # A row that hasn't come this far has nothing here: its share is 0, not 0/0.
        closed_B111 = part.amax(-1, keepdim=True) == -torch.inf
        outs.append(out.masked_fill(closed_B111, 0))
        weights.append(log_sum[..., None].float().masked_fill(closed_B111, -torch.inf))
    weight_BHGS = torch.cat(weights, -1).softmax(-1)
    out = sum(out * weight_BHGS[..., s : s + 1] for s, out in enumerate(outs))
    return out.to(query.dtype).reshape(B, 1, heads, D), None  # pyright: ignore


def own_sdpa(*args: Any, **more: Any) -> Any:
    """transformers' attention by torch's fused function."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS["sdpa"](*args, **more)


def own_eager(module: nn.Module, *args: Any, **more: Any) -> Any:
    """The family's plain attention, which stands beside its layers under a fixed name."""
    return sys.modules[type(module).__module__].eager_attention_forward(module, *args, **more)


@cache
def register() -> None:
    """Make our names known to transformers."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for name, function in zip(
        (*NAMES.values(), ONE_TOKEN), (own_sdpa, own_eager, attend), strict=True
    ):
        ALL_ATTENTION_FUNCTIONS.register(name, function)
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, mask)


@contextmanager
def attending(config: Any, name: str) -> Iterator[None]:
    """Let the models of this text configuration attend by that name inside the block."""
    register()
    before = config._attn_implementation_internal
    config._attn_implementation_internal = name
    try:
        yield
    finally:
        config._attn_implementation_internal = before
