"""The checkpoint: a Hugging Face model directory, read lazily and never edited in place.

Opening one reads `config.json` and the safetensors headers only, and refuses what could not be
loaded or should not be: truncated shards, an index that points outside the directory, pickled
weights, models that need code from their repository.
"""

from surgeon.checkpoint.directory import INDEX, SINGLE, Checkpoint, placement
from surgeon.checkpoint.resolving import HUB_ID, adapter_digest, fetch, merge_adapter, resolve
from surgeon.checkpoint.rewriting import copy_range, link_or_copy, rewrite
from surgeon.checkpoint.tensors import (
    TORCH_NAMES,
    WEIGHT_BYTES,
    TensorInfo,
    map_tensor,
    read_header,
    read_json,
    read_tensor,
)

__all__ = [
    "HUB_ID",
    "INDEX",
    "SINGLE",
    "TORCH_NAMES",
    "WEIGHT_BYTES",
    "Checkpoint",
    "TensorInfo",
    "adapter_digest",
    "copy_range",
    "fetch",
    "link_or_copy",
    "map_tensor",
    "merge_adapter",
    "placement",
    "read_header",
    "read_json",
    "read_tensor",
    "resolve",
    "rewrite",
]
