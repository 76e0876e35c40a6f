"""Quantised checkpoints as full-precision ones: dequantised once by transformers, and cached."""

import re
import warnings
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from surgeon import lineage, progress, store
from surgeon.checkpoint.directory import UNUSABLE, Checkpoint
from surgeon.checkpoint.dtypes import LIVE_DTYPES, cast_weights, torch_dtype
from surgeon.checkpoint.loading import SCALES, label_dtype, model_class, silence
from surgeon.checkpoint.quantised import method_of, quantisation, require_readable
from surgeon.errors import BadInput

DEQUANTISED = 2
"""Changes whenever a checkpoint comes out otherwise than before."""
KEYS = ("quantization_config", "compression_config")
OF_ACTIVATIONS = re.compile(r"(input|activation|output|[qkv])_(global_)?(scale|zero_point)$")
"""Names of scales that no weight needs."""


def dequantised(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint itself or, where it is quantised, the full-precision one in the cache.

    Weights are of the dtype that the config names, bfloat16 where it names none. The whole model is
    in memory once. Raises `BadInput` for kinds that can't be read, for a missing package, and for
    weights that aren't what the config says.
    """
    if quantisation(checkpoint) is None:
        return checkpoint
    require_readable(checkpoint)
    name = method_of(checkpoint)
    if not any(SCALES.search(tensor) for tensor in checkpoint.tensors):
        raise BadInput(
            f"{checkpoint.path}: config.json says that the weights are quantised ({name}), and the "
            "files hold no scales. Take the weights that belong to it, or remove "
            "quantization_config where the numbers are plain."
        )
    dtype = _dtype(checkpoint)
    n_bytes = _n_weights(checkpoint) * torch_dtype(dtype).itemsize
    identity = lineage.digest_of([DEQUANTISED, dtype, checkpoint.digest])

    def make(partial: Path) -> None:
        progress.say(
            f"Note: {checkpoint.spec} is quantised ({name}): dequantised to {dtype} "
            f"({n_bytes / 1e9:.2f} GB), once."
        )
        _write(checkpoint, dtype, partial)
        lineage.write_json(partial / lineage.FILE, {"candidate_digest": identity})

    place = store.kept("dequantised", identity, make, n_bytes=n_bytes)
    return Checkpoint.open(place, checkpoint.spec)


def _dtype(checkpoint: Checkpoint) -> str:
    """torch's name of the dtype to come."""
    for config in (checkpoint.text_config, checkpoint.config):
        named = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
        if named in LIVE_DTYPES:
            return named
    return "bfloat16"


def _n_weights(checkpoint: Checkpoint) -> int:
    import torch

    try:
        kind = model_class(checkpoint.full_config)
    except ValueError as error:
        raise BadInput(f"{checkpoint.spec}: {error}") from error
    with silence(), torch.device("meta"):
        try:
            model = kind(checkpoint.full_config)
        except UNUSABLE as error:
            reason = " ".join(str(error).split())[:200]
            raise BadInput(
                f"{checkpoint.path}: config.json makes no {checkpoint.model_type} model ({reason})."
            ) from error
    return sum(parameter.numel() for parameter in model.parameters())


def _write(checkpoint: Checkpoint, dtype: str, out: Path) -> None:
    """Write the dequantised model, and beside it the checkpoint's own files."""
    model, found = _loaded(checkpoint, dtype)
    loose = [n for n in found["unexpected_keys"] if SCALES.search(n)]
    if unread := [*found["missing_keys"], *(n for n in loose if not OF_ACTIVATIONS.search(n))]:
        raise BadInput(
            f"{checkpoint.path} does not hold the weights that its quantization_config describes: "
            f"{len(unread)} tensors are missing or have no place, first {min(unread)}. Take the "
            "config.json that belongs to them, or the checkpoint that it was made from."
        )
    # What the loader would undo when it saves: it would write quantised weights again.
    model.hf_quantizer, model.is_quantized = None, False
    model.__dict__.pop("_weight_conversions", None)
    if getattr(model.config, KEYS[0], None) is not None:
        del model.config.quantization_config
    cast_weights(model, torch_dtype(dtype))
    model.save_pretrained(out)
    checkpoint.copy_side_files(out)
    config: dict[str, Any] = {k: v for k, v in checkpoint.config.items() if k not in KEYS}
    if isinstance(text := config.get("text_config"), dict):
        config["text_config"] = {k: v for k, v in text.items() if k not in KEYS}
    lineage.write_json(out / "config.json", config)
    label_dtype(out)


def _loaded(checkpoint: Checkpoint, dtype: str) -> tuple[Any, dict[str, Any]]:
    """The model in plain numbers, and what the loader found amiss."""
    import transformers

    method = require_readable(checkpoint)
    how: dict[str, Any] = {}
    if method.config:
        how["quantization_config"] = getattr(transformers, method.config)(dequantize=True)
    try:
        with silence(), warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            model, found = model_class(checkpoint.full_config).from_pretrained(
                checkpoint.path, dtype=torch_dtype(dtype), local_files_only=True,
                trust_remote_code=False, use_safetensors=True, output_loading_info=True, **how,
            )  # fmt: skip
            return (model if method.config else model.dequantize()), found
    except (*UNUSABLE, ImportError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"{checkpoint.path} is quantised ({method_of(checkpoint)}) and can't be dequantised "
            f"({type(error).__name__}: {reason}). Use the checkpoint that it was made from."
        ) from error
