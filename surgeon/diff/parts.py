"""The part of a model that a tensor belongs to, by its name."""

import re
from typing import NamedTuple

LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
ATTENTION = r"(?:attn|attention).*"
FFN = r"(?:mlp|expert|feed_forward|ffn|moe).*"
BLOCKS: dict[str, tuple[str, re.Pattern[str]]] = {
    "norm": ("norm", re.compile(r"norm|(?:^|\.)ln_")),
    "router": ("other", re.compile(r"router|(?:mlp|moe)\.gate\.|shared_expert_gate|moe_statics")),
    "q": ("attention", re.compile(r"attn.*\.(?:q_proj|wq|q_[ab]_proj|query)\b")),
    "k": ("attention", re.compile(r"attn.*\.(?:k_proj|wk|key)\b")),
    "v": ("attention", re.compile(r"attn.*\.(?:v_proj|wv|value)\b")),
    "qkv": ("attention", re.compile(rf"{ATTENTION}(?:qkv|query_key_value|c_attn|kv_[ab]_proj)")),
    "o": ("attention", re.compile(rf"{ATTENTION}\.(?:o_proj|out_proj|dense|c_proj|wo)\b")),
    "attention": ("attention", re.compile(r"attn|attention")),
    "gate+up": ("FFN", re.compile(f"{FFN}gate_up")),
    "gate": ("FFN", re.compile(rf"{FFN}(?:gate_proj|\.w1\b)")),
    "up": ("FFN", re.compile(rf"{FFN}(?:up_proj|\.w3\b|c_fc|h_to_4h|fc1)")),
    "down": ("FFN", re.compile(rf"{FFN}(?:down_proj|\.w2\b|c_proj|4h_to_h|fc2)")),
    "FFN": ("FFN", re.compile(r"mlp|ffn|feed_forward|experts|moe")),
    "embedding": ("embedding", re.compile(r"embed|wte|wpe")),
    "head": ("embedding", re.compile(r"lm_head|(?:^|\.)output\.weight")),
}  # fmt: skip
"""Block -> the kind of block, and what its tensors are called; the first that fits."""
ORDER = ("embedding", "q", "k", "v", "qkv", "o", "attention", "gate", "up", "gate+up", "down",
         "FFN", "router", "norm", "head", "other")  # fmt: skip
"""As tables show them."""


class TensorPart(NamedTuple):
    """Where a tensor is."""

    layer: int | None
    """None outside the layers."""
    name: str
    kind: str
    """`attention`, `FFN`, `norm`, `embedding` or `other`."""


def block_of(tensor: str) -> TensorPart:
    """The block of a tensor."""
    match = LAYER.search(tensor)
    layer = int(match[1]) if match else None
    for name, (kind, pattern) in BLOCKS.items():
        if pattern.search(tensor):
            return TensorPart(layer, name, kind)
    return TensorPart(layer, "other", "other")
