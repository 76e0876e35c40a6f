"""GGUF files as checkpoints: dequantised once by transformers, and kept in the cache."""

import re
from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from surgeon import lineage, progress, store
from surgeon.checkpoint.directory import UNUSABLE, Checkpoint
from surgeon.checkpoint.dtypes import cast_weights, torch_dtype
from surgeon.checkpoint.loading import label_dtype, silence
from surgeon.errors import BadInput

CONVERTED = 2
"""Changes whenever a file comes out otherwise than before."""
PART = re.compile(r".*-(\d{5})-of-(\d{5})\.gguf")
PLAIN = ("F32", "F16", "BF16")
"""GGUF's types, safetensors' too, that are numbers without a scale."""
MAGIC = b"GGUF"


def open_gguf(file: Path, spec: str) -> Checkpoint:
    """The checkpoint that a GGUF file holds, weights and tokenizer, in the cache's directory.

    Weights are bfloat16 where most of them are quantised, else in the dtype that most have. Raises
    `BadInput` where the package `gguf` is missing, for a damaged file, and for an architecture that
    transformers doesn't read from GGUF.
    """
    with open(file, "rb") as stream:
        magic = stream.read(4)
    if magic != MAGIC:
        raise BadInput(f"{file} is no GGUF file: found {magic!r} at its start. Fetch it again.")
    if match := PART.fullmatch(file.name):
        raise BadInput(
            f"{file} is part {int(match[1])} of {int(match[2])} of a GGUF file. Join them first: "
            "llama-gguf-split --merge FIRST_PART WHOLE.gguf"
        )
    if not _installed():
        raise BadInput(
            f"{file} is a GGUF file, which needs the package gguf. pip install 'surgeon[gguf]', or "
            "name the checkpoint that it was made from."
        )
    dtype, n_weights = _contents(file)
    n_bytes = n_weights * torch_dtype(dtype).itemsize
    identity = lineage.digest_of([CONVERTED, dtype, lineage.file_digest(file)])

    def make(partial: Path) -> None:
        progress.say(f"Note: {spec} is dequantised to {dtype} ({n_bytes / 1e9:.2f} GB), once.")
        _convert(file, dtype, partial)
        lineage.write_json(partial / lineage.FILE, {"candidate_digest": identity})

    return Checkpoint.open(store.kept("gguf", identity, make, n_bytes=n_bytes), spec)


def _installed() -> bool:
    try:
        return find_spec("gguf") is not None
    except ValueError:  # of a module that something has taken out
        return False


def _contents(file: Path) -> tuple[str, int]:
    """torch's name of the dtype to come, and the number of weights."""
    import gguf

    try:
        tensors = gguf.GGUFReader(file).tensors
    except (*UNUSABLE, OSError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"{file} is damaged or cut off ({reason}). Fetch it again.") from error
    sizes: dict[str, int] = {}
    for tensor in tensors:
        kind = tensor.tensor_type.name
        sizes[kind] = sizes.get(kind, 0) + int(tensor.n_elements)
    if not sizes:
        raise BadInput(f"{file} holds no tensors. Name a GGUF file with weights.")
    most = max(sizes, key=lambda kind: sizes[kind])
    return str(torch_dtype(most if most in PLAIN else "BF16")).removeprefix("torch."), sum(
        sizes.values()
    )


def _convert(file: Path, dtype: str, out: Path) -> None:
    """Write a GGUF file's model and tokenizer as a checkpoint directory."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place: Any = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    try:
        # Its bar is tqdm's own, which nothing switches off.
        with silence(), redirect_stderr(StringIO()):
            model: Any = AutoModelForCausalLM.from_pretrained(
                file.parent, dtype=torch_dtype(dtype), **place
            )
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **place)
    except (*UNUSABLE, ImportError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"{file} can't be read as a model that writes text ({reason}). Name the checkpoint "
            "that it was made from."
        ) from error
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    model.hf_quantizer = None  # the weights are dequantised, whatever the loader left here
    model.is_quantized = False
    cast_weights(model, torch_dtype(dtype))
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    label_dtype(out)
