"""What families of models differ in when one is run: masks, context, unembedding."""

# Shape letters: T tokens of a chunk, K key positions, V vocabulary, D model width.

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from surgeon.checkpoint import context_of
from surgeon.errors import BadInput

SMALL_MODEL = 20_000_000
"""Parameters below which a model runs on one thread."""
WINDOW_BY_LAYER = {"qwen2", "qwen3", "gemma2", "gemma3_text"}
WINDOW_EVERYWHERE = {"mistral", "phi3", "qwen3_moe", "mixtral"}


def text_config(model: nn.Module) -> Any:
    """The configuration of the text decoder, also inside a vision-language model."""
    return model.config.get_text_config()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]


def text_decoder(model: nn.Module) -> nn.Module:
    """The stack of layers that turns token ids into hidden states."""
    return model.get_decoder()  # pyright: ignore[reportCallIssue]


class Head(NamedTuple):
    """The unembedding, with the family's final soft cap."""

    module: nn.Module
    cap: float | None = None
    """Logits are cap * tanh(logits / cap), where the family does so."""

    def logits(self, hidden: Tensor) -> Tensor:
        """The float32 logits (..., V) of hidden states (..., D)."""
        return self._capped(self.module(hidden).float())

    def tile(self, hidden: Tensor, vocabulary: slice) -> Tensor:
        """The same for a part of the vocabulary; the unembedding must be an nn.Linear."""
        if not isinstance(self.module, nn.Linear):
            raise TypeError(f"the unembedding is a {type(self.module).__name__}, not an nn.Linear")
        bias = None if self.module.bias is None else self.module.bias[vocabulary]
        return self._capped(
            nn.functional.linear(hidden, self.module.weight[vocabulary], bias).float()
        )

    def _capped(self, logits: Tensor) -> Tensor:
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)


def head_of(model: nn.Module) -> Head:
    """The model's unembedding."""
    cap = getattr(text_config(model), "final_logit_softcapping", None)
    return Head(model.get_output_embeddings(), cap)  # pyright: ignore[reportCallIssue]


def context_limit(model: nn.Module) -> int:
    """The most tokens, prompt and answer together, that the model takes.

    Rotary embeddings that are rescaled once any row of a batch passes the original length would
    make answers depend on their neighbours; such a model is used up to its original length.
    """
    return context_of(text_config(model))


def layer_windows(model: nn.Module) -> tuple[set[int | None], bool]:
    """The attention windows in use (None: no limit), and whether masks are told apart by layer."""
    config = text_config(model)
    if config.model_type in WINDOW_BY_LAYER:
        kinds = set(config.layer_types)
        windows: set[int | None] = {None} if "full_attention" in kinds else set()
        return windows | ({config.sliding_window} if "sliding_attention" in kinds else set()), True
    window = config.sliding_window if config.model_type in WINDOW_EVERYWHERE else None
    return {window}, False


def mask_argument(model: nn.Module, masks: dict[int | None, Tensor]) -> Any:
    """The masks by window, in the form that the model's forward expects."""
    _, by_type = layer_windows(model)
    if not by_type:
        return next(iter(masks.values()))
    return {
        ("full_attention" if window is None else "sliding_attention"): mask
        for window, mask in masks.items()
    }


def causal_masks(
    model: nn.Module, start: int, length: int, keys: int, *, dtype: torch.dtype, device: Any
) -> Any:
    """Additive masks (1, 1, length, keys) for queries at `start ...` over keys at 0 ..."""
    query_T1 = torch.arange(start, start + length, device=device)[:, None]
    key_K = torch.arange(keys, device=device)
    masks: dict[int | None, Tensor] = {}
    for window in layer_windows(model)[0]:
        closed = key_K > query_T1
        if window is not None:
            closed |= key_K <= query_T1 - window
        mask_TK = torch.zeros(length, keys, dtype=dtype, device=device)
        masks[window] = mask_TK.masked_fill_(closed, -torch.inf)[None, None]
    return mask_argument(model, masks)


@contextmanager
def fitting_threads(model: nn.Module) -> Iterator[None]:
    """One thread for a small model on the CPU, inside the block.

    Its operations are too small to share: where another process has a core, threads that wait for
    one another made it 15 times slower. And its bits don't depend on the number of threads then.
    """
    before = torch.get_num_threads()
    parameters = list(model.parameters())
    small = sum(p.numel() for p in parameters) < SMALL_MODEL
    if before == 1 or not small or parameters[0].device.type != "cpu":
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def key_block(model: nn.Module) -> int:
    """Key positions are handed to attention in multiples of this many: the sums of a row then don't
    depend on how long its neighbours are."""
    return 16 if text_config(model)._attn_implementation == "sdpa" else 64


def check_attention(model: nn.Module) -> None:
    """Raise BadInput when the model's attention takes no explicit mask."""
    kind = text_config(model)._attn_implementation
    if kind not in ("sdpa", "eager"):
        raise BadInput(
            f"found attention implementation {kind!r}, expected 'sdpa' or 'eager': "
            "load the model with attn_implementation='sdpa'."
        )
