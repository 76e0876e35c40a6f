"""What a model's config says, whether it was read from disk or belongs to a live model."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from surgeon import lineage

Config = Mapping[str, Any]
"""A model's config as `config.json` has it."""
UNLIMITED = 1 << 30
"""Tokens: the context of a model whose config sets no limit."""
COSMETIC = (
    "_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "bos_token_id",
    "eos_token_id", "pad_token_id", "architectures", "max_position_embeddings",
)  # fmt: skip
"""Keys that don't change what a model computes from given weights and positions."""
RESCALED = ("longrope", "dynamic")
"""Kinds of rotary embeddings that change once any row of a batch passes the original length."""


def context_of(config: Any) -> int:
    """The most tokens, prompt and answer together, of a transformers text config.

    Rotary embeddings that are rescaled once any row of a batch passes the original length would
    make answers depend on their neighbours; such a model is used up to its original length.
    """
    limit = getattr(config, "max_position_embeddings", None) or UNLIMITED
    # -1 where a family has relative positions only (XLNet).
    limit = limit if limit > 0 else UNLIMITED
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") not in RESCALED:
        return int(limit)
    original = rope.get("original_max_position_embeddings")
    return int(min(limit, original or getattr(config, "original_max_position_embeddings", limit)))


ROUTED = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
"""What families call the number of their routed experts, and of those that all tokens share."""
SWITCH = "is_moe"
"""What Doge's configs say: False where the experts that they count aren't there."""
CHOSEN = (
    "num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_k",
    "top_k_experts",
)  # fmt: skip
"""What families call the number of routed experts that a token passes through."""


def d_ff_of(config: Config) -> int:
    """FFN units per layer of a text config, the most that a layer has; for mixtures of experts,
    experts x units per expert, and the units of shared experts."""
    dense = config.get("intermediate_size") or 0
    dense = int(max(dense) if isinstance(dense, list | tuple) else dense)
    experts = next((int(config[name]) for name in ROUTED if config.get(name)), 0)
    if not experts or config.get(SWITCH) is False:
        return dense
    units = int(config.get("moe_intermediate_size") or dense)
    shared = units * next((int(config[name]) for name in SHARED if config.get(name)), 0)
    shared = int(config.get("shared_expert_intermediate_size") or shared)
    # A few layers of such a model may be dense; keys must have room for the wider kind.
    return max(experts * units + shared, dense)


def passed_units_of(config: Config, routed: Collection[int]) -> int | None:
    """FFN units that a token passes through, over all layers of a text config: of mixtures of
    experts the chosen and the shared ones. `routed` are the layers that have experts; None where
    the config doesn't say how many are chosen."""
    dense = config.get("intermediate_size") or 0
    n_layers = int(config["num_hidden_layers"])
    dense_L = dense if isinstance(dense, list | tuple) else [int(dense)] * n_layers
    experts = next((config[name] for name in CHOSEN if config.get(name)), None)
    if routed and experts is None:
        return None
    units = int(config.get("moe_intermediate_size") or max(dense_L))
    shared = units * next((int(config[name]) for name in SHARED if config.get(name)), 0)
    shared = int(config.get("shared_expert_intermediate_size") or shared)
    chosen_L = experts if isinstance(experts, list | tuple) else [int(experts or 0)] * n_layers
    return sum(chosen_L[n] * units + shared if n in routed else dense_L[n] for n in range(n_layers))


COUNTS = re.compile(r"(^|_)(n_layer|layers|depth|depths|blocks|experts|stages|labels)$")
"""Names of settings that say how many parts a model has."""
MOST_PARTS = 10_000
"""Parts of one kind that no model has more of; each of them costs memory before any weight does."""
UNUSED = 1 << 16
"""Experts that a config may count which has none of them."""


def excessive(config: Config, most: int = MOST_PARTS) -> str | None:
    """The first setting that asks for more than so many parts, as `NAME = VALUE`; None where there
    is none."""
    for name, value in config.items():
        if isinstance(value, dict):
            if found := excessive(value, most):
                return found
        elif COUNTS.search(name):
            absent = config.get(SWITCH) is False and name.endswith("experts")
            limit = max(most, UNUSED) if absent else most
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, int | float) and one > limit:
                    return f"{name} = {one}"
        elif isinstance(value, list) and len(value) > MOST_PARTS:
            return f"a list of {len(value):,} values as {name}"
    return None


def config_differences(a: Config, b: Config) -> list[str]:
    """A line for each key of two configs that changes what the weights compute."""
    return lineage.differences(_computing(a), _computing(b))


def _computing(config: Config) -> Config:
    return {
        key: _computing(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in COSMETIC
    }


def labelled(config: Config, dtype: str) -> Config:
    """A model config that names this dtype of torch's, its parts likewise."""
    changed = {
        key: labelled(value, dtype) if key.endswith("_config") and isinstance(value, dict)
        else dtype if key in ("dtype", "torch_dtype")
        else value
        for key, value in config.items()
    }  # fmt: skip
    if "model_type" in changed and not {"dtype", "torch_dtype"} & changed.keys():
        changed["dtype"] = dtype
    return changed
