"""Quantised checkpoints: refused by name, each with the way to a full-precision one."""

from typing import Any, NamedTuple

from surgeon.checkpoint.directory import Checkpoint
from surgeon.errors import BadInput


class WayOut(NamedTuple):
    """How a quantised checkpoint becomes a full-precision one."""

    packages: str
    """What has to be installed, empty where transformers does it alone."""
    call: str
    """Of transformers, with DIR for the checkpoint."""


LOAD = "AutoModelForCausalLM.from_pretrained({path!r}{more})"
DEQUANTISED = LOAD.replace("{more}", ", dtype='bfloat16'") + ".dequantize()"
WAYS = {
    "bitsandbytes": WayOut("bitsandbytes", DEQUANTISED),
    "bitsandbytes_4bit": WayOut("bitsandbytes", DEQUANTISED),
    "bitsandbytes_8bit": WayOut("bitsandbytes", DEQUANTISED),
    "gptq": WayOut("gptqmodel optimum", DEQUANTISED),
    "awq": WayOut("gptqmodel", DEQUANTISED),
    "fp8": WayOut(
        "", LOAD.replace("{more}", ", quantization_config=FineGrainedFP8Config(dequantize=True)")
    ),
    "mxfp4": WayOut(
        "", LOAD.replace("{more}", ", quantization_config=Mxfp4Config(dequantize=True)")
    ),
    "compressed-tensors": WayOut(
        "compressed-tensors",
        LOAD.replace(
            "{more}", ", quantization_config=CompressedTensorsConfig(run_compressed=False)"
        ),
    ),
}
"""By `quant_method`."""


def quantisation(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The `quantization_config` of a checkpoint, also where only the text model has one."""
    for config in (checkpoint.config, checkpoint.text_config):
        found = config.get("quantization_config") or config.get("compression_config")
        if found:
            return found if isinstance(found, dict) else {"quant_method": str(found)}
    return None


def refuse_quantised(checkpoint: Checkpoint) -> None:
    """Raise `BadInput` for a quantised checkpoint, naming the method and how to undo it."""
    config = quantisation(checkpoint)
    if config is None:
        return
    method = str(config.get("quant_method") or "an unnamed method")
    origin = "Use the checkpoint that it was made from"
    way = WAYS.get(method)
    if way is None:
        raise BadInput(f"{checkpoint.path} is quantised ({method}). {origin}.")
    first = f"pip install {way.packages}; then " if way.packages else ""
    call = way.call.format(path=str(checkpoint.path))
    raise BadInput(
        f"{checkpoint.path} is quantised ({method}): its numbers can't be mixed or moved. "
        f'{origin}, or dequantise it once: {first}python -c "from transformers import *; '
        f"{call}.save_pretrained('OUT')\" (and copy the tokenizer's files)."
    )
