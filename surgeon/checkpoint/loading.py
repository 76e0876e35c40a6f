"""What transformers makes of a checkpoint: the class, the dtype, and the tensors without a place.

`require_fit` asks transformers' own loader, with headers in the place of weights, so that what is
refused before a run is what would go wrong in it.
"""

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon import lineage, progress
from surgeon.checkpoint.config import excessive, labelled
from surgeon.checkpoint.devices import is_spread, require_room, shares
from surgeon.checkpoint.directory import UNUSABLE, Checkpoint
from surgeon.checkpoint.dtypes import DTYPES, FLOATS, torch_dtype
from surgeon.checkpoint.quantised import refuse_quantised
from surgeon.errors import BadInput

if TYPE_CHECKING:
    import torch
    from torch import nn

OTHER_HEADS = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "RewardModel")
"""Ends of class names that don't write text, though their `model_type` has a class that does."""
SCALES = re.compile(
    r"(scale|scale_inv|scales|qweight|qzeros|g_idx|absmax|quant_map|SCB|_packed|_blocks"
    r"|zero_point|weight_shape)$|\.quant_state\."
)
"""Names of what quantised checkpoints keep beside or instead of a weight."""
ADAPTERS = re.compile(r"(^|\.)(lora_|base_layer\.|modules_to_save\.|ia3_l|hada_|oft_|vera_|boft_)")
"""Names of what PEFT keeps beside a weight."""
BUFFERS = re.compile(
    r"(inv_freq|masked_bias|(cos|sin)_cached|position_ids|_extra_state|num_batches_tracked"
    r"|attn(ention)?\.(attention\.)?bias)$"
)
"""Names of what older versions saved beside the weights, and compute now."""
BESIDE = re.compile(
    r"(^|\.)(mtp|v_head|score|visual|vision\w*|audio\w*|multi_modal\w*|talker)(\.|$)"
)
"""Names of parts that text is written without: draft heads, value heads, towers."""
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
FEW_PARTS = 1024
"""Parts of one kind that a config may name whatever the files hold: experts that lie in one tensor,
the layers of a tower that was left out."""
_SAID: set[str] = set()
"""Notices of this process: one checkpoint is opened several times."""


_FITS: dict[str, "Fit"] = {}
"""By config and headers: large mixtures of experts take seconds, and endpoints share theirs."""


class Fit(NamedTuple):
    """How a checkpoint's headers fit the model that its config describes."""

    missing: list[str]
    """Weights of the model that the files lack."""
    unexpected: list[str]
    """Tensors in the files that the model has no place for and transformers doesn't expect."""
    mismatched: list[tuple[str, list[int], list[int]]]
    """Name, shape in the files, shape by the config."""


def model_class(config: Any) -> Any:
    """The class that loads a transformers config to write text: the one that it names or, where it
    names none, its model type's. Raises ValueError where there is none."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

    named = (config.architectures or [""])[0]
    mappings: tuple[Any, Any] = (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
    first, second = (mapping.get(type(config), None) for mapping in mappings)
    if first is None and second is None:
        raise ValueError(f"transformers has no model that writes text for {config.model_type!r}")
    causal = second is None or (first is not None and named != second.__name__)
    return first if causal else second


def stored_dtype(checkpoint: Checkpoint) -> str | None:
    """safetensors' name of the dtype that most of a checkpoint's float bytes have."""
    sizes: dict[str, int] = {}
    for info in checkpoint.tensors.values():
        if info.dtype in FLOATS:
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    return max(sizes, key=lambda name: sizes[name]) if sizes else None


def label_dtype(directory: Path) -> None:
    """Make `config.json` in a directory of new weights name the dtype that most of them have.

    Readers load in the dtype of the label: another one costs memory, time and bits.
    """
    checkpoint = Checkpoint.open(directory)
    stored, config = stored_dtype(checkpoint), dict(checkpoint.config)
    wanted = config if stored is None else labelled(config, DTYPES[stored].torch)
    if wanted != config and _label(checkpoint) not in (None, stored):
        lineage.write_json(directory / "config.json", wanted)


def _label(checkpoint: Checkpoint) -> str | None:
    """safetensors' name of the dtype that a config names; None where it names none."""
    label = checkpoint.text_config.get("dtype") or checkpoint.text_config.get("torch_dtype")
    label = label or checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    known = {dtype.torch: name for name, dtype in DTYPES.items()}
    return known.get(str(label).removeprefix("torch."))


def fit(checkpoint: Checkpoint) -> Fit | None:
    """How the headers fit the config; None for a model type that writes no text.

    Raises `BadInput` for a config that makes no model.
    """
    import torch

    _require_sizes(checkpoint)
    _require_parts(checkpoint)
    config = checkpoint.full_config
    try:
        kind = model_class(config)
    except ValueError:
        return None
    headers = {name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()}
    key = lineage.digest_of([config.to_json_string(use_diff=False), headers])
    if key in _FITS:
        return _FITS[key]
    state = {
        name: torch.empty(info.shape, dtype=_dtype_of(info.dtype), device="meta")
        for name, info in checkpoint.tensors.items()
    }
    with silence():
        try:
            _, info = kind.from_pretrained(
                None, config=config, state_dict=state, device_map={"": "meta"},
                dtype=torch.bfloat16, output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
        except UNUSABLE as error:
            reason = " ".join(str(error).split())[:200]
            raise BadInput(
                f"{checkpoint.path}: config.json and the weights make no {checkpoint.model_type} "
                f"model ({type(error).__name__}: {reason}). Take the config that belongs to them."
            ) from error
    _FITS[key] = Fit(
        sorted(info["missing_keys"]),
        sorted(info["unexpected_keys"]),
        sorted((name, [*found], [*wanted]) for name, found, wanted in info["mismatched_keys"]),
    )
    return _FITS[key]


def require_fit(checkpoint: Checkpoint) -> None:
    """Raise `BadInput` where config and weights contradict each other, or a tensor without a place
    changes the model; say which others are left out. Nothing but headers is read."""
    refuse_quantised(checkpoint)
    found = fit(checkpoint)
    if found is None:
        return
    named = (checkpoint.full_config.architectures or [""])[0]
    if named.endswith(OTHER_HEADS):
        raise BadInput(
            f"{checkpoint.path} is a {named}, which writes no text. Use the language model that it "
            "was made from."
        )
    _refuse_unexpected(checkpoint, found.unexpected)
    if found.mismatched:
        _refuse_shape(checkpoint, found)
    if found.missing:
        head = all(name.endswith("lm_head.weight") for name in found.missing)
        why = " (tie_word_embeddings is false in config.json)" if head else ""
        raise BadInput(
            f"{checkpoint.path} lacks {len(found.missing)} weights of the {checkpoint.model_type} "
            f"model that its config describes, first {found.missing[0]}{why}. Config and weights "
            "don't match: take the config that belongs to them."
        )
    _refuse_stored_kinds(checkpoint)
    if found.unexpected:
        say_once(
            f"{checkpoint.spec}: {_counted(found.unexpected)} left out, as transformers does: a "
            f"{checkpoint.model_type} model computes without."
        )
    label, stored = _label(checkpoint), stored_dtype(checkpoint)
    if label and stored and label != stored:
        names = [DTYPES[name].torch for name in (label, stored)]
        say_once(
            f"{checkpoint.spec}: config.json says {names[0]}, the weights are {names[1]}; dtype "
            "auto is that of the weights."
        )


def _refuse_unexpected(checkpoint: Checkpoint, names: list[str]) -> None:
    """Raise `BadInput` for the tensors without a place that change what the model is."""
    if scales := [name for name in names if SCALES.search(name)]:
        raise BadInput(
            f"{checkpoint.path} holds quantised weights ({_counted(scales)}), and its config.json "
            "has no quantization_config: the numbers would be taken without their scales. Take the "
            "checkpoint that it was made from, or the config.json that belongs to these weights."
        )
    if adapters := [name for name in names if ADAPTERS.search(name)]:
        raise BadInput(
            f"{checkpoint.path} holds an adapter that was never merged ({_counted(adapters)}). "
            "Merge it first (PEFT's merge_and_unload), or name the two as BASE+ADAPTER."
        )
    if layers := [name for name in names if _beyond(checkpoint, name)]:
        raise BadInput(
            f"{checkpoint.path}: config.json has num_hidden_layers = "
            f"{checkpoint.text_config.get('num_hidden_layers')}, and the weights go on "
            f"({_counted(layers)}). Take the config that belongs to them."
        )
    if rest := [name for name in names if not _left_out(checkpoint, name)]:
        raise BadInput(
            f"{checkpoint.path} holds {_counted(sorted(rest))} that a {checkpoint.model_type} "
            "model has no place for: it would compute something else without. Take the config.json "
            "(and model_type) that belongs to these weights, or remove the tensors."
        )


def _left_out(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a tensor is a buffer, a counter, a part beside the text model, or a draft layer's."""
    info = checkpoint.tensors.get(name)  # None where transformers renames it
    counter = info is not None and info.dtype not in FLOATS
    beside = BUFFERS.search(name) or BESIDE.search(name)
    return counter or bool(beside) or _number(name) >= _n_layers(checkpoint)


def _beyond(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a tensor belongs to a layer beyond the config's, draft layers counted."""
    drafts = int(checkpoint.text_config.get("num_nextn_predict_layers") or 0)
    return _number(name) >= _n_layers(checkpoint) + drafts


def _number(name: str) -> int:
    match = LAYER.search(name)
    return int(match[1]) if match and not BESIDE.search(name) else -1


def _n_layers(checkpoint: Checkpoint) -> int:
    return int(checkpoint.full_config.get_text_config().num_hidden_layers)


def _refuse_shape(checkpoint: Checkpoint, found: Fit) -> None:
    """Raise `BadInput` for weights of another shape, naming the settings that ask for it."""
    name, there, wanted = found.mismatched[0]
    sizes = {b for a, b in zip(there, wanted, strict=False) if a != b}
    config = checkpoint.text_config
    guilty = [f"{k} = {v}" for k, v in config.items() if type(v) is int and v in sizes]
    by = f" ({', '.join(guilty)})" if guilty else ""
    raise BadInput(
        f"{checkpoint.path}: config.json contradicts the weights: {name} is {there} in the files "
        f"and {wanted} by the config{by}; {len(found.mismatched)} such tensors. Take the config "
        "that belongs to them."
    )


def _refuse_stored_kinds(checkpoint: Checkpoint) -> None:
    """Raise `BadInput` for weights stored as numbers that need a scale."""
    for name, info in checkpoint.tensors.items():
        scaled = info.dtype.startswith(("F8", "F4", "F6", "E8", "I8", "U8", "I4", "U4"))
        if scaled and name.endswith(("weight", "_proj")):
            raise BadInput(
                f"{checkpoint.path} stores {name} as {info.dtype}: quantised, without the scales "
                "that belong to it. Use the full-precision checkpoint, or convert it to bfloat16."
            )


def _require_sizes(checkpoint: Checkpoint) -> None:
    """Raise `BadInput` for sizes in `config.json` that can't be, before transformers builds what
    they say: lists of a billion layers, tensors without elements."""
    for name in ("hidden_size", "vocab_size"):
        value = checkpoint.text_config.get(name, 1)
        if not isinstance(value, int) or value < 1:
            raise BadInput(
                f"{checkpoint.path}: config.json has {name} = {value!r}, expected a whole number "
                "above 0. Take the config that belongs to the weights."
            )
    layers = checkpoint.text_config.get("num_hidden_layers", 1)
    if not isinstance(layers, int) or not 0 < layers <= len(checkpoint.tensors):
        raise BadInput(
            f"{checkpoint.path}: config.json has num_hidden_layers = {layers!r}, and the files "
            f"hold {len(checkpoint.tensors)} tensors. Take the config that belongs to them."
        )


def _require_parts(checkpoint: Checkpoint) -> None:
    """Raise `BadInput` for more layers or other parts than the files have tensors for."""
    most = max(FEW_PARTS, len(checkpoint.tensors))
    if many := excessive(checkpoint.config, most):
        raise BadInput(
            f"{checkpoint.path}: config.json has {many}, and the files hold "
            f"{len(checkpoint.tensors)} tensors. Take the config that belongs to them."
        )


def _dtype_of(name: str) -> "torch.dtype":
    """torch's dtype for a header's; one byte for those that torch has no name of."""
    return torch_dtype(name) if name in DTYPES else torch_dtype("U8")


def _counted(names: list[str]) -> str:
    return f"{len(names)} tensor{'s' * (len(names) != 1)}, first {names[0]}"


def say_once(text: str) -> None:
    """A notice on standard error, once in a process."""
    if text not in _SAID:
        _SAID.add(text)
        progress.say(f"Note: {text}")


class silence:
    """transformers without its reports and bars, inside the block."""

    def __enter__(self) -> None:
        import transformers

        self.verbosity = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        # It remarks on layers that wait on the disk, which the user asked for.
        logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
        transformers.logging.disable_progress_bar()

    def __exit__(self, *error: object) -> None:
        import transformers

        transformers.logging.set_verbosity(self.verbosity)


def load(checkpoint: Checkpoint, device: str, dtype: "torch.dtype | None") -> "nn.Module":
    """The model in eval mode on `device`, in `dtype` (None: the one that most weights have).

    Raises `BadInput` when the weights don't fit the architecture the config names.
    """
    import torch

    refuse_quantised(checkpoint)
    try:
        kind = model_class(checkpoint.full_config)
    except ValueError as error:
        raise BadInput(f"{checkpoint.spec}: {error}") from error
    if dtype is None:
        stored = stored_dtype(checkpoint)
        dtype = torch.float32 if stored is None else torch_dtype(stored)
    if dtype == torch.float16 and device == "cpu":
        say_once(
            f"{checkpoint.spec} runs in float16, which is several times slower than bfloat16 or "
            "float32 on a CPU: choose with --dtype."
        )
    spread: dict[str, Any] = {}
    if is_spread(device):
        spread = {
            "device_map": "auto", "max_memory": shares(device), "offload_folder": lineage.scratch(),
        }  # fmt: skip
    with silence():
        model, info = kind.from_pretrained(
            checkpoint.path,
            **spread,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported in `info`, and refused below
        )
    wrong = [*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])]
    if wrong:
        raise BadInput(
            f"{checkpoint.path} lacks {len(wrong)} weights of a {checkpoint.model_type} model or "
            f"has them in another shape, first {sorted(wrong)[0]}. Config and weights don't match."
        )
    if spread:
        require_room(model, device)
        return model.eval()
    return model.to(device).eval()
