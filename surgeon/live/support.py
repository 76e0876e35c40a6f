"""What surgeon can do with an architecture, said from its config before anything is sampled.

Every answer is read off the model that the config describes, built without weights: the same
functions look at it that look at the loaded one.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon.errors import BadInput

if TYPE_CHECKING:
    from torch import nn

    from surgeon.checkpoint import Checkpoint


class Support(NamedTuple):
    """Why surgeon can't do this with an architecture; None where it can."""

    decode: str | None
    """Answer prompts: `evaluate`, `serve`, and the sampling of every verb."""
    record: str | None
    """Record its FFN units: `rank`."""
    distill: str | None
    """Neuron-OPSD's evidence and self-distillation: `distill`."""
    triggers: str | None
    """Channels of a layer: `trigger`, `monitor`."""
    slow: str | None = None
    """Why it is decoded a row a pass; None where rows share passes."""


def skeleton(config: Any) -> "nn.Module":
    """The model of a transformers config, without weights. Raises ValueError where there is none
    that writes text."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

    named = (config.architectures or [""])[0]
    first: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    second: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    if first is None and second is None:
        raise ValueError(f"transformers has no model that writes text for {config.model_type!r}")
    causal = second is None or (first is not None and named != second.__name__)
    auto = AutoModelForCausalLM if causal else AutoModelForImageTextToText
    with torch.device("meta"):
        return auto.from_config(config)


def support(config: Any) -> Support:
    """What surgeon can do with the architecture of a transformers config."""
    try:
        return support_of(skeleton(config))
    except ValueError as error:
        reason = " ".join(str(error).split())
        return Support(reason, reason, reason, reason)


def support_of(model: "nn.Module") -> Support:
    """What surgeon can do with a model, loaded or without weights."""
    from surgeon.live.architecture import misfit, refusal
    from surgeon.live.blocks import blocks

    decode = refusal(model)
    if decode is not None:
        return Support(decode, decode, decode, decode)
    return Support(
        None,
        _reason(blocks, model),
        _reason(lambda model: [block.ffn for block in blocks(model)], model),
        _reason(lambda model: [(block.ffn, block.attention) for block in blocks(model)], model),
        misfit(model),
    )


def _reason(reader: Callable[[Any], object], model: "nn.Module") -> str | None:
    """Why this reader finds nothing to read in a model."""
    try:
        reader(model)
    except BadInput as error:
        return str(error)
    return None


_SEEN: dict[str, Support] = {}
"""By config: the members of a family share one."""


def require(what: str, *checkpoints: "Checkpoint") -> None:
    """Raise BadInput for the first checkpoint whose architecture can't be decoded, or can't do
    `what` (a field of `Support`). Nothing is loaded but configs."""
    for checkpoint in checkpoints:
        config = checkpoint.full_config
        key = config.to_json_string(use_diff=False)
        found = _SEEN[key] = _SEEN.get(key) or support(config)
        reason = found.decode or getattr(found, what)
        if reason is not None:
            raise BadInput(f"{checkpoint.spec}: {reason}")
