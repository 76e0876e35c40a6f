"""mergekit's configs: of the mixes made here, and with models renamed."""

from collections.abc import Mapping
from typing import Any

from surgeon.checkpoint import FLOAT_NAMES
from surgeon.families.merge_methods import MergeConfig, Mix, method_of

MODEL_KEYS = ("model", "base_model", "tokenizer_source", "source")
"""Keys of a mergekit config whose value names a model."""


def plain_merge(mix: Mix, dtype: str | None) -> MergeConfig:
    """The merge config of a mix."""
    method = method_of(mix.method)
    if method is None:
        raise ValueError(f"{mix.method} has no fast path")
    merge = {"merge_method": mix.method, **method.config(mix.t)}
    return merge if dtype is None else {**merge, "dtype": dtype}


def plain_mix(merge: MergeConfig) -> Mix | None:
    """The mix a merge config amounts to, or None when the fast path doesn't cover it.

    Covered are the methods computed here with one number between 0 and 1, over the whole models
    `a` and `b`.
    """
    name, dtype = str(merge.get("merge_method")), merge.get("dtype")
    method = method_of(name)
    t = None if method is None else method.t_of(merge)
    if isinstance(t, bool) or not isinstance(t, int | float) or not 0 <= t <= 1:
        return None
    mix = Mix(name, float(t))
    plain = plain_merge(mix, dtype)
    # mergekit adds the base model to the models itself where it isn't among them.
    spellings = [plain, {**plain, "models": [{"model": "b"}]}] if "base_model" in plain else [plain]
    return mix if merge in spellings and (dtype is None or dtype in FLOAT_NAMES) else None


def with_models(merge: MergeConfig, called: Mapping[str, object]) -> MergeConfig:
    """A config with its models (`a`, `b`, others) replaced by what `called` says."""

    def renamed(key: str, value: object) -> object:
        if key in MODEL_KEYS and isinstance(value, str):
            return called.get(value, value)
        if isinstance(value, dict):
            return {k: renamed(k, v) for k, v in value.items()}
        return [renamed("", v) for v in value] if isinstance(value, list) else value

    return {key: renamed(key, value) for key, value in merge.items()}


def models_in(merge: Any) -> list[str]:
    """The models a mergekit config names, each once, in order."""
    models: dict[str, None] = {}
    if isinstance(merge, dict):
        for key, value in merge.items():
            if key in MODEL_KEYS and isinstance(value, str):
                if value not in ("base", "union"):  # words of `tokenizer_source`
                    models[value] = None
            else:
                models |= dict.fromkeys(models_in(value))
    elif isinstance(merge, list):
        for value in merge:
            models |= dict.fromkeys(models_in(value))
    return list(models)
