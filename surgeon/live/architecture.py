"""What families of models differ in when one is run: masks, context, unembedding."""

# Shape letters: V vocabulary, D model width.

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from surgeon.checkpoint import context_of
from surgeon.errors import BadInput

WINDOW_MASKS = (
    "create_sliding_window_causal_mask",
    "create_chunked_causal_mask",
    "create_masks_for_generate",
)
"""What a family's module imports from transformers where some of its masks are narrower."""


class CausalLM(Protocol):
    """What a model of transformers that writes text is asked for, beside what every module has."""

    config: Any

    def get_decoder(self) -> Any: ...
    def get_input_embeddings(self) -> nn.Embedding: ...
    def get_output_embeddings(self) -> nn.Linear: ...
    def set_attn_implementation(self, kind: str) -> None: ...
    def set_experts_implementation(self, kind: str) -> None: ...


def causal_lm(model: nn.Module) -> CausalLM:
    """The same model, by that type."""
    return cast(CausalLM, model)


def text_config(model: nn.Module) -> Any:
    """The configuration of the text decoder, also inside a vision-language model."""
    return causal_lm(model).config.get_text_config()


def text_decoder(model: nn.Module) -> nn.Module:
    """The stack of layers that turns token ids into hidden states."""
    decoder = causal_lm(model).get_decoder()
    # Of some families this is the language model inside a wrapper, its unembedding included.
    return decoder.model if hasattr(decoder, "lm_head") else decoder


class Head(NamedTuple):
    """The unembedding, with the family's factor and final soft cap."""

    module: nn.Module
    cap: float | None = None
    """Logits are cap * tanh(logits / cap), where the family does so."""
    factor: float = 1.0
    """Logits are multiplied by this first."""

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
        logits = logits if self.factor == 1 else logits * self.factor
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)


FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier", "logits_scaling")
"""Fields of text configs that logits are multiplied by; `logits_scaling` divides, but for
HyperCLOVA X."""
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Fields of text configs that hold the cap."""


def head_of(model: nn.Module) -> Head:
    """The model's unembedding."""
    config, factor = text_config(model), 1.0
    for name in FACTORS:
        value = getattr(config, name, None)
        if value is not None:
            divides = name == "logits_scaling" and "hyperclovax" not in config.model_type
            factor *= 1 / value if divides else value
    cap = next((c for name in CAPS if (c := getattr(config, name, None)) is not None), None)
    return Head(causal_lm(model).get_output_embeddings(), cap, factor)


def device_of(model: nn.Module) -> torch.device:
    """Where a model takes its tokens: the first accelerator of several devices that share it."""
    spread = getattr(model, "hf_device_map", None)
    if spread:
        first = next((d for d in spread.values() if str(d) not in ("cpu", "disk")), "cpu")
        return torch.device("cuda", first) if isinstance(first, int) else torch.device(first)
    return next(model.parameters()).device


@contextmanager
def at_hand(module: nn.Module) -> Iterator[None]:
    """A module's weights as tensors, inside the block, where they wait on the disk or the host."""
    if not any(parameter.is_meta for parameter in module.parameters()):
        yield
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield


def context_limit(model: nn.Module) -> int:
    """The most tokens, prompt and answer together, that the model takes; `UNLIMITED` where it has
    no positions of its own, as with linear attention.

    Rotary embeddings that are rescaled once any row of a batch passes the original length would
    make answers depend on their neighbours; such a model is used up to its original length.
    """
    return context_of(text_config(model))


def base_model(model: nn.Module) -> Any:
    """The model of transformers inside an adapter's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore


def refusal(model: nn.Module) -> str | None:
    """Why `generate` doesn't answer a prompt of tokens with tokens, one after another; None where
    it does."""
    from transformers import GenerationMixin

    base, plain = base_model(model), vars(GenerationMixin)["generate"]
    if getattr(base.config, "is_encoder_decoder", False):
        return "it reads prompts with an encoder of its own"
    if not hasattr(base, "generate") or not base.can_generate():
        return "transformers has no generation for it"
    if type(base).generate is not plain:
        return "it generates by a procedure of its own"
    return None


def misfit(model: nn.Module) -> str | None:
    """Why rows at different positions can't share a pass of this model; None where they can.

    They can where all that a layer remembers of a row are keys and values, positions are told to
    the model, and its masks come from transformers' mask functions. That says which models are
    worth trying: `surgeon.decoding.fitting` has the last word.
    """
    from transformers import cache_utils
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    config, decoder = text_config(model), text_decoder(model)
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    # Layers without memory of their own have a kind since transformers 5.20.
    none = getattr(cache_utils, "DummyLayer", DynamicLayer)
    others = kinds - {DynamicLayer, DynamicSlidingWindowLayer, none}
    if others:
        return f"its layers remember more than keys and values ({_names(others)})"
    taken = signature(type(decoder).forward).parameters
    lacking = [name for name in ("position_ids", "past_key_values") if name not in taken]
    if lacking:
        return f"its decoder takes no {' and no '.join(lacking)}"
    if not getattr(decoder, "_supports_attention_backend", False):
        return "its attention and masks are its own"
    room = sys.modules[type(decoder).__module__]
    if DynamicSlidingWindowLayer in kinds and not any(
        hasattr(room, maker) for maker in WINDOW_MASKS
    ):
        return "its cache has windows that its masks don't have"
    if not getattr(config, "is_causal", True) or not getattr(config, "is_decoder", True):
        return "a prompt's tokens see those that follow"
    return None


def _names(kinds: set[type]) -> str:
    return ", ".join(sorted(kind.__name__ for kind in kinds))


def key_block(model: nn.Module) -> int:
    """Key positions are handed to attention in multiples of this many: the sums of a row then don't
    depend on how long its neighbours are."""
    return 16 if text_config(model)._attn_implementation == "sdpa" else 64


def check_decodable(model: nn.Module) -> None:
    """Raise BadInput for a model that can't be decoded here, by name and with the reason."""
    kind, reason = text_config(model)._attn_implementation, refusal(model)
    if reason is not None:
        raise BadInput(
            f"found the architecture {base_model(model).config.model_type!r}, expected a decoder "
            f"of text: {reason}."
        )
    if kind not in ("sdpa", "eager"):
        raise BadInput(
            f"found attention implementation {kind!r}, expected 'sdpa' or 'eager': "
            "load the model with attn_implementation='sdpa'."
        )
