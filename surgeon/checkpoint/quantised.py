"""Quantised checkpoints: which are read, and the way out for those that aren't."""

from importlib.util import find_spec
from typing import Any, NamedTuple

from surgeon.checkpoint.directory import Checkpoint
from surgeon.errors import BadInput


class Method(NamedTuple):
    """How transformers loads one kind of quantised checkpoint as plain numbers."""

    config: str = ""
    """Its config that is told to dequantise; empty where the loaded model is asked to."""
    module: str = ""
    """What has to be importable beside transformers."""
    package: str = ""
    """The same, as pip calls it."""


READ = {
    "fp8": Method("FineGrainedFP8Config"),
    "mxfp4": Method("Mxfp4Config"),
    "compressed-tensors": Method(
        "CompressedTensorsConfig", "compressed_tensors", "compressed-tensors"
    ),
    "bitsandbytes": Method("", "bitsandbytes", "bitsandbytes"),
}
"""By `quant_method`. What isn't here, transformers can run and not dequantise."""
ALSO = {"bitsandbytes_4bit": "bitsandbytes", "bitsandbytes_8bit": "bitsandbytes"}
"""Other spellings of the same."""


def quantisation(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The `quantization_config` of a checkpoint, also where only the text model has one."""
    for config in (checkpoint.config, checkpoint.text_config):
        found = config.get("quantization_config") or config.get("compression_config")
        if found:
            return found if isinstance(found, dict) else {"quant_method": str(found)}
    return None


def method_of(checkpoint: Checkpoint) -> str:
    """The name of a quantised checkpoint's method, as `READ` spells it."""
    named = str((quantisation(checkpoint) or {}).get("quant_method") or "an unnamed method")
    return ALSO.get(named, named)


def require_readable(checkpoint: Checkpoint) -> Method:
    """How a quantised checkpoint is read; raises `BadInput` for kinds that can't be."""
    name = method_of(checkpoint)
    method = READ.get(name)
    if method is None:
        raise BadInput(
            f"{checkpoint.path} is quantised ({name}): its numbers can't be mixed or moved. Use "
            "the checkpoint that it was made from (base_model in its README), or one of these "
            f"kinds, which are dequantised: {', '.join(READ)}, GGUF."
        )
    if method.module and not _installed(method.module):
        raise BadInput(
            f"{checkpoint.path} is quantised ({name}), which needs the package {method.package}. "
            f"pip install {method.package} (the same command reads it then), or use the "
            "checkpoint that it was made from."
        )
    return method


def refuse_quantised(checkpoint: Checkpoint) -> None:
    """Raise `BadInput` for a quantised checkpoint that nothing has dequantised."""
    if quantisation(checkpoint) is not None:
        require_readable(checkpoint)
        raise BadInput(
            f"{checkpoint.path} is quantised ({method_of(checkpoint)}): its numbers can't be mixed "
            "or moved. Name it as a checkpoint: it is dequantised first."
        )


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # of a module that something has taken out
        return False
