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
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

NAMES = {"sdpa": "surgeon_sdpa", "eager": "surgeon_eager"}
"""The model's own attention under masks of ours."""
ONE_TOKEN = "surgeon_one_token"
"""`attend` instead."""
SPAN = 384
"""Keys that are added up in one go."""
STEP = 128
"""Rows whose lengths agree up to so many keys are attended to together."""


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
    for span in spans_of(attention_mask):
        out = torch.zeros_like(query_BHGD)
        weight_BHG = query.new_full((B, H, heads // H), -torch.inf, dtype=torch.float32)
        for group in span.groups:
            q, k, v, part = group.of(query_BHGD, key, value, attention_mask, span.first)
            found, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q, k, v, attn_mask=part, scale=scaling
            )
            out[group.where], weight_BHG[group.where] = found, log_sum.float()
        # A row that hasn't come this far has nothing here: its share is 0, not 0/0.
        if span.closed is not None:
            out[span.closed], weight_BHG[span.closed] = 0, -torch.inf
        outs.append(out)
        weights.append(weight_BHG[..., None])
    weight_BHGS = torch.cat(weights, -1).softmax(-1)
    out = sum(out * weight_BHGS[..., s : s + 1] for s, out in enumerate(outs))
    return out.to(query.dtype).reshape(B, 1, heads, D), None  # pyright: ignore


class RowGroup(NamedTuple):
    """Rows that see keys of a span up to the same place."""

    rows: Tensor | None
    """Their numbers; None for all."""
    keys: int
    """So many of the span's first keys."""

    @property
    def where(self) -> "Tensor | slice":
        """What selects the rows."""
        return slice(None) if self.rows is None else self.rows

    def of(
        self, query: Tensor, key: Tensor, value: Tensor, mask_B11K: Tensor, first: int
    ) -> list[Tensor]:
        """Its part of queries, keys, values and mask, for the span that begins at `first`."""
        seen = slice(first, first + self.keys)
        parts = [query, key[:, :, seen], value[:, :, seen], mask_B11K[..., seen]]
        return parts if self.rows is None else [part[self.rows] for part in parts]


class KeySpan(NamedTuple):
    """Keys that are added up in one go."""

    first: int
    groups: list[RowGroup]
    """Which rows are attended to together: a batch pays for each row's own length, up to `STEP`
    keys, where that is much less than the longest row's."""
    closed: Tensor | None
    """Rows that see none of it; None where there are none."""


def spans_of(mask_B11K: Tensor) -> list[KeySpan]:
    """The spans of keys that a mask covers."""
    # The layers of a pass share their mask, so this is made once.
    made = getattr(mask_B11K, "_spans", None)
    if made is None:
        open_BK = (mask_B11K[:, 0, 0] > -torch.inf).numpy()
        firsts = range(0, open_BK.shape[1], SPAN)
        made = [_span(first, open_BK[:, first : first + SPAN]) for first in firsts]
        mask_B11K._spans = made  # pyright: ignore[reportAttributeAccessIssue]
    return made


def _span(first: int, open_BK: np.ndarray) -> KeySpan:
    B, K = open_BK.shape
    last_B = np.where(open_BK.any(1), K - open_BK[:, ::-1].argmax(1), 0)
    seen_B = np.minimum(-(-last_B // STEP) * STEP, K)
    closed = np.flatnonzero(last_B == 0)
    # Rows that are picked out are copied, which costs about a third of attending to them.
    if 3 * seen_B.sum() < 2 * B * K:
        groups = [
            RowGroup(torch.from_numpy(np.flatnonzero(seen_B == keys)), int(keys))
            for keys in np.unique(seen_B[seen_B > 0])
        ]
    else:
        groups = [RowGroup(None, K)]
    return KeySpan(first, groups, torch.from_numpy(closed) if len(closed) else None)


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
