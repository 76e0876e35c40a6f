"""The attention of a layer: the tensors that move with its units where that is asked for.

These are the layer's projections to queries, keys, values and out, their biases, and norms inside
the attention. The norms before and after the block stay the recipient's, as with FFN units.
"""

# Shapes: L layers, F units per layer.

import re

import numpy as np

from surgeon.checkpoint import FLOATS, Checkpoint
from surgeon.errors import BadInput
from surgeon.transplant.pair import Pair

_ATTENTION = re.compile(
    r"(?:model\.language_model\.|language_model\.model\.|model\.|)layers\.(\d+)\."
    r"(?:self_attn|attention|attn|linear_attn)\..+"
)


def attention_of(checkpoint: Checkpoint, moved_LF: np.ndarray) -> list[str]:
    """The attention tensors of the layers with units that move."""
    found = ((name, _ATTENTION.fullmatch(name)) for name in checkpoint.tensors)
    return [
        name
        for name, match in found
        if match and int(match[1]) < len(moved_LF) and moved_LF[int(match[1])].any()
    ]


def require_attention(pair: Pair) -> None:
    """Raise `BadInput` unless both store the same attention tensors, in numbers that can move."""
    everything_LF = np.ones((pair.recipient.n_layers, 1), bool)
    names = attention_of(pair.recipient, everything_LF)
    if not names:
        raise BadInput(
            f"{pair.recipient.spec} ({pair.recipient.model_type}) has no attention in its layers "
            "that surgeon knows; leave out --with-attention."
        )
    for name in sorted({*names, *attention_of(pair.donor, everything_LF)}):
        here, there = (c.tensors.get(name) for c in (pair.recipient, pair.donor))
        if here is None or there is None or here.shape != there.shape:
            shapes = ["nothing" if info is None else list(info.shape) for info in (here, there)]
            raise BadInput(
                f"{pair.recipient.spec} stores {shapes[0]} as {name}, {pair.donor.spec} "
                f"{shapes[1]}: their attention can't be exchanged. Leave out --with-attention."
            )
        if not {here.dtype, there.dtype} <= set(FLOATS):
            raise BadInput(
                f"{name} is stored as {here.dtype} and {there.dtype}: quantised weights can't be "
                "moved. Use the checkpoint they were made from."
            )
