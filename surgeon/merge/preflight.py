"""Everything that can be wrong with two endpoints, found before a byte is written."""

import json
import math
from typing import Any, NamedTuple

import torch

from surgeon.checkpoint import (
    FLOAT_NAMES,
    FLOATS,
    Checkpoint,
    config_differences,
    disk_name,
    model_class,
    read_json,
)
from surgeon.errors import BadInput
from surgeon.families import label
from surgeon.families.cosines import merge_groups
from surgeon.families.merge_methods import falls_back

WORDS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""Files that hold a tokenizer's words; a tokenizer has at least one of them."""
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


class Fallback(NamedTuple):
    """Where SLERP mixes linearly because the endpoints are (anti)parallel."""

    tensors: int
    of_tensors: int
    parameters: int
    of_parameters: int

    def line(self) -> str:
        """One sentence with both shares."""
        return (
            f"SLERP falls back to linear on {self.tensors / max(1, self.of_tensors):.0%} of the "
            f"tensors ({self.tensors} of {self.of_tensors}; cosine beyond 0.9995), "
            f"{self.parameters / max(1, self.of_parameters):.0%} of the parameters"
        )


def require_one_architecture(a: Checkpoint, b: Checkpoint, dtype: str | None) -> None:
    """Raise `BadInput` when two checkpoints are of different kinds, or not for merging."""
    if dtype is not None and dtype not in FLOAT_NAMES:
        raise BadInput(f"dtype {dtype!r} is none of {', '.join(FLOAT_NAMES)}")
    if a.path.resolve() == b.path.resolve():
        raise BadInput(f"both endpoints are {a.path}: a family needs two different checkpoints")
    _require_same_architecture(a, b)
    for c in (a, b):
        if "quantization_config" in c.config:
            raise BadInput(f"{c.spec} is quantized: merge the full-precision checkpoints instead")


def require_mixable(
    a: Checkpoint, b: Checkpoint, dtype: str | None, besides: tuple[str, ...] = ()
) -> None:
    """Raise `BadInput` when the weights of two checkpoints can't be mixed tensor by tensor.

    `besides` are tensors whose shapes mergekit makes equal.
    """
    _require_same_tensors(a, b, besides)
    _require_dtypes(a, b, dtype)


def _architecture(checkpoint: Checkpoint) -> str:
    """The class that a config names or, where it names none, that loads its model type."""
    named = checkpoint.config.get("architectures")
    if named:
        return str(named[0])
    try:
        return str(model_class(checkpoint.full_config).__name__)
    except ValueError:
        return "?"


def _require_same_architecture(a: Checkpoint, b: Checkpoint) -> None:
    kinds = [(c.model_type, _architecture(c)) for c in (a, b)]
    if kinds[0] != kinds[1]:
        raise BadInput(
            f"architectures differ: {a.spec} is {kinds[0][1]} ({kinds[0][0]}), {b.spec} is "
            f"{kinds[1][1]} ({kinds[1][0]}). Only checkpoints of one architecture can be merged."
        )
    from transformers.models.auto.configuration_auto import (
        CONFIG_MAPPING_NAMES,  # pyright: ignore[reportPrivateImportUsage]
    )

    if a.model_type not in CONFIG_MAPPING_NAMES:
        raise BadInput(f"transformers does not know the architecture {a.model_type!r} of {a.spec}")
    ties = [_tie_flag(c) for c in (a, b)]
    if ties[0] != ties[1] or (not any(ties) and a.tied != b.tied):
        tied = a if ties[0] or (ties[0] == ties[1] and a.tied) else b
        raise BadInput(
            f"only {tied.spec} ties its embeddings (no lm_head.weight of its own). Save both "
            "endpoints tied, or both untied."
        )


def _tie_flag(checkpoint: Checkpoint) -> bool:
    stated = checkpoint.config.get("tie_word_embeddings")
    if stated is None:
        stated = checkpoint.text_config.get("tie_word_embeddings")
    if stated is None:  # what a file leaves out is the architecture's default
        stated = getattr(checkpoint.full_config, "tie_word_embeddings", False)
    return bool(stated)


def _require_same_tensors(a: Checkpoint, b: Checkpoint, besides: tuple[str, ...]) -> None:
    for one, other in ((a, b), (b, a)):
        only = [name for name in one.tensors if name not in other.tensors]
        if only:
            raise BadInput(
                f"{one.spec} has {len(only)} tensors that {other.spec} lacks, first {only[0]}. "
                "Endpoints must have the same layers."
            )
    for name, info in a.tensors.items():
        there = b.tensors[name].shape
        if info.shape != there and name not in besides:
            embedding = "embed" in name or "lm_head" in name
            hint = " The vocabularies have different sizes." if embedding else ""
            raise BadInput(
                f"{name} has shape {list(info.shape)} in {a.spec} and {list(there)} in "
                f"{b.spec}.{hint} Endpoints must have equal shapes."
            )


def _require_dtypes(a: Checkpoint, b: Checkpoint, dtype: str | None) -> None:
    for name, info in a.tensors.items():
        pair = (info.dtype, b.tensors[name].dtype)
        if pair[0] in FLOATS and pair[1] in FLOATS:
            if pair[0] != pair[1] and dtype is None:
                raise BadInput(
                    f"{name} is {pair[0]} in {a.spec} and {pair[1]} in {b.spec}. Choose the "
                    "candidates' dtype: --dtype bfloat16 or --dtype float32"
                )
            continue
        if pair[0] != pair[1] or pair[0].startswith("F8"):
            raise BadInput(
                f"{name} is {pair[0]} in {a.spec} and {pair[1]} in {b.spec}, which can't be mixed: "
                f"expected {', '.join(FLOATS)}"
            )
        if not torch.equal(a.tensor(name), b.tensor(name)):
            raise BadInput(
                f"the integer tensor {name} differs between {a.spec} and {b.spec}; "
                "it can't be mixed"
            )


def changes_dtype(a: Checkpoint, dtype: str | None) -> bool:
    """True when the endpoints themselves are not members of the family: their dtype differs."""
    if dtype is None:
        return False
    stored = {info.dtype for info in a.tensors.values() if info.dtype in FLOATS}
    return stored != {disk_name(dtype)}


def vocabulary(checkpoint: Checkpoint) -> dict[int, str] | None:
    """Token id -> token from `tokenizer.json`; None when there is none."""
    text = read_json(checkpoint.path / "tokenizer.json")
    if not text:
        return None
    entries = (text.get("model") or {}).get("vocab") or {}
    if isinstance(entries, list):  # Unigram: [token, score], the position is the id
        tokens = {i: entry[0] for i, entry in enumerate(entries)}
    else:
        tokens = {i: token for token, i in entries.items()}
    return tokens | {added["id"]: added["content"] for added in text.get("added_tokens") or []}


def require_tokenizers(*checkpoints: Checkpoint) -> None:
    """Raise `BadInput` for a checkpoint without the words of its tokenizer.

    transformers makes an empty tokenizer of the class that the config implies, without a word.
    """
    for checkpoint in checkpoints:
        if not any((checkpoint.path / file).is_file() for file in WORDS):
            raise BadInput(
                f"{checkpoint.spec} has no tokenizer (none of {', '.join(WORDS)}), expected one of "
                "each endpoint to unite. Copy it beside config.json, or leave the union "
                "away and take the tokenizer of the other (--tokenizer first or second)."
            )


def vocabulary_difference(a: Checkpoint, b: Checkpoint) -> str | None:
    """What differs between two vocabularies, naming the first tokens; None when nothing does."""
    first, second = vocabulary(a), vocabulary(b)
    if first is None or second is None:
        if first is not None or second is not None:
            lacking = a if first is None else b
            return f"{lacking.spec} has no tokenizer.json"
        models = [c.path / "tokenizer.model" for c in (a, b)]
        if all(m.is_file() for m in models) and models[0].read_bytes() != models[1].read_bytes():
            return "the two tokenizer.model files differ"
        return None
    ids = [i for i in sorted(first.keys() | second.keys()) if first.get(i) != second.get(i)]
    if not ids:
        return None
    examples = [f"id {i} is {_quoted(first.get(i))} and {_quoted(second.get(i))}" for i in ids[:3]]
    more = f", and {len(ids) - 3} more" if len(ids) > 3 else ""
    return f"the vocabularies of {a.spec} and {b.spec} differ: {'; '.join(examples)}{more}"


def _quoted(token: str | None) -> str:
    return "absent" if token is None else json.dumps(token, ensure_ascii=False)


def notices(a: Checkpoint, b: Checkpoint) -> list[tuple[str, str]]:
    """Differences that don't forbid a merge: (what it concerns, one sentence)."""
    names = f"{label(a)} and {label(b)}"
    one, two = (read_json(c.path / "tokenizer_config.json") for c in (a, b))
    special = {t: (_content(one.get(t)), _content(two.get(t))) for t in SPECIAL}
    notices = [
        ("tokenizer", f"{token} differs between {names}: {_quoted(first)} and {_quoted(second)}")
        for token, (first, second) in special.items()
        if first != second
    ]
    merges = [
        (read_json(c.path / "tokenizer.json").get("model") or {}).get("merges") for c in (a, b)
    ]
    if merges[0] != merges[1]:
        notices.append(
            ("tokenizer", f"BPE merges differ between {names}: they split text otherwise")
        )
    ours, theirs = a.chat_templates, b.chat_templates
    if ours != theirs:
        name = next(n for n in sorted(ours | theirs) if ours.get(n) != theirs.get(n))
        line = _first_difference(ours.get(name), theirs.get(name))
        of = "" if name == "default" else f" of the name {name!r}"
        notices.append(("template", f"chat templates{of} differ between {names}, first {line}"))
    keys = [
        key
        for key in sorted(a.generation_config.keys() | b.generation_config.keys())
        if key != "transformers_version"
        and a.generation_config.get(key) != b.generation_config.get(key)
    ]
    if keys:
        examples = ", ".join(
            f"{k} ({a.generation_config.get(k)} and {b.generation_config.get(k)})" for k in keys[:3]
        )
        notices.append(("generation", f"generation configs differ between {names}: {examples}"))
    differing = config_differences(a.config, b.config)
    if differing:
        text = "; ".join(differing[:3]).replace(" there", "").replace(" here", "")
        notices.append(("config", f"configs differ between {names}: {text}"))
    return notices


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _first_difference(one: Any, two: Any) -> str:
    if not isinstance(one, str) or not isinstance(two, str):
        return "in that only one is a template"
    first, second = one.splitlines(), two.splitlines()
    for number in range(max(len(first), len(second))):
        pair = [lines[number] if number < len(lines) else "" for lines in (first, second)]
        if pair[0] != pair[1]:
            return f"in line {number + 1}: {_cut(pair[0])} and {_cut(pair[1])}"
    return "in their line ends"


def _cut(text: str) -> str:
    text = text.strip()
    return json.dumps(text if len(text) <= 40 else text[:39] + "…", ensure_ascii=False)


def fallback(a: Checkpoint, cosines: dict[str, float]) -> Fallback:
    """The share of merge units, and of parameters, that SLERP mixes linearly.

    Raises `BadInput` for a tensor that is not finite.
    """
    groups = [group for group in merge_groups(a) if group.key in cosines]
    for group in groups:
        if math.isnan(cosines[group.key]):
            raise BadInput(f"{group.key} holds NaN or infinity in one of the endpoints")
    parallel = [group for group in groups if falls_back(cosines[group.key])]
    sizes = [
        sum(math.prod(a.tensors[name].shape) for group in some for name in group.names)
        for some in (parallel, groups)
    ]
    return Fallback(len(parallel), len(groups), *sizes)
