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

    from surgeon.checkpoint import model_class

    kind = model_class(config)
    with torch.device("meta"):
        return kind._from_config(config)


def support(config: Any) -> Support:
    """What surgeon can do with the architecture of a transformers config."""
    try:
        return support_of(skeleton(config))
    except ValueError as error:
        reason = " ".join(str(error).split())
    except (AttributeError, ImportError) as error:
        # Of transformers' own code: a config without what its model asks for, a package missing.
        reason = f"transformers makes no model of its config: {' '.join(str(error).split())}"
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
        _reason(lambda model: [block.sites for block in blocks(model)], model),
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
